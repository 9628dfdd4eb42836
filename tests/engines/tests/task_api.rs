//! What a shim answers to calls of its Task service that come early, late, twice or for nothing, and in which order its events
//! come. What runc's shim answers is the measure.
#![allow(clippy::unwrap_used)]

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    iter,
    process::{Child, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use kata_engine_api::containerd::{
    any::Any,
    task::{
        CheckpointTaskRequest, CloseIORequest, ConnectRequest, DeleteRequest, ExecProcessRequest,
        KillRequest, PidsRequest, ResizePtyRequest, ShutdownRequest, StartRequest, StateRequest,
        WaitRequest,
    },
};
use kata_engine_tests::containerd::{
    Containerd, Handler, KATA, Pod, RUNC, Task, deadline, resources,
};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use serde_json::{Value, json};
use ttrpc::Code;

/// A line a call: what was called, and how it went.
type Answers = Vec<(String, Result<(), Code>)>;

/// The Task service of a shim, every answer of which is noted.
struct Noted<'a> {
    task: &'a Task,
    id: &'a str,
    answers: Answers,
}

impl Noted<'_> {
    fn note<T>(&mut self, call: &str, answer: Result<T, Code>) {
        self.answers.push((call.to_owned(), answer.map(drop)));
    }

    /// Every call that changes nothing of a process in a state of this name, but for its input.
    fn look(&mut self, state: &str, exec: &str) {
        let (id, exec_id) = (self.id.to_owned(), exec.to_owned());
        let request =
            StateRequest { id: id.clone(), exec_id: exec_id.clone(), ..Default::default() };
        let answer = self.task.ask(async |task| task.state(deadline(), &request).await);
        self.note(&format!("state, {state}"), answer);
        let request =
            KillRequest { id: id.clone(), exec_id: exec_id.clone(), ..Default::default() };
        let answer = self.task.ask(async |task| task.kill(deadline(), &request).await);
        self.note(&format!("signal 0, {state}"), answer);
        let request = ResizePtyRequest {
            id: id.clone(),
            exec_id: exec_id.clone(),
            width: 100,
            height: 50,
            ..Default::default()
        };
        let answer = self.task.ask(async |task| task.resize_pty(deadline(), &request).await);
        self.note(&format!("resize, {state}"), answer);
    }

    fn close_input(&mut self, state: &str, exec: &str) {
        let (id, exec_id) = (self.id.to_owned(), exec.to_owned());
        let request = CloseIORequest { id, exec_id, stdin: true, ..Default::default() };
        let answer = self.task.ask(async |task| task.close_io(deadline(), &request).await);
        self.note(&format!("close input, {state}"), answer);
    }

    fn start(&mut self, state: &str, exec: &str) {
        let request =
            StartRequest { id: self.id.into(), exec_id: exec.into(), ..Default::default() };
        let answer = self.task.ask(async |task| task.start(deadline(), &request).await);
        self.note(&format!("start, {state}"), answer);
    }

    fn delete(&mut self, state: &str, exec: &str) {
        let request =
            DeleteRequest { id: self.id.into(), exec_id: exec.into(), ..Default::default() };
        let answer = self.task.ask(async |task| task.delete(deadline(), &request).await);
        self.note(&format!("delete, {state}"), answer);
    }

    fn exec(&mut self, state: &str, request: &ExecProcessRequest) {
        let answer = self.task.ask(async |task| task.exec(deadline(), request).await);
        self.note(&format!("exec, {state}"), answer);
    }
}

/// A process that prints its terminal's size when it has read a line, and ends with 3.
fn on_terminal(id: &str, exec: &str, stdin: &str, stdout: &str) -> ExecProcessRequest {
    let process = json!({
        "terminal": true, "args": ["sh", "-c", "read line; stty size; exit 3"], "cwd": "/",
        "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"], "noNewPrivileges": false,
    });
    let spec = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
        value: process.to_string().into_bytes(),
        ..Default::default()
    };
    ExecProcessRequest {
        id: id.into(),
        exec_id: exec.into(),
        terminal: true,
        stdin: stdin.into(),
        stdout: stdout.into(),
        spec: Some(spec).into(),
        ..Default::default()
    }
}

fn fifo(engine: &Containerd, name: &str) -> String {
    let path = engine.file(name);
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    path.display().to_string()
}

/// The lines of a stream, as they come.
fn heard(stream: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// The answers, and the size that the process has seen.
fn all_answers(engine: &Containerd, handler: Handler) -> (Answers, String) {
    let pod = Pod::run(engine, handler);
    let container = pod.start(pod.script("exec sleep 1000"));
    let (id, task) = (container.id.as_str(), Task::of(engine, &container.id));
    let mut noted = Noted { task: &task, id, answers: Vec::new() };
    noted.look("running", "");
    noted.close_input("running", "");
    noted.look("no such process", "none");
    noted.close_input("no such process", "none");
    noted.start("running", "");
    noted.delete("running", "");
    let (stdin, stdout) =
        (fifo(engine, &format!("{}.in", handler.0)), fifo(engine, &format!("{}.out", handler.0)));
    // A shim waits for who reads and writes.
    let output = open(&stdout, OFlags::RDWR, Mode::empty()).unwrap();
    let mut input = File::from(open(&stdin, OFlags::RDWR, Mode::empty()).unwrap());
    let request = on_terminal(id, "e", &stdin, &stdout);
    noted.exec("new", &request);
    noted.exec("there already", &request);
    noted.look("exec created", "e");
    noted.start("exec created", "e");
    noted.start("exec running", "e");
    noted.delete("exec running", "e");
    let wide = ResizePtyRequest {
        id: id.into(),
        exec_id: "e".into(),
        width: 90,
        height: 40,
        ..Default::default()
    };
    let resized = task.ask(async |task| task.resize_pty(deadline(), &wide).await);
    noted.note("resize, exec running", resized);
    input.write_all(b"\n").unwrap();
    let lines = heard(File::from(output));
    let mut said = iter::from_fn(|| Some(lines.recv_timeout(Duration::from_secs(60)).unwrap()));
    let size = said.find(|line| line.starts_with("40 ")).unwrap();
    let wait = WaitRequest { id: id.into(), exec_id: "e".into(), ..Default::default() };
    for time in ["once", "again"] {
        let waited = task.ask(async |task| task.wait(deadline(), &wait).await);
        noted.note(&format!("wait {time}"), waited.clone());
        assert_eq!(waited.unwrap().exit_status, 3);
    }
    noted.look("exec ended", "e");
    noted.close_input("exec ended", "e");
    noted.start("exec ended", "e");
    noted.delete("exec ended", "e");
    noted.look("exec deleted", "e");
    let shutdown = ShutdownRequest { id: id.into(), ..Default::default() };
    let answer = task.ask(async |task| task.shutdown(deadline(), &shutdown).await);
    noted.note("shutdown of one that has containers", answer);
    for (which, known) in [(id, true), ("unknown", false)] {
        let connect = ConnectRequest { id: which.into(), ..Default::default() };
        let answer = task.ask(async |task| task.connect(deadline(), &connect).await);
        noted.note(&format!("connect, known: {known}"), answer.clone());
        let answer = answer.unwrap();
        assert_eq!(answer.task_pid > 0, known, "{answer}");
        assert!(answer.shim_pid > 0, "{answer}");
        let pids = PidsRequest { id: which.into(), ..Default::default() };
        let answer = task.ask(async |task| task.pids(deadline(), &pids).await);
        noted.note(&format!("pids, known: {known}"), answer);
    }
    container.stop(0);
    noted.look("ended", "");
    noted.start("ended", "");
    noted.exec("ended", &on_terminal(id, "late", &stdin, &stdout));
    let answers = noted.answers;
    pod.remove();
    (answers, size)
}

/// A refusal of which runc's shim says no more than that it is one may be any of ours.
fn is_the_same(ours: &(String, Result<(), Code>), theirs: &(String, Result<(), Code>)) -> bool {
    let refused = ours.1.is_err() && theirs.1 == Err(Code::UNKNOWN);
    // runc's shim has closed its end of a terminal by then.
    ours == theirs || (ours.0 == theirs.0 && refused) || ours.0 == "resize, exec ended"
}

#[test]
fn every_call_is_answered_as_by_runcs_shim() {
    let Some(engine) = Containerd::start() else { return };
    let (kata, runc) = (all_answers(&engine, KATA), all_answers(&engine, RUNC));
    assert_eq!(kata.1, runc.1);
    let differ: Vec<_> =
        kata.0.iter().zip(&runc.0).filter(|(ours, theirs)| !is_the_same(ours, theirs)).collect();

    assert!(differ.is_empty(), "{differ:#?}");
    assert_eq!(kata.0.len(), runc.0.len());
}

#[test]
fn a_checkpoint_is_refused_and_changes_nothing() {
    let Some(engine) = Containerd::start() else { return };
    let pod = Pod::run(&engine, KATA);
    let container = pod.start(pod.script("exec sleep 1000"));
    let task = Task::of(&engine, &container.id);
    let request = CheckpointTaskRequest {
        id: container.id.clone(),
        path: engine.file("image").display().to_string(),
        ..Default::default()
    };
    let answer = task.ask(async |task| task.checkpoint(deadline(), &request).await);
    assert_eq!(answer.unwrap_err(), Code::UNIMPLEMENTED);
    assert!(!engine.file("image").exists());
    assert_eq!(container.output("echo on"), "on");
    pod.remove();
}

/// Who is told all that happens.
struct Subscriber {
    ctr: Child,
    lines: mpsc::Receiver<String>,
}

impl Subscriber {
    fn new(engine: &Containerd) -> Self {
        let mut ctr = engine.ctr(&["events"]).stdout(Stdio::piped()).spawn().unwrap();
        let lines = heard(ctr.stdout.take().unwrap());
        let subscriber = Self { ctr, lines };
        // Nobody says when it listens: until the first is heard there is nothing to be missed.
        for number in 0.. {
            let label = format!("heard={number}");
            let words = ["namespaces", "label", "default", &label];
            assert!(engine.ctr(&words).status().unwrap().success());
            if subscriber.lines.recv_timeout(Duration::from_millis(200)).is_ok() {
                break;
            }
            assert!(number < 300, "no event comes");
        }
        subscriber
    }

    /// The events of a container, to the last of its task, each with what it is of and its code.
    fn of(&self, id: &str) -> Vec<String> {
        let mut told = Vec::new();
        loop {
            let line = self.lines.recv_timeout(Duration::from_secs(120)).unwrap();
            let Some(at) = line.find("/tasks/") else { continue };
            let (topic, event) = line[at..].split_once(' ').unwrap();
            let event: Value = serde_json::from_str(event).unwrap();
            if event["container_id"] != id {
                continue;
            }
            // Of an end, `id` says of what; a code of zero is left out.
            let word = |key: &str| event[key].as_str().unwrap_or_default().replace(id, "init");
            let of = format!("{}{}", word("exec_id"), word("id"));
            let code = event["exit_status"].as_u64().unwrap_or_default();
            told.push(format!("{topic} {of} {code}"));
            if topic == "/tasks/delete"
                && event["id"].as_str().is_none_or(|of| of.is_empty() || of == id)
            {
                return told;
            }
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.ctr.kill().ok();
        self.ctr.wait().ok();
    }
}

#[test]
fn events_come_in_the_order_of_what_happened() {
    let Some(engine) = Containerd::start() else { return };
    let told = [RUNC, KATA].map(|handler| {
        let pod = Pod::run(&engine, handler);
        let subscriber = Subscriber::new(&engine);
        let container = pod.start(pod.script("exec sleep 1000"));
        let task = Task::of(&engine, &container.id);
        task.begin((&container.id, "short"), &["sh", "-c", "exit 5"], "/dev/null");
        assert_eq!(task.end(&container.id, "short"), 5);
        // This one ends with its container.
        task.begin((&container.id, "long"), &["sleep", "1000"], "/dev/null");
        container.stop(0);
        container.remove();
        let told = subscriber.of(&container.id);
        pod.remove();
        told
    });
    let [runc, kata] = &told;
    assert_eq!(kata, runc);
}

#[test]
fn a_kill_for_want_of_memory_is_told_before_the_end() {
    let Some(engine) = Containerd::start() else { return };
    let pod = Pod::run(&engine, KATA);
    let subscriber = Subscriber::new(&engine);
    let mut greedy = pod.script("exec dd if=/dev/zero of=/dev/null bs=64M");
    resources(&mut greedy).memory_limit_in_bytes = 32 << 20;
    let container = pod.start(greedy);
    container.ended();
    container.remove();
    let told = subscriber.of(&container.id);
    let expected = [
        "/tasks/create  0",
        "/tasks/start  0",
        "/tasks/oom  0",
        "/tasks/exit init 137",
        "/tasks/delete  137",
    ];
    assert_eq!(told, expected);
    pod.remove();
}
