//! Pods and containers, as a kubelet handles them.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use protobuf::MessageField;

use super::{
    BUSYBOX, Containerd, Cri, Handler, Status,
    runtime::{
        ContainerConfig, ContainerMetadata, ContainerState, ContainerStats, ContainerStatsRequest,
        ContainerStatus, ContainerStatusRequest, CreateContainerRequest, ExecSyncRequest,
        ExecSyncResponse, ImageSpec, LinuxContainerConfig, LinuxContainerResources,
        LinuxContainerSecurityContext, LinuxPodSandboxConfig, NamespaceMode, NamespaceOption,
        PodSandboxConfig, PodSandboxMetadata, PodSandboxStatus, PodSandboxStatusRequest,
        RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
        StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
    },
};

/// Names are never used twice.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A running sandbox.
pub struct Pod {
    /// Who runs it.
    pub cri: Cri,
    /// Its id.
    pub id: String,
    /// What it was made of.
    pub config: PodSandboxConfig,
    logs: PathBuf,
}

/// A container of a pod.
pub struct Container<'a> {
    /// Its pod.
    pub pod: &'a Pod,
    /// Its id.
    pub id: String,
    /// Its log on the host.
    pub log: PathBuf,
}

/// The configuration of a sandbox that is like a kubelet's.
pub fn config(engine: &Containerd) -> PodSandboxConfig {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let metadata = PodSandboxMetadata {
        name: format!("pod{number}"),
        uid: format!("uid{number}-{}", std::process::id()),
        namespace: "tests".into(),
        ..Default::default()
    };
    let linux = LinuxPodSandboxConfig {
        cgroup_parent: format!("/kata-engine-tests/pod{number}-{}", std::process::id()),
        ..Default::default()
    };
    PodSandboxConfig {
        metadata: Some(metadata).into(),
        hostname: format!("host{number}"),
        log_directory: engine.file(&format!("logs{number}")).display().to_string(),
        linux: Some(linux).into(),
        ..Default::default()
    }
}

/// The resources of a container, to be set.
pub fn resources(container: &mut ContainerConfig) -> &mut LinuxContainerResources {
    made(&mut made(&mut container.linux).resources)
}

/// The security context of a container, to be set.
pub fn security(container: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    made(&mut made(&mut container.linux).security_context)
}

fn made<T: Default>(field: &mut MessageField<T>) -> &mut T {
    if field.is_none() {
        *field = MessageField::some(T::default());
    }
    field.as_mut().unwrap()
}

impl Pod {
    /// Runs a sandbox like a kubelet's.
    pub fn run(engine: &Containerd, runtime: Handler) -> Self {
        Self::run_with(engine, runtime, config(engine)).unwrap()
    }

    /// Runs a sandbox.
    pub fn run_with(
        engine: &Containerd,
        runtime: Handler,
        config: PodSandboxConfig,
    ) -> Result<Self, Status> {
        let (cri, logs) = (engine.cri(), PathBuf::from(&config.log_directory));
        fs::create_dir_all(&logs).unwrap();
        let request = RunPodSandboxRequest {
            config: Some(config.clone()).into(),
            runtime_handler: runtime.0.into(),
            ..Default::default()
        };
        let id = cri.run_pod_sandbox(&request)?.pod_sandbox_id;
        Ok(Self { cri, id, config, logs })
    }

    /// The configuration of a container that runs a script.
    pub fn script(&self, script: &str) -> ContainerConfig {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let metadata = ContainerMetadata { name: format!("c{number}"), ..Default::default() };
        let mut config = ContainerConfig {
            metadata: Some(metadata).into(),
            image: Some(ImageSpec { image: BUSYBOX.into(), ..Default::default() }).into(),
            command: ["sh", "-c", script].map(str::to_owned).into(),
            log_path: format!("c{number}.log"),
            linux: Some(LinuxContainerConfig::default()).into(),
            ..Default::default()
        };
        // A kubelet says so for every container.
        let namespaces =
            NamespaceOption { pid: NamespaceMode::CONTAINER.into(), ..Default::default() };
        security(&mut config).namespace_options = Some(namespaces).into();
        config
    }

    /// Makes a container.
    pub fn create(&self, config: ContainerConfig) -> Result<Container<'_>, Status> {
        let log = self.logs.join(&config.log_path);
        let request = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config).into(),
            sandbox_config: Some(self.config.clone()).into(),
            ..Default::default()
        };
        let id = self.cri.create_container(&request)?.container_id;
        Ok(Container { pod: self, id, log })
    }

    /// Makes a container and starts it.
    pub fn start(&self, config: ContainerConfig) -> Container<'_> {
        let container = self.create(config).unwrap();
        container.start().unwrap();
        container
    }

    /// How the sandbox is.
    pub fn status(&self) -> PodSandboxStatus {
        let pod_sandbox_id = self.id.clone();
        let request = PodSandboxStatusRequest { pod_sandbox_id, ..Default::default() };
        self.cri.pod_sandbox_status(&request).unwrap().status.unwrap()
    }

    /// Stops it.
    pub fn stop(&self) {
        let pod_sandbox_id = self.id.clone();
        let request = StopPodSandboxRequest { pod_sandbox_id, ..Default::default() };
        self.cri.stop_pod_sandbox(&request).unwrap();
    }

    /// Stops and removes it.
    pub fn remove(&self) {
        self.stop();
        self.remove_again();
    }

    /// Removes it without stopping it, as it may be, and then its group, as a kubelet does.
    pub fn remove_again(&self) {
        let pod_sandbox_id = self.id.clone();
        let request = RemovePodSandboxRequest { pod_sandbox_id, ..Default::default() };
        self.cri.remove_pod_sandbox(&request).unwrap();
        let Some(parent) = self.config.linux.cgroup_parent.strip_prefix('/') else { return };
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
        for hierarchy in hierarchies.chain([root.to_owned()]) {
            // Of version 1 or 2; removed again, there is none.
            fs::remove_dir(hierarchy.join(parent)).ok();
        }
    }
}

impl Container<'_> {
    fn cri(&self) -> &Cri {
        &self.pod.cri
    }

    /// Starts it.
    pub fn start(&self) -> Result<(), Status> {
        let container_id = self.id.clone();
        let request = StartContainerRequest { container_id, ..Default::default() };
        self.cri().start_container(&request).map(drop)
    }

    /// How it is.
    pub fn status(&self) -> ContainerStatus {
        let container_id = self.id.clone();
        let request = ContainerStatusRequest { container_id, ..Default::default() };
        self.cri().container_status(&request).unwrap().status.unwrap()
    }

    /// Waits for its end.
    pub fn ended(&self) -> ContainerStatus {
        let deadline = Instant::now() + Duration::from_secs(180);
        loop {
            let status = self.status();
            if status.state == ContainerState::CONTAINER_EXITED.into() {
                return status;
            }
            assert!(Instant::now() < deadline, "the container does not end: {status}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs a command in it to its end.
    pub fn exec(&self, command: &[&str]) -> ExecSyncResponse {
        self.try_exec(command, Duration::ZERO).unwrap()
    }

    /// The same with a timeout, where zero is none; it may fail.
    pub fn try_exec(
        &self,
        command: &[&str],
        timeout: Duration,
    ) -> Result<ExecSyncResponse, Status> {
        let request = ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: i64::try_from(timeout.as_secs()).unwrap(),
            ..Default::default()
        };
        self.cri().exec_sync(&request)
    }

    /// What a script in it prints.
    pub fn output(&self, script: &str) -> String {
        let answer = self.exec(&["sh", "-c", script]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(answer.exit_code, 0, "{script}: {}", text(&answer.stderr));
        text(&answer.stdout).trim_end().to_owned()
    }

    /// What it uses.
    pub fn stats(&self) -> ContainerStats {
        let container_id = self.id.clone();
        let request = ContainerStatsRequest { container_id, ..Default::default() };
        self.cri().container_stats(&request).unwrap().stats.unwrap()
    }

    /// Stops it; after so many seconds it is killed.
    pub fn stop(&self, seconds: i64) {
        let container_id = self.id.clone();
        let request = StopContainerRequest { container_id, timeout: seconds, ..Default::default() };
        self.cri().stop_container(&request).unwrap();
    }

    /// Removes it.
    pub fn remove(&self) {
        let container_id = self.id.clone();
        let request = RemoveContainerRequest { container_id, ..Default::default() };
        self.cri().remove_container(&request).unwrap();
    }

    /// The lines of its log, without their times: stream, kind, text.
    pub fn log_lines(&self) -> Vec<String> {
        lines(&self.log)
    }
}

fn lines(log: &Path) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap();
    text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}
