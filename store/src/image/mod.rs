//! From a reference to an image: which manifest, which layers, which configuration.

mod documents;
mod files;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    io::{self, Read},
    path::Path,
};

use serde::de::DeserializeOwned;

use self::documents::{ConfigFile, Descriptor, Index, LONGEST, Manifest, Role, Saved, role};
pub use self::{
    documents::ImageConfig,
    files::{Files, FilesError},
};
use crate::{
    Digest,
    digest::Summed,
    reference::{Form, Reference},
};

/// Indexes within indexes.
const DEEPEST: usize = 4;

/// As many layers as an overlay is mounted of; docker has at most 127.
const MOST_LAYERS: usize = 128;

/// The name of an image in a layout, and what containerd and docker write beside it.
const NAMES: [&str; 2] = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Its files.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A document that is not what it has to be.
    #[error("its {name} is not what an image has there: {why}")]
    Document {
        /// Path in the layout.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A blob that is not what its descriptor says.
    #[error("the blob {digest} {why}")]
    Blob {
        /// As the descriptor has it.
        digest: Digest,
        /// What is wrong with it.
        why: String,
    },
    /// A media type.
    #[error("the media type {media_type:?} of {digest} is not supported{hint}")]
    MediaType {
        /// As the descriptor has it.
        media_type: String,
        /// What it is of.
        digest: Digest,
        /// What to do instead, if anything.
        hint: &'static str,
    },
    /// Too many.
    #[error("it holds several images; name one of them: {0}")]
    Ambiguous(String),
    /// No such tag.
    #[error("it holds no image {tag:?}, but {has}")]
    NoTag {
        /// What was asked for.
        tag: String,
        /// What there is.
        has: String,
    },
    /// None at all.
    #[error("it holds no image")]
    Empty,
    /// None for this machine.
    #[error("it is for {has}, and this host runs linux/{}", architecture())]
    Platform {
        /// What there is.
        has: String,
    },
    /// Indexes within indexes within indexes.
    #[error("its indexes are nested more than {DEEPEST} deep")]
    Nesting,
    /// An image of nothing, or of too much.
    #[error("it has {0} layers; 1 to {MOST_LAYERS} can be mounted")]
    Layers(usize),
}

/// An image that was found and whose configuration was read.
pub struct Image {
    /// How it wants to be run.
    pub config: ImageConfig,
    pub(crate) files: Files,
    pub(crate) layers: Vec<Layer>,
}

/// A layer, lowest first.
pub(crate) struct Layer {
    /// Path in the layout.
    pub(crate) name: String,
    /// Of the blob; an archive of docker's names its layers without one.
    pub(crate) digest: Option<Digest>,
    pub(crate) size: Option<u64>,
    /// Digest of what comes out of the blob.
    pub(crate) diff_id: Digest,
}

impl Image {
    /// Finds the image that a reference names; `scratch` is where room is taken for an archive that is compressed.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn find(reference: &Reference, scratch: &Path) -> Result<Self, ImageError> {
        let files = Files::open(reference, scratch)?;
        let tag = reference.tag.as_deref();
        // docker save has long written both; podman's form has no index.
        let saved = reference.form == Form::DockerArchive && files.has("manifest.json");
        let (config, blobs) = if saved { saved_image(&files, tag)? } else { image(&files, tag)? };
        let has = (config.os.as_str(), config.architecture.as_str());
        if has != ("linux", architecture()) {
            return Err(ImageError::Platform { has: format!("{}/{}", has.0, has.1) });
        }
        let diff_ids = config.rootfs.diff_ids;
        if !(1..=MOST_LAYERS).contains(&blobs.len()) {
            return Err(ImageError::Layers(blobs.len()));
        }
        if diff_ids.len() != blobs.len() {
            let why = format!("it has {} layers, and {} diff_ids", blobs.len(), diff_ids.len());
            return Err(ImageError::Document { name: "configuration".to_owned(), why });
        }
        let layers = blobs.into_iter().zip(diff_ids);
        let layers = layers
            .map(|(Blob { name, digest, size }, diff_id)| Layer { name, digest, size, diff_id })
            .collect();
        Ok(Self { config: config.config, files, layers })
    }
}

/// A blob that a manifest names.
struct Blob {
    name: String,
    digest: Option<Digest>,
    size: Option<u64>,
}

fn image(files: &Files, tag: Option<&str>) -> Result<(ConfigFile, Vec<Blob>), ImageError> {
    let index: Index = document(files, "index.json")?;
    let named = choose_name(index.manifests, tag)?;
    let mut chosen = choose_platform(named)?;
    for _ in 0..DEEPEST {
        if role(&chosen.media_type) != Some(Role::Index) {
            return manifest(files, &chosen);
        }
        let index: Index = blob(files, &chosen)?;
        chosen = choose_platform(index.manifests)?;
    }
    Err(ImageError::Nesting)
}

fn manifest(files: &Files, chosen: &Descriptor) -> Result<(ConfigFile, Vec<Blob>), ImageError> {
    expect(chosen, Role::Manifest)?;
    let manifest: Manifest = blob(files, chosen)?;
    expect(&manifest.config, Role::Config)?;
    let config = blob(files, &manifest.config)?;
    let mut blobs = Vec::new();
    for layer in manifest.layers {
        expect(&layer, Role::Layer)?;
        let name = layer.digest.blob();
        blobs.push(Blob { name, digest: Some(layer.digest), size: Some(layer.size) });
    }
    Ok((config, blobs))
}

fn expect(descriptor: &Descriptor, wanted: Role) -> Result<(), ImageError> {
    if role(&descriptor.media_type) == Some(wanted) {
        return Ok(());
    }
    let media_type: String = descriptor.media_type.chars().take(120).collect();
    let hint = match media_type.ends_with("encrypted") {
        true => ": decrypt it first",
        false => "",
    };
    Err(ImageError::MediaType { media_type, digest: descriptor.digest.clone(), hint })
}

/// The manifests of one name; of the only one, when none is asked for.
fn choose_name(
    manifests: Vec<Descriptor>,
    tag: Option<&str>,
) -> Result<Vec<Descriptor>, ImageError> {
    let names = |descriptor: &Descriptor| -> Vec<String> {
        NAMES.iter().filter_map(|name| descriptor.annotations.get(*name).cloned()).collect()
    };
    let all: BTreeSet<String> = manifests
        .iter()
        .map(|descriptor| names(descriptor).into_iter().next().unwrap_or_default())
        .collect();
    let has = list(&all);
    match tag {
        Some(tag) => {
            let is_wanted = |descriptor: &Descriptor| names(descriptor).iter().any(|n| n == tag);
            let wanted: Vec<Descriptor> = manifests.into_iter().filter(is_wanted).collect();
            match wanted.is_empty() {
                true => Err(ImageError::NoTag { tag: tag.chars().take(120).collect(), has }),
                false => Ok(wanted),
            }
        }
        None if all.len() > 1 => Err(ImageError::Ambiguous(has)),
        None => Ok(manifests),
    }
}

fn list(names: &BTreeSet<String>) -> String {
    const MOST: usize = 10;
    let shown = |name: &String| match name.as_str() {
        "" => "one without a name".to_owned(),
        name => name.chars().take(80).flat_map(char::escape_debug).collect(),
    };
    let mut list: Vec<String> = names.iter().take(MOST).map(shown).collect();
    match names.len() {
        0 => list.push("none at all".to_owned()),
        count if count > MOST => list.push(format!("and {} more", count - MOST)),
        _ => {}
    }
    list.join(", ")
}

/// The one for this machine. One that does not say for which machine it is may be.
fn choose_platform(manifests: Vec<Descriptor>) -> Result<Descriptor, ImageError> {
    let fits = |descriptor: &Descriptor| {
        descriptor.platform.as_ref().is_none_or(|platform| {
            platform.os == "linux" && platform.architecture == architecture()
        })
    };
    let has: BTreeSet<String> = manifests
        .iter()
        .filter_map(|descriptor| descriptor.platform.as_ref())
        .map(|platform| format!("{}/{}", platform.os, platform.architecture))
        .collect();
    let mut fitting: Vec<Descriptor> = manifests.into_iter().filter(fits).collect();
    // What says that it fits goes before what says nothing.
    fitting.sort_by_key(|descriptor| descriptor.platform.is_none());
    match fitting.into_iter().next() {
        Some(chosen) => Ok(chosen),
        None if has.is_empty() => Err(ImageError::Empty),
        None => Err(ImageError::Platform { has: list(&has) }),
    }
}

fn saved_image(files: &Files, tag: Option<&str>) -> Result<(ConfigFile, Vec<Blob>), ImageError> {
    let images: Vec<Saved> = document(files, "manifest.json")?;
    let all: BTreeSet<String> = images.iter().flat_map(|image| image.repo_tags.clone()).collect();
    let has = list(&all);
    let chosen = match tag {
        Some(tag) => {
            let latest = format!("{tag}:latest");
            let named =
                |image: &Saved| image.repo_tags.iter().any(|name| name == tag || *name == latest);
            images.into_iter().find(named)
        }
        None if images.len() > 1 => return Err(ImageError::Ambiguous(has)),
        None => images.into_iter().next(),
    };
    let tag: String = tag.unwrap_or_default().chars().take(120).collect();
    let Saved { config, layers, .. } = chosen.ok_or(match tag.is_empty() {
        true => ImageError::Empty,
        false => ImageError::NoTag { tag, has },
    })?;
    let digest = config
        .strip_suffix(".json")
        .or_else(|| config.strip_prefix("blobs/sha256/"))
        .and_then(Digest::sha256);
    let config = match digest {
        Some(digest) => parse(&config, &checked(files, &config, &digest)?)?,
        None => document(files, &config)?,
    };
    let blobs = layers.into_iter().map(|name| {
        let digest = name.strip_prefix("blobs/sha256/").and_then(Digest::sha256);
        Blob { name, digest, size: None }
    });
    Ok((config, blobs.collect()))
}

/// A document that nothing vouches for.
fn document<T: DeserializeOwned>(files: &Files, name: &str) -> Result<T, ImageError> {
    parse(name, &text(files, name)?)
}

/// A document that a descriptor names.
fn blob<T: DeserializeOwned>(files: &Files, descriptor: &Descriptor) -> Result<T, ImageError> {
    let Descriptor { digest, size, .. } = descriptor;
    let name = digest.blob();
    let (_, has) = files.find(&name)?;
    check_size(digest, *size, has)?;
    parse(&name, &checked(files, &name, digest)?)
}

/// A blob's size is compared before a byte of it is read.
pub(crate) fn check_size(digest: &Digest, size: u64, has: u64) -> Result<(), ImageError> {
    if has == size {
        return Ok(());
    }
    let why = format!("has {has} bytes, and its descriptor says {size}");
    Err(ImageError::Blob { digest: digest.clone(), why })
}

fn checked(files: &Files, name: &str, digest: &Digest) -> Result<Vec<u8>, ImageError> {
    let text = text(files, name)?;
    let failed = |source| FilesError::Read { name: name.to_owned(), source };
    let (sum, _) = Summed::new(&text[..], Some(digest)).finish().map_err(failed)?;
    check_sum(digest, sum)?;
    Ok(text)
}

pub(crate) fn check_sum(digest: &Digest, sum: Option<Digest>) -> Result<(), ImageError> {
    match sum {
        Some(sum) if sum != *digest => {
            let why = format!("is damaged or was changed: it sums up to {sum}");
            Err(ImageError::Blob { digest: digest.clone(), why })
        }
        _ => Ok(()),
    }
}

fn text(files: &Files, name: &str) -> Result<Vec<u8>, ImageError> {
    let (section, size) = files.find(name)?;
    let failed = |source| FilesError::Read { name: name.to_owned(), source };
    if size > LONGEST {
        let why = format!("it has {size} bytes, and at most {LONGEST} are read");
        return Err(failed(io::Error::other(why)).into());
    }
    let mut text = Vec::new();
    section.take(LONGEST).read_to_end(&mut text).map_err(failed)?;
    Ok(text)
}

fn parse<T: DeserializeOwned>(name: &str, text: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(text).map_err(|error| {
        let why: String = error.to_string().chars().take(200).collect();
        ImageError::Document { name: name.chars().take(200).collect(), why }
    })
}

/// This machine, in the words of Go.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
