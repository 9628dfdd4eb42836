//! The shim's program as each engine starts it: what it prints is one answer, to the byte, and nothing else on either stream,
//! for engines read both as one.
#![allow(clippy::unwrap_used)]

use std::{
    env,
    fs::{self, File},
    io::Write,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use kata_engine_api::containerd::{
    any::Any,
    bootstrap::{BootstrapParams, Extension},
    introspection::RuntimeInfo,
    runtimeoptions::Options,
    task::DeleteResponse,
};
use kata_engine_tests::containerd::{nothing_left, shim_of};
use protobuf::Message;
use rustix::process::{Signal, kill_process};

const NAMESPACE: &str = "golden";

/// An engine that is only its command line.
struct Caller {
    program: PathBuf,
    bundle: tempfile::TempDir,
    id: &'static str,
    _alone: File,
}

impl Caller {
    fn new(id: &'static str) -> Option<Self> {
        let Some(prefix) = env::var_os("KATA_PREFIX") else {
            println!("SKIP KATA_PREFIX is not set; run cargo xtask test");
            return None;
        };
        let program = PathBuf::from(prefix).join("bin/containerd-shim-kata-v2");
        let bundle = tempfile::tempdir().unwrap();
        let config = r#"{"ociVersion": "1.0.2", "annotations": {}}"#;
        fs::write(bundle.path().join("config.json"), config).unwrap();
        Some(Self { program, bundle, id, _alone: alone(id) })
    }

    /// Types what containerd does, with this on stdin; returns what it prints.
    fn says(&self, words: &[&str], stdin: &[u8]) -> Vec<u8> {
        let Output { status, stdout, stderr } = self.call(words, stdin);
        assert_eq!(String::from_utf8_lossy(&stderr), "", "{words:?}");
        assert!(status.success(), "{words:?}: {status}");
        stdout
    }

    fn call(&self, words: &[&str], stdin: &[u8]) -> Output {
        let flags = ["-namespace", NAMESPACE, "-address", "/run/golden.sock", "-id", self.id];
        let mut child = Command::new(&self.program)
            .args(flags)
            .args(["-publish-binary", "/usr/bin/containerd"])
            .args(words)
            .current_dir(self.bundle.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(stdin).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Kills the shim.
    fn kill_shim(&self) {
        kill_process(shim_of(self.id), Signal::KILL).unwrap();
    }

    /// What its clean-up says, without the time, which is there.
    fn deleted(&self) -> Vec<u8> {
        let mut answer = DeleteResponse::parse_from_bytes(&self.says(&["delete"], b"")).unwrap();
        assert!(answer.exited_at.take().unwrap().seconds > 1_700_000_000);
        answer.write_to_bytes().unwrap()
    }
}

/// Waits for other runs on this machine: what is told of an id is golden, and so is the id, and whoever asks for it anywhere
/// is given the same shim.
fn alone(id: &str) -> File {
    let directory = Path::new("/run/lock");
    fs::create_dir_all(directory).unwrap();
    let lock = File::create(directory.join(format!("kata-tests-{id}"))).unwrap();
    lock.lock().unwrap();
    lock
}

fn any(type_url: &str, message: &impl Message) -> Any {
    let value = message.write_to_bytes().unwrap();
    Any { type_url: type_url.into(), value, ..Any::default() }
}

fn options() -> Any {
    any("types.containerd.io/runtimeoptions.v1.Options", &Options::default())
}

#[test]
fn an_engine_that_knows_no_other_form_is_told_the_address() {
    let Some(caller) = Caller::new("golden-address") else { return };
    // containerd 1.6 and CRI-O say nothing, 1.7 to 2.2 their options.
    let golden = include_bytes!("../golden/address");
    assert_eq!(caller.says(&["start"], b""), golden);
    let address = fs::read(caller.bundle.path().join("address")).unwrap();
    assert_eq!(address, golden);
    let socket = String::from_utf8(address).unwrap();
    UnixStream::connect(socket.trim_start_matches("unix://")).unwrap();
    // The same shim again.
    let shim = shim_of(caller.id);
    let options = options().write_to_bytes().unwrap();
    assert_eq!(caller.says(&["-debug", "start"], &options), golden);
    assert_eq!(shim_of(caller.id), shim);
    caller.kill_shim();
    assert_eq!(caller.deleted(), include_bytes!("../golden/delete"));
    nothing_left(caller.id);
    // Again, with nothing there at all.
    assert_eq!(caller.deleted(), include_bytes!("../golden/delete"));
}

#[test]
fn an_engine_that_sends_parameters_is_told_the_result() {
    let Some(caller) = Caller::new("golden-bootstrap") else { return };
    let value = Some(options()).into();
    let params = BootstrapParams {
        instance_id: caller.id.into(),
        namespace: NAMESPACE.into(),
        extensions: vec![Extension { value, ..Extension::default() }],
        ..BootstrapParams::default()
    };
    let said = caller.says(&["start"], &params.write_to_bytes().unwrap());
    assert_eq!(said, include_bytes!("../golden/bootstrap"));
    caller.kill_shim();
    caller.deleted();
    nothing_left(caller.id);
}

#[test]
fn what_the_program_is_is_told_without_a_shim() {
    let Some(caller) = Caller::new("golden-info") else { return };
    let options = options();
    let said = caller.says(&["-info"], &options.write_to_bytes().unwrap());
    let mut info = RuntimeInfo::parse_from_bytes(&said).unwrap();
    assert_eq!(info.options.as_ref(), Some(&options));
    let features = info.features.take().unwrap();
    let runtime = caller.program.with_file_name("kata-runtime");
    let asked = Command::new(runtime).arg("features").output().unwrap();
    let json = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).unwrap();
    assert_eq!(json(&features.value), json(&asked.stdout));
    let version = info.version.take().unwrap().version;
    assert_eq!(info.write_to_bytes().unwrap(), include_bytes!("../golden/info"));
    for words in [&["-v"][..], &["-debug", "--version"]] {
        let said = String::from_utf8(caller.says(words, b"")).unwrap();
        assert_eq!(said, format!("containerd-shim-kata-v2 {version}\n"));
    }
    nothing_left(caller.id);
}

#[test]
fn what_can_not_be_started_is_one_line_and_leaves_nothing() {
    let Some(caller) = Caller::new("golden-refused") else { return };
    let runc = any(
        "containerd.runc.v1.Options",
        &Options { config_body: "/x".into(), ..Options::default() },
    );
    let refused = caller.call(&["start"], &runc.write_to_bytes().unwrap());
    assert!(!refused.status.success() && refused.stdout.is_empty());
    assert_eq!(refused.stderr, include_bytes!("../golden/refused"));
    assert!(!fs::exists(caller.bundle.path().join("address")).unwrap());
    nothing_left(caller.id);
}
