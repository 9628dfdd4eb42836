//! Generates containerd's messages and services from `proto/`, without `protoc`.

use std::{env, fs, path::Path};

const MESSAGES: [&str; 12] = [
    "mount",
    "process",
    "task",
    "task_events",
    "forward",
    "cgroups_v1",
    "cgroups_v2",
    "bootstrap",
    "introspection",
    "runtimeoptions",
    "sandbox",
    "pod",
];
const SERVICES: [&str; 3] = ["task", "forward", "sandbox"];

fn main() {
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    println!("cargo:rerun-if-changed=proto");
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(MESSAGES.map(|name| format!("proto/{name}.proto")))
        .include("proto")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize { async_all: true, ..Default::default() })
        .run()
        .expect("the proto files compile");
    for name in MESSAGES {
        strip_inner_attributes(&Path::new(&out).join(format!("{name}.rs")));
    }
    for name in SERVICES {
        strip_inner_attributes(&Path::new(&out).join(format!("{name}_ttrpc.rs")));
    }
}

/// `include!` takes no inner attribute or inner doc comment, and the generators begin with some.
fn strip_inner_attributes(path: &Path) {
    let text = fs::read_to_string(path).expect("the generator wrote this file");
    let kept: Vec<&str> =
        text.lines().filter(|l| !l.starts_with("#![") && !l.starts_with("//!")).collect();
    fs::write(path, kept.join("\n")).expect("OUT_DIR is writable");
}
