//! A containerd of our own.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use kata_guest_tests::image::{Image, Layer, packed};
use serde_json::{Value, json};

use super::{
    Cri, Release, cni,
    runtime::{RemovePodSandboxRequest, StopPodSandboxRequest, VersionRequest},
};
use crate::{Netns, scratch::scratch};

/// A runtime handler, and the name of its shim.
pub type Handler = (&'static str, &'static str);

/// Ours.
pub const KATA: Handler = ("kata", "io.containerd.kata.v2");

/// Ours, for which containerd 2 makes sandboxes by the shim's own service instead of a container that stands for them.
pub const KATA_SANDBOXER: Handler = ("kata-sandboxer", "io.containerd.kata.v2");

/// What holds for it tests the test.
pub const RUNC: Handler = ("runc", "io.containerd.runc.v2");

/// The image of containers.
pub const BUSYBOX: &str = "localhost/busybox:1";

/// The image of sandboxes, for the runtime that runs them.
const PAUSE: &str = "localhost/pause:1";

/// An engine, ended with all that it runs when dropped.
#[derive(Debug)]
pub struct Containerd {
    directory: tempfile::TempDir,
    prefix: PathBuf,
    release: Release,
    process: Child,
    network: Netns,
}

impl Containerd {
    /// Starts the one that is installed.
    pub fn start() -> Option<Self> {
        Self::start_release(Release::installed()?)
    }

    /// The same with CNI plugins, in their order.
    pub fn start_with(plugins: &[Value]) -> Option<Self> {
        Self::start_of(Release::installed()?, plugins)
    }

    /// Starts one of these programs, with a bridge.
    pub fn start_release(release: Release) -> Option<Self> {
        Self::start_of(release, &cni::bridge())
    }

    /// Starts one that knows [`KATA`] and [`RUNC`], with [`BUSYBOX`]; `None`, after a word on why, when it can't be.
    fn start_of(release: Release, plugins: &[Value]) -> Option<Self> {
        let prefix = env::var_os("KATA_PREFIX").map(PathBuf::from);
        let root = env::var_os("KATA_TEST_ROOT_BUSYBOX").map(PathBuf::from);
        let (Some(prefix), Some(root)) = (prefix, root) else {
            println!("SKIP KATA_PREFIX or KATA_TEST_ROOT_BUSYBOX is not set; run cargo xtask test");
            return None;
        };
        let directory = scratch();
        let name = directory.path().file_name().unwrap().to_string_lossy().into_owned();
        write_configuration(directory.path());
        cni::write(directory.path(), &name, plugins);
        let network = Netns::new();
        let process = spawn(directory.path(), &prefix, &release, &network, &[]);
        let engine = Self { directory, prefix, release, process, network };
        engine.await_ready();
        engine.import(&root);
        Some(engine)
    }

    /// A file of this engine.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Its CRI.
    pub fn cri(&self) -> Cri {
        Cri::new(self.file("c.sock"))
    }

    /// `ctr`, in containerd's default namespace.
    pub fn ctr(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.release.program("ctr"));
        command.arg("-a").arg(self.file("c.sock")).args(words);
        command
    }

    /// Kills it as a crash would, and starts it again.
    pub fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// The same, with variables for it and for the shims that it starts from now on.
    pub fn restart_with(&mut self, variables: &[(&str, &str)]) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        let directory = self.directory.path();
        self.process = spawn(directory, &self.prefix, &self.release, &self.network, variables);
        self.await_ready();
    }

    /// The network namespace that it lives in.
    pub fn network(&self) -> &Netns {
        &self.network
    }

    /// A command in its network namespace.
    pub fn inside(&self, program: &str) -> Command {
        self.network.command(program)
    }

    fn await_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let answers = || self.ctr(&["version"]).output().unwrap().status.success();
        // CRI comes up later than the rest.
        while !answers() || self.cri().version(&VersionRequest::default()).is_err() {
            assert!(Instant::now() < deadline, "containerd does not answer: {}", self.log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    fn import(&self, root: &Path) {
        let busybox = packed(root);
        let pause = Layer::new().directory("proc", 0o755);
        for (name, layers, entry) in [
            (BUSYBOX, vec![busybox.clone()], json!([])),
            (PAUSE, vec![busybox, pause.end()], json!(["sleep", "1000000"])),
        ] {
            let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
            let mut image = Image::empty();
            let mut manifest = image.manifest(&layers, json!({"Env": [path], "Entrypoint": entry}));
            manifest["annotations"] = json!({"io.containerd.image.name": name});
            image.list(manifest);
            let archive = image.archive(self.directory.path());
            for namespace in ["default", "k8s.io"] {
                let mut import = self.ctr(&["-n", namespace, "images", "import"]);
                let done = import.arg(&archive).output().unwrap();
                assert!(done.status.success(), "{}", text(&done));
            }
        }
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("containerd said:\n{}", self.log());
        }
        // What a failed test has left: pods by CRI, containers by their tasks.
        let cri = self.cri();
        let pods = cri.list_pod_sandbox(&Default::default()).unwrap_or_default();
        for pod in pods.items {
            let id = pod.id.clone();
            let stop = StopPodSandboxRequest { pod_sandbox_id: id, ..Default::default() };
            cri.stop_pod_sandbox(&stop).ok();
            let id = pod.id;
            let remove = RemovePodSandboxRequest { pod_sandbox_id: id, ..Default::default() };
            cri.remove_pod_sandbox(&remove).ok();
        }
        let tasks = self.ctr(&["tasks", "ls", "-q"]).output().unwrap();
        for id in String::from_utf8_lossy(&tasks.stdout).lines() {
            self.ctr(&["tasks", "rm", "-f", id]).output().ok();
            self.ctr(&["containers", "rm", id]).output().ok();
        }
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn spawn(
    directory: &Path,
    prefix: &Path,
    release: &Release,
    network: &Netns,
    variables: &[(&str, &str)],
) -> Child {
    let log = fs::File::options().create(true).append(true).open(directory.join("log")).unwrap();
    let path = env::var("PATH").unwrap_or_default();
    let (ours, theirs) = (prefix.join("bin"), release.directory());
    network
        .command(release.program("containerd").to_str().unwrap())
        .arg("-c")
        .arg(directory.join("config.toml"))
        .env("PATH", format!("{}:{}:{path}", ours.display(), theirs.display()))
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn write_configuration(directory: &Path) {
    let at = |name: &str| directory.join(name).display().to_string();
    let handlers: String = [KATA, KATA_SANDBOXER, RUNC]
        .iter()
        .map(|(name, kind)| {
            let sandboxer = if *name == KATA_SANDBOXER.0 { "sandboxer = \"shim\"\n" } else { "" };
            format!(
                "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{name}]\n\
                 runtime_type = \"{kind}\"\nprivileged_without_host_devices = true\n{sandboxer}"
            )
        })
        .collect();
    let configuration = format!(
        r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
address = "{socket}"
[ttrpc]
address = "{socket}.ttrpc"
[debug]
level = "warn"
[plugins."io.containerd.internal.v1.opt"]
path = "{opt}"
[plugins."io.containerd.nri.v1.nri"]
disable = true
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{cni}"
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "kata"
{handlers}"#,
        root = at("root"),
        state = at("state"),
        socket = at("c.sock"),
        opt = at("opt"),
        cni = at("cni"),
    );
    fs::write(directory.join("config.toml"), configuration).unwrap();
}
