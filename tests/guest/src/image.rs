//! Container images, made by tests byte by byte: right ones, and wrong ones.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An OCI image layout in a directory.
#[derive(Debug)]
pub struct Image {
    directory: tempfile::TempDir,
    manifests: Vec<Value>,
}

impl Image {
    /// A layout without an image.
    pub fn empty() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
        fs::write(directory.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
            .unwrap();
        let image = Self { directory, manifests: Vec::new() };
        image.write_index();
        image
    }

    /// A layout with one image of uncompressed layers, which has no name.
    pub fn of(layers: &[Vec<u8>], config: Value) -> Self {
        let mut image = Self::empty();
        let manifest = image.manifest(layers, config);
        image.list(manifest);
        image
    }

    /// Keeps a blob; its descriptor, but for the media type.
    pub fn blob(&self, bytes: &[u8]) -> Value {
        let digest = hex(bytes);
        fs::write(self.directory.path().join("blobs/sha256").join(&digest), bytes).unwrap();
        json!({"digest": format!("sha256:{digest}"), "size": bytes.len()})
    }

    /// Keeps an image of these layers; the descriptor of its manifest.
    pub fn manifest(&self, layers: &[Vec<u8>], config: Value) -> Value {
        let descriptors: Vec<Value> =
            layers.iter().map(|layer| with_type(self.blob(layer), LAYER)).collect();
        let diff_ids: Vec<String> =
            layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
        self.manifest_of(&descriptors, &diff_ids, config)
    }

    /// The same of what need not fit together.
    pub fn manifest_of(&self, layers: &[Value], diff_ids: &[String], config: Value) -> Value {
        let file = json!({
            "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = with_type(self.blob(file.to_string().as_bytes()), CONFIG);
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        with_type(self.blob(manifest.to_string().as_bytes()), MANIFEST)
    }

    /// Keeps an index; its descriptor.
    pub fn index(&self, manifests: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        with_type(self.blob(index.to_string().as_bytes()), INDEX)
    }

    /// Adds a manifest to the layout's own index.
    pub fn list(&mut self, manifest: Value) {
        self.manifests.push(manifest);
        self.write_index();
    }

    fn write_index(&self) {
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        fs::write(self.file("index.json"), index.to_string()).unwrap();
    }

    /// A file of the layout.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The file of a blob.
    pub fn blob_file(&self, descriptor: &Value) -> PathBuf {
        let digest = descriptor["digest"].as_str().unwrap();
        self.file("blobs").join(digest.replace(':', "/"))
    }

    /// As a word for `--image`.
    pub fn reference(&self) -> String {
        format!("oci:{}", self.directory.path().display())
    }

    /// All of it as an archive; the path of that.
    pub fn archive(&self, scratch: &Path) -> PathBuf {
        let archive = scratch.join("image.tar");
        let bytes = packed(self.directory.path());
        fs::write(&archive, bytes).unwrap();
        archive
    }
}

/// A name for a manifest in a layout's index.
pub fn named(mut manifest: Value, name: &str) -> Value {
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    manifest
}

/// A descriptor with a media type.
pub fn with_type(mut descriptor: Value, media_type: &str) -> Value {
    descriptor["mediaType"] = json!(media_type);
    descriptor
}

/// The hexadecimal digits of a SHA-256 digest.
pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A directory as GNU tar packs it.
pub fn packed(directory: &Path) -> Vec<u8> {
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "-cf", "-", "-C"]).arg(directory).arg(".");
    let output = tar.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// Compressed by gzip.
pub fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let scratch = tempfile::NamedTempFile::new().unwrap();
    fs::write(scratch.path(), bytes).unwrap();
    let output = Command::new("gzip").args(["-1", "-c"]).arg(scratch.path()).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// A layer, entry by entry.
#[derive(Debug, Default)]
pub struct Layer(Vec<u8>);

impl Layer {
    /// One without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Any entry: type, name, link, mode, device, data.
    pub fn entry(
        mut self,
        (flag, name, link): (u8, &str, &str),
        (mode, device): (u32, (u32, u32)),
        data: &[u8],
    ) -> Self {
        let mut block = [0; 512];
        let mut put = |at: usize, text: &str| {
            block[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        put(0, name);
        put(100, &format!("{mode:07o}\0"));
        put(108, "0000000\0");
        put(116, "0000000\0");
        put(124, &format!("{:011o}\0", data.len()));
        put(136, "07346545000\0");
        put(148, "        ");
        put(157, link);
        put(257, "ustar\x0000");
        put(329, &format!("{:07o}\0{:07o}\0", device.0, device.1));
        block[156] = flag;
        let sum: u32 = block.iter().copied().map(u32::from).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(block);
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// A file.
    pub fn file(self, name: &str, mode: u32, data: &[u8]) -> Self {
        self.entry((b'0', name, ""), (mode, (0, 0)), data)
    }

    /// A directory.
    pub fn directory(self, name: &str, mode: u32) -> Self {
        self.entry((b'5', name, ""), (mode, (0, 0)), b"")
    }

    /// A symbolic link.
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry((b'2', name, target), (0o777, (0, 0)), b"")
    }

    /// A hard link.
    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry((b'1', name, target), (0o644, (0, 0)), b"")
    }

    /// Hides what lower layers have.
    pub fn whiteout(self, name: &str) -> Self {
        self.file(name, 0o644, b"")
    }

    /// PAX records for the next entry.
    pub fn records(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..).find(|length: &usize| length.to_string().len() + rest == *length);
            text.extend(format!("{} {key}=", length.unwrap()).bytes());
            text.extend(*value);
            text.push(b'\n');
        }
        self.entry((b'x', "records", ""), (0o644, (0, 0)), &text)
    }

    /// The archive.
    pub fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}
