//! The JSON of an image: OCI's and Docker's, which differ in media types alone.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::Digest;

/// Longest document that is read, as registries have it.
pub(super) const LONGEST: u64 = 4 << 20;

/// A reference to a blob.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) platform: Option<Platform>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Index {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) layers: Vec<Descriptor>,
}

/// `manifest.json` of `docker save`: one for each image.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Saved {
    pub(super) config: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) layers: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ConfigFile {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) config: ImageConfig,
    pub(super) rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
pub(super) struct RootFs {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) diff_ids: Vec<Digest>,
}

/// How an image wants to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImageConfig {
    /// `NAME=VALUE`.
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// What comes before the command.
    #[serde(default, deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// The command, when nobody gives another.
    #[serde(default, deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Empty for `/`.
    #[serde(default, deserialize_with = "or_default")]
    pub working_dir: String,
    /// `USER[:GROUP]` by name or number; empty for root.
    #[serde(default, deserialize_with = "or_default")]
    pub user: String,
    /// What its builder says of it.
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// Signal that asks it to end.
    #[serde(default, deserialize_with = "or_default")]
    pub stop_signal: String,
}

/// Programs in Go write `null` for what is empty.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// What a descriptor's media type says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Index,
    Manifest,
    Config,
    Layer,
}

/// None for what is unknown.
pub(super) fn role(media_type: &str) -> Option<Role> {
    const LAYERS: [&str; 4] = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    match media_type {
        "application/vnd.oci.image.index.v1+json"
        | "application/vnd.docker.distribution.manifest.list.v2+json" => Some(Role::Index),
        "application/vnd.oci.image.manifest.v1+json"
        | "application/vnd.docker.distribution.manifest.v2+json" => Some(Role::Manifest),
        "application/vnd.oci.image.config.v1+json"
        | "application/vnd.docker.container.image.v1+json" => Some(Role::Config),
        other => {
            let compression = LAYERS.iter().find_map(|layer| other.strip_prefix(layer))?;
            matches!(compression, "" | "+gzip" | ".gzip" | "+zstd" | ".zstd").then_some(Role::Layer)
        }
    }
}
