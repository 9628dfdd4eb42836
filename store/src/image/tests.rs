use std::{
    fs,
    io::{Read, Write},
    path::Path,
};

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::{any, prop, proptest};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::{Value, json};

use super::{Files, Image, ImageError};
use crate::{
    Digest,
    reference::{Form, Reference},
    tar::writer::{Words, Writer},
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn reference(form: Form, path: &Path, tag: Option<&str>) -> Reference {
    Reference { form, path: path.into(), tag: tag.map(str::to_owned) }
}

/// A layout that blobs are put into.
struct Layout(tempfile::TempDir);

impl Layout {
    fn new() -> Self {
        let layout = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(layout.0.path().join("blobs/sha256")).unwrap();
        layout
    }

    fn blob(&self, media_type: &str, text: &str) -> Value {
        let digest = Digest::of(text.as_bytes());
        fs::write(self.0.path().join(digest.blob()), text).unwrap();
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": text.len()})
    }

    /// An image for a machine, whose command tells it from others.
    fn image(&self, architecture: &str, command: &str) -> Value {
        let layer = self.blob("application/vnd.docker.image.rootfs.diff.tar.gzip", "a layer");
        let config = json!({
            "os": "linux", "architecture": architecture,
            "config": {"Cmd": [command], "Env": null, "Entrypoint": null},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", &config.to_string());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        self.blob(MANIFEST, &manifest.to_string())
    }

    fn find(&self, manifests: &[Value], tag: Option<&str>) -> Result<String, ImageError> {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        fs::write(self.0.path().join("index.json"), index.to_string()).unwrap();
        let image = Image::find(&reference(Form::Directory, self.0.path(), tag), self.0.path())?;
        Ok(image.config.cmd.concat())
    }
}

fn tagged(mut manifest: Value, name: &str) -> Value {
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    manifest
}

fn on(mut manifest: Value, os: &str, architecture: &str) -> Value {
    manifest["platform"] = json!({"os": os, "architecture": architecture});
    manifest
}

fn here() -> &'static str {
    super::architecture()
}

#[test]
fn one_of_several_needs_a_name() {
    let layout = Layout::new();
    let both = [tagged(layout.image(here(), "a"), "1.0"), tagged(layout.image(here(), "b"), "2.0")];
    assert_eq!(layout.find(&both, Some("2.0")).unwrap(), "b");
    let error = layout.find(&both, None).map(drop).unwrap_err().to_string();
    assert!(error.ends_with("name one of them: 1.0, 2.0"), "{error}");
    let error = layout.find(&both, Some("3")).map(drop).unwrap_err().to_string();
    assert_eq!(error, "it holds no image \"3\", but 1.0, 2.0");
    assert_eq!(layout.find(&both[..1], None).unwrap(), "a");
    assert!(matches!(layout.find(&[], None), Err(ImageError::Empty)));
}

#[test]
fn the_platform_is_looked_for_in_nested_indexes() {
    let layout = Layout::new();
    let attestation = on(layout.image("unknown", "x"), "unknown", "unknown");
    let manifests = [
        on(layout.image("s390x", "x"), "linux", "s390x"),
        attestation,
        on(layout.image(here(), "a"), "linux", here()),
    ];
    let mut index = layout.blob(INDEX, &json!({ "manifests": manifests }).to_string());
    for _ in 0..3 {
        assert_eq!(layout.find(std::slice::from_ref(&index), None).unwrap(), "a");
        index = layout.blob(INDEX, &json!({ "manifests": [index] }).to_string());
    }
    let deeper = layout.blob(INDEX, &json!({ "manifests": [index] }).to_string());
    assert!(matches!(layout.find(&[deeper], None), Err(ImageError::Nesting)));
    let foreign = layout.find(&manifests[..1], None).map(drop).unwrap_err().to_string();
    assert!(foreign.starts_with("it is for linux/s390x"), "{foreign}");
    // One that says nothing of its machine is asked itself.
    let silent = layout.find(&[layout.image("s390x", "x")], None).map(drop).unwrap_err();
    assert!(matches!(silent, ImageError::Platform { .. }));
}

#[test]
fn a_blob_that_was_changed_is_not_believed() {
    let layout = Layout::new();
    let manifest = layout.image(here(), "a");
    let path =
        layout.0.path().join("blobs").join(manifest["digest"].as_str().unwrap().replace(':', "/"));
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"schemaVersion\":2", "\"schemaVersion\":3")).unwrap();
    let error = layout.find(std::slice::from_ref(&manifest), None).map(drop).unwrap_err();
    assert!(error.to_string().contains("damaged or was changed"), "{error}");
    fs::write(&path, text + " ").unwrap();
    let error = layout.find(&[manifest], None).map(drop).unwrap_err().to_string();
    assert!(error.contains("bytes, and its descriptor says"), "{error}");
}

fn archive(bytes: &[u8]) -> (tempfile::NamedTempFile, Result<Files, super::FilesError>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let files = Files::open(&reference(Form::Archive, file.path(), None), &std::env::temp_dir());
    (file, files)
}

fn text(files: &Files, name: &str) -> Result<String, String> {
    let (mut section, _) = files.find(name).map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", cause.unwrap_or_default())
    })?;
    let mut text = String::new();
    section.read_to_string(&mut text).unwrap();
    Ok(text)
}

#[test]
fn members_of_an_archive_are_read_where_they_are() {
    let bytes = Writer::default()
        .file("./a/b", b"one")
        .file("c", &[b'x'; 700])
        .link(b'2', "a/link", "../c")
        .link(b'1', "hard", "a/b")
        .link(b'2', "turn", "round")
        .link(b'2', "round", "turn")
        .link(b'2', "out", "../../etc/passwd")
        .end();
    let (_file, files) = archive(&bytes);
    let files = files.unwrap();
    assert_eq!(text(&files, "a/b").unwrap(), "one");
    assert_eq!(text(&files, "a/link").unwrap().len(), 700);
    assert_eq!(text(&files, "hard").unwrap(), "one");
    assert!(text(&files, "turn").unwrap_err().contains("leads nowhere"));
    assert!(text(&files, "out").unwrap_err().contains("not in the archive"));
}

#[test]
fn an_archive_that_is_compressed_as_a_whole_is_one_too() {
    let bytes = Writer::default().file("a/b", b"one").file("c", &[b'x'; 70_000]).end();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&bytes).unwrap();
    let zstd = compress_to_vec(&bytes[..], CompressionLevel::Fastest);
    for compressed in [gzip.finish().unwrap(), zstd] {
        let (_file, files) = archive(&compressed);
        let files = files.unwrap();
        assert_eq!(text(&files, "a/b").unwrap(), "one");
        assert_eq!(text(&files, "c").unwrap().len(), 70_000);
        let cut = archive(&compressed[..compressed.len() / 2]).1;
        assert!(cut.is_err(), "half of it is none");
    }
}

#[test]
fn an_archive_that_is_none_says_so() {
    let said = |bytes: &[u8]| archive(bytes).1.map(drop).unwrap_err().to_string();
    assert!(said(b"\x1f\x8b and so on").contains("cannot unpack it"));
    assert!(said(b"BZh and so on").contains("bzip2 compression is not supported"));
    assert!(said(&[b'x'; 600]).contains("no tar archive"));
    let claims = Writer::default().header(&Words { size: 1 << 30, ..Words::new(b'0', "a") });
    assert!(said(&claims.end()).contains("ends in the middle"));
}

proptest! {
    #[test]
    fn no_documents_make_it_panic(index in ".{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let layout = Layout::new();
        fs::write(layout.0.path().join("index.json"), index).unwrap();
        Image::find(&reference(Form::Directory, layout.0.path(), None), layout.0.path()).map(drop).ok();
        fs::write(layout.0.path().join("index.json"), &bytes).unwrap();
        Image::find(&reference(Form::Directory, layout.0.path(), None), layout.0.path()).map(drop).ok();
        archive(&bytes).1.map(drop).ok();
    }
}
