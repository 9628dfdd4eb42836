//! Images that are damaged or made to do harm: one clear line each, and nothing left.
#![allow(clippy::unwrap_used)]

use std::{fs, process::Command};

use kata_guest_tests::{
    Stored,
    image::{Image, Layer, gzipped, hex, with_type},
};
use serde_json::{Value, json};

/// A layer with nothing wrong in it.
fn sample() -> Vec<u8> {
    Layer::new().directory("a/", 0o755).file("a/b", 0o644, b"text").symlink("c", "/a").end()
}

/// Breaks an image, and says what must be said about it.
type Breakage = (&'static str, fn(&mut Image), &'static [&'static str]);

fn one_layer(image: &mut Image, layer: Vec<u8>) {
    let manifest = image.manifest(&[layer], json!({"Cmd": ["true"]}));
    image.list(manifest);
}

/// An image whose one layer's descriptor was changed.
fn changed(image: &mut Image, change: impl FnOnce(&mut Value)) {
    let layer = sample();
    let mut descriptor = with_type(image.blob(&layer), "application/vnd.oci.image.layer.v1.tar");
    change(&mut descriptor);
    let diff_id = format!("sha256:{}", hex(&layer));
    let manifest = image.manifest_of(&[descriptor], &[diff_id], json!({"Cmd": ["true"]}));
    image.list(manifest);
}

const BREAKAGES: &[Breakage] = &[
    ("no images", |_| (), &["holds no image"]),
    (
        "truncated layer",
        |image| one_layer(image, sample()[..1000].to_vec()),
        &["layer 1", "ends in the middle"],
    ),
    ("truncated gzip", |image| one_layer(image, gzipped(&sample())[..90].to_vec()), &["layer 1"]),
    (
        "cyclic links",
        |image| {
            let layer =
                Layer::new().symlink("a", "/b").symlink("b", "a").file("a/x", 0o644, b"").end();
            one_layer(image, layer);
        },
        &["a/x", "symbolic links"],
    ),
    (
        "cyclic hard link",
        |image| one_layer(image, Layer::new().hard_link("a", "a").end()),
        &["a:", "No such file"],
    ),
    (
        "traversal by name",
        |image| {
            one_layer(image, Layer::new().file("../../x", 0o644, b"").end());
        },
        &["../../x", "leads upwards"],
    ),
    (
        "traversal by hard link",
        |image| {
            one_layer(image, Layer::new().hard_link("x", "../../../etc/passwd").end());
        },
        &["no plain path"],
    ),
    ("wrong size", |image| changed(image, |layer| layer["size"] = json!(17)), &["says 17"]),
    (
        "unknown media type",
        |image| {
            changed(image, |layer| layer["mediaType"] = json!("application/x-zip"));
        },
        &["application/x-zip", "not supported"],
    ),
    (
        "encrypted layer",
        |image| {
            let name = "application/vnd.oci.image.layer.v1.tar+encrypted";
            changed(image, |layer| layer["mediaType"] = json!(name));
        },
        &["encrypted", "decrypt it first"],
    ),
    (
        "missing blob",
        |image| {
            let missing = format!("sha256:{}", "0".repeat(64));
            changed(image, |layer| layer["digest"] = json!(missing));
        },
        &["blobs/sha256/0000", "No such file"],
    ),
    (
        "a digest that is a path",
        |image| {
            changed(image, |layer| layer["digest"] = json!("sha256:../../../../etc/passwd"));
        },
        &["no digest"],
    ),
    (
        "damaged blob",
        |image| {
            changed(image, |_| ());
            let path = image.file("blobs/sha256").join(hex(&sample()));
            let mut bytes = fs::read(&path).unwrap();
            bytes[600] ^= 1;
            fs::write(path, bytes).unwrap();
        },
        &["damaged or was changed"],
    ),
    (
        "wrong diff id",
        |image| {
            let layer = sample();
            let descriptor =
                with_type(image.blob(&layer), "application/vnd.oci.image.layer.v1.tar");
            let diff_id = format!("sha256:{}", "1".repeat(64));
            let manifest = image.manifest_of(&[descriptor], &[diff_id], json!({"Cmd": ["true"]}));
            image.list(manifest);
        },
        &["unpacks to sha256:"],
    ),
    ("no archive", |image| one_layer(image, b"x".repeat(2048)), &["no tar archive"]),
    ("bzip2", |image| one_layer(image, b"BZh91AY&SY".to_vec()), &["bzip2"]),
    (
        "a whiteout device",
        |image| {
            one_layer(image, Layer::new().entry((b'3', "c", ""), (0o644, (0, 0)), b"").end());
        },
        &["0:0"],
    ),
    (
        "a bomb of zeros",
        |image| {
            // A file of 8 TiB whose data is all there, as far as its header goes.
            let header =
                Layer::new().records(&[("size", b"8796093022208")]).file("zeros", 0o644, b"");
            one_layer(image, header.end());
        },
        &["no room"],
    ),
    (
        "a header that claims memory",
        |image| {
            let header = Layer::new().entry((b'L', "x", ""), (0o644, (0, 0)), &vec![b'n'; 2 << 20]);
            one_layer(image, header.file("x", 0o644, b"").end());
        },
        &["extended header"],
    ),
    (
        "an index without end",
        |image| {
            let mut index = image.index(&[]);
            for _ in 0..8 {
                index = image.index(&[index]);
            }
            image.list(index);
        },
        &["nested"],
    ),
    (
        "200 layers",
        |image| {
            let layers: Vec<Vec<u8>> = (0..200)
                .map(|number| Layer::new().file(&number.to_string(), 0o644, b"").end())
                .collect();
            let manifest = image.manifest(&layers, json!({"Cmd": ["true"]}));
            image.list(manifest);
        },
        &["200 layers"],
    ),
    (
        "no JSON",
        |image| fs::write(image.file("index.json"), "{\"manifests\": 7}").unwrap(),
        &["index.json"],
    ),
    (
        "a fifo for an index",
        |image| {
            fs::remove_file(image.file("index.json")).unwrap();
            let made = Command::new("mkfifo").arg(image.file("index.json")).status().unwrap();
            assert!(made.success());
        },
        &["index.json", "no regular file"],
    ),
    (
        "a link out of the layout",
        |image| {
            fs::remove_file(image.file("index.json")).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", image.file("index.json")).unwrap();
        },
        &["index.json"],
    ),
];

#[test]
fn a_broken_image_is_one_clear_line_and_leaves_nothing() {
    let Some(fixture) = Stored::installed() else { return };
    for (what, break_it, words) in BREAKAGES {
        let mut image = Image::empty();
        break_it(&mut image);
        fixture.run(&image.reference(), &["--", "true"]).assert_one_line(words);
        fixture.assert_nothing_left(what);
        assert_eq!(fixture.names("layers"), [""; 0], "{what}: layers");
    }
    for (word, said) in [
        ("busybox", "oci:DIR"),
        ("docker://busybox", "not fetched"),
        ("oci:/nowhere", "No such file"),
        ("oci-archive:/dev/zero", "no regular file"),
    ] {
        fixture.run(word, &["--", "true"]).assert_one_line(&[said]);
    }
}
