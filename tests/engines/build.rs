//! Generates CRI's messages from `proto/`, without `protoc`.

use std::{env, fs, path::Path};

fn main() {
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    println!("cargo:rerun-if-changed=proto");
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(["proto/cri.proto"])
        .include("proto")
        .rust_protobuf()
        .run()
        .expect("the proto file compiles");
    let path = Path::new(&out).join("cri.rs");
    let text = fs::read_to_string(&path).expect("the generator wrote this file");
    // `include!` takes no inner attribute or inner doc comment.
    let kept: Vec<&str> =
        text.lines().filter(|l| !l.starts_with("#![") && !l.starts_with("//!")).collect();
    fs::write(path, kept.join("\n")).expect("OUT_DIR is writable");
}
