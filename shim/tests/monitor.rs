//! The real `kata-monitor`, between a test that plays the engine and a test that plays the shim.
#![allow(clippy::unwrap_used)]

mod monitor_bench;

use std::{
    fs,
    io::{Read, Write},
    net::Shutdown,
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use kata_engine_api::{
    control::{Stream, ToShim},
    handover::TerminalSize,
    record::{Cause, EndNote},
};
use kata_sys::spawn::Exit;
use monitor_bench::{Engine, Monitor, SECOND, ended, noise, pipe, read_exactly, within};
use rustix::{
    fs::OFlags,
    process::Signal,
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};

const MIB: usize = 1024 * 1024;

#[test]
fn every_byte_passes_all_ways_at_once() {
    let mut monitor = Monitor::start(&[]);
    let [stdin, stdout, stderr] = monitor.streams([Stream::Stdin, Stream::Stdout, Stream::Stderr]);
    let (input, output, errors) = (noise(16 * MIB, 1), noise(16 * MIB, 2), noise(16 * MIB, 3));
    let Engine { stdin: to, stdout: from, stderr: from_errors } = monitor.engine.take().unwrap();
    thread::scope(|scope| {
        for (mut writer, bytes) in [(stdout, &output), (stderr, &errors)] {
            scope.spawn(move || writer.write_all(bytes).unwrap());
        }
        scope.spawn(|| {
            let mut to = to;
            to.write_all(&input).unwrap();
        });
        let readers = [(from, &output), (from_errors, &errors)].map(|(mut reader, bytes)| {
            scope.spawn(move || {
                let mut read = Vec::new();
                reader.read_to_end(&mut read).unwrap();
                assert!(read == *bytes);
            })
        });
        let mut stdin = stdin;
        let mut read = Vec::new();
        // The end of the engine's stdin arrives as a half-close.
        stdin.read_to_end(&mut read).unwrap();
        assert!(read == input);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    monitor.end(&ended(7, Some(16 * MIB), Some(16 * MIB)));
    assert_eq!(monitor.leave(), Exit::Code(7));
}

#[test]
fn an_end_waits_for_counted_bytes_longer_than_the_grace() {
    let mut monitor = Monitor::start(&[]);
    let [mut stdout] = monitor.streams([Stream::Stdout]);
    monitor.end(&within(1, ended(0, Some(MIB), None)));
    assert_eq!(monitor.next_within(Duration::from_millis(300)), None);
    let bytes = noise(MIB, 4);
    let mut engine = monitor.engine.take().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| stdout.write_all(&bytes).unwrap());
        assert!(read_exactly(&mut engine.stdout, MIB) == bytes);
    });
    // The stream is open still: the grace is long over.
    assert_eq!(monitor.leave(), Exit::Code(0));
}

#[test]
fn bytes_that_a_guest_promises_and_never_gives_do_not_hold_the_end_for_ever() {
    let mut monitor = Monitor::start(&[]);
    let [_stdout] = monitor.streams([Stream::Stdout]);
    monitor.end(&within(1, ended(5, Some(MIB), None)));
    assert_eq!(monitor.next_within(Duration::from_millis(300)), None);
    // The monitor's own patience is 15 s.
    assert_eq!(monitor.next_within(Duration::from_secs(30)), Some(ToShim::Drained {}));
}

#[test]
fn a_stream_that_is_held_open_delays_an_end_by_the_grace_alone() {
    let mut monitor = Monitor::start(&[]);
    let [mut stdout] = monitor.streams([Stream::Stdout]);
    stdout.write_all(b"all").unwrap();
    let before = Instant::now();
    monitor.end(&within(400, ended(3, Some(3), Some(0))));
    assert_eq!(monitor.leave(), Exit::Code(3));
    let took = before.elapsed();
    assert!((Duration::from_millis(400)..5 * SECOND).contains(&took), "{took:?}");
    assert_eq!(read_exactly(&mut monitor.engine.take().unwrap().stdout, 3), b"all");
}

#[test]
fn a_monitor_stays_until_its_end_is_recorded() {
    let mut monitor = Monitor::start(&[]);
    monitor.end(&ended(0, None, None));
    assert_eq!(monitor.next(), Some(ToShim::Drained {}));
    assert_eq!(monitor.child.try_wait().unwrap(), None);
    monitor.control = None;
    assert_eq!(monitor.exit(), Exit::Code(0));
}

#[test]
fn what_a_descendant_writes_within_the_grace_is_passed_on() {
    let mut monitor = Monitor::start(&[]);
    let [mut stdout] = monitor.streams([Stream::Stdout]);
    monitor.end(&within(60_000, ended(0, Some(0), None)));
    stdout.write_all(b"late").unwrap();
    drop(stdout);
    assert_eq!(monitor.leave(), Exit::Code(0));
    assert_eq!(read_exactly(&mut monitor.engine.take().unwrap().stdout, 4), b"late");
}

#[test]
fn an_end_before_any_stream_is_an_end_at_once() {
    let mut monitor = Monitor::start(&[]);
    monitor.end(&within(60_000, ended(137, Some(0), Some(0))));
    assert_eq!(monitor.leave(), Exit::Code(137));
}

#[test]
fn a_stream_that_breaks_before_all_was_counted_does_not_hold_the_end() {
    let mut monitor = Monitor::start(&[]);
    let [stdout] = monitor.streams([Stream::Stdout]);
    drop(stdout);
    monitor.end(&within(60_000, ended(137, Some(1000), None)));
    assert_eq!(monitor.leave(), Exit::Code(137));
}

#[test]
fn input_that_nobody_reads_does_not_hold_the_end() {
    let mut monitor = Monitor::start(&[]);
    let [stdin, stdout] = monitor.streams([Stream::Stdin, Stream::Stdout]);
    let engine = monitor.engine.as_ref().unwrap();
    rustix::io::ioctl_fionbio(&engine.stdin, true).unwrap();
    // Until the pipe and the stream are full.
    while rustix::io::write(&engine.stdin, &[0; 4096]).is_ok() {}
    drop(stdout);
    monitor.end(&within(60_000, ended(0, Some(0), None)));
    assert_eq!(monitor.leave(), Exit::Code(0));
    drop(stdin);
}

#[test]
fn the_guests_end_of_output_reaches_the_engine_while_the_container_runs() {
    let mut monitor = Monitor::start(&[]);
    let [stdout, _stderr] = monitor.streams([Stream::Stdout, Stream::Stderr]);
    stdout.shutdown(Shutdown::Write).unwrap();
    let mut read = Vec::new();
    monitor.engine.as_mut().unwrap().stdout.read_to_end(&mut read).unwrap();
    assert!(read.is_empty());
}

#[test]
fn a_reader_that_goes_away_ends_the_guests_stream_and_the_rest_goes_on() {
    let mut monitor = Monitor::start(&[]);
    let [mut stdout, mut stderr] = monitor.streams([Stream::Stdout, Stream::Stderr]);
    let Engine { stdin: _stdin, stdout: reader, stderr: mut errors } =
        monitor.engine.take().unwrap();
    drop(reader);
    let refused = (0..1000).find_map(|_| stdout.write_all(&[0; 65536]).err());
    assert_eq!(refused.unwrap().kind(), std::io::ErrorKind::BrokenPipe);
    stderr.write_all(b"still here").unwrap();
    assert_eq!(read_exactly(&mut errors, 10), b"still here");
    drop(stderr);
    monitor.end(&within(60_000, ended(141, Some(65_536_000), Some(10))));
    assert_eq!(monitor.leave(), Exit::Code(141));
}

#[test]
fn a_guest_that_closes_its_stdin_closes_the_engines() {
    let mut monitor = Monitor::start(&[]);
    let [stdin] = monitor.streams([Stream::Stdin]);
    drop(stdin);
    let mut engine = monitor.engine.take().unwrap();
    let refused = (0..1000).find_map(|_| engine.stdin.write_all(&[0; 65536]).err());
    assert_eq!(refused.unwrap().kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn a_pipe_that_somebody_made_non_blocking_loses_nothing_and_stays_as_it_is() {
    let (mut reader, writer) = pipe();
    for on in [true, false] {
        rustix::io::ioctl_fionbio(&writer, on).unwrap();
        let before = rustix::fs::fcntl_getfl(&writer).unwrap();
        assert_eq!(before.contains(OFlags::NONBLOCK), on);
        let mut monitor = Monitor::start_with_stdout(writer.as_fd());
        let [mut stdout] = monitor.streams([Stream::Stdout]);
        let bytes = noise(4 * MIB, 5);
        thread::scope(|scope| {
            scope.spawn(|| stdout.write_all(&bytes).unwrap());
            assert!(read_exactly(&mut reader, 4 * MIB) == bytes);
        });
        drop(stdout);
        monitor.end(&ended(0, Some(4 * MIB), None));
        assert_eq!(monitor.leave(), Exit::Code(0));
        assert_eq!(rustix::fs::fcntl_getfl(&writer).unwrap(), before);
    }
}

#[test]
fn a_file_that_is_appended_to_gets_every_byte() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    fs::write(&path, "first ").unwrap();
    let file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    let mut monitor = Monitor::start_with_stdout(file.as_fd());
    let [mut stdout] = monitor.streams([Stream::Stdout]);
    stdout.write_all(b"second").unwrap();
    drop(stdout);
    monitor.end(&ended(0, Some(6), None));
    assert_eq!(monitor.leave(), Exit::Code(0));
    assert_eq!(fs::read_to_string(path).unwrap(), "first second");
}

#[test]
fn a_lost_shim_leaves_a_note_and_137() {
    let mut monitor = Monitor::start(&[]);
    let [_stdout] = monitor.streams([Stream::Stdout]);
    monitor.control = None;
    assert_eq!(monitor.exit(), Exit::Code(137));
    let note: EndNote =
        serde_json::from_slice(&fs::read(monitor.directory.path().join("end.json")).unwrap())
            .unwrap();
    assert_eq!((note.ended.code, note.ended.cause), (137, Cause::ShimLost));
    assert_eq!(monitor.files(), ["end.json"]);
}

#[test]
fn an_exec_leaves_the_containers_note_alone() {
    let mut monitor = Monitor::start(&["--exec", "e1"]);
    monitor.control = None;
    assert_eq!(monitor.exit(), Exit::Code(137));
    assert!(monitor.files().is_empty());
}

#[test]
fn a_message_that_is_none_is_a_lost_shim() {
    let mut monitor = Monitor::start(&[]);
    kata_sys::scm::send(monitor.control.as_ref().unwrap(), b"{\"bogus\":1}", &[]).unwrap();
    assert_eq!(monitor.exit(), Exit::Code(137));
    let note = fs::read_to_string(monitor.directory.path().join("end.json")).unwrap();
    assert!(note.contains("not understood"), "{note}");
}

#[test]
fn signals_are_handed_on_and_do_not_end_the_monitor() {
    let mut monitor = Monitor::start(&[]);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::USR1, Signal::SEGV] {
        rustix::process::kill_process(monitor.child.pid, signal).unwrap();
        assert_eq!(monitor.next(), Some(ToShim::Signal(signal.as_raw())));
    }
    monitor.end(&ended(143, None, None));
    assert_eq!(monitor.leave(), Exit::Code(143));
}

#[test]
fn a_killed_monitor_is_seen_and_leaves_nothing() {
    let mut monitor = Monitor::start(&[]);
    let [mut stdout] = monitor.streams([Stream::Stdout]);
    monitor.child.kill().unwrap();
    assert_eq!(monitor.exit(), Exit::Signal(9));
    assert_eq!(monitor.next(), None);
    assert!(stdout.write_all(b"x").is_err());
    assert!(monitor.files().is_empty());
}

#[test]
fn a_console_socket_gets_a_raw_terminal_whose_resizes_are_told() {
    let (mut monitor, mut master) = Monitor::start_with_console(&["--terminal"]);
    let size =
        |rows, columns| Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&master, size(24, 80)).unwrap();
    let [mut terminal] = monitor.streams([Stream::Terminal]);
    let told = |rows, columns| Some(ToShim::Resize(TerminalSize { rows, columns }));
    assert_eq!(monitor.next(), told(24, 80));
    tcsetwinsize(&master, size(50, 132)).unwrap();
    // The first size may have come as a signal too.
    let next = monitor.next();
    let next = if next == told(24, 80) { monitor.next() } else { next };
    assert_eq!(next, told(50, 132));

    let modes = tcgetattr(&master).unwrap();
    let cooked = LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
    assert!(!modes.local_modes.intersects(cooked));
    // Control characters are the guest's business.
    master.write_all(b"ls\x03\x04\r").unwrap();
    assert_eq!(read_exactly(&mut terminal, 5), b"ls\x03\x04\r");
    terminal.write_all(b"a\r\n").unwrap();
    assert_eq!(read_exactly(&mut master, 3), b"a\r\n");

    drop(terminal);
    monitor.end(&ended(0, Some(3), None));
    assert_eq!(monitor.leave(), Exit::Code(0));
}

#[test]
fn a_terminal_that_hangs_up_is_a_signal_and_a_half_close() {
    let (mut monitor, master) = Monitor::start_with_console(&["--terminal"]);
    let [mut terminal] = monitor.streams([Stream::Terminal]);
    drop(master);
    assert_eq!(monitor.next(), Some(ToShim::Signal(Signal::HUP.as_raw())));
    assert_eq!(terminal.read(&mut [0]).unwrap(), 0);
    drop(terminal);
    monitor.end(&ended(129, Some(0), None));
    assert_eq!(monitor.leave(), Exit::Code(129));
}

#[test]
fn the_monitor_stands_in_its_own_network_namespace_and_session() {
    let monitor = Monitor::start(&["--new-network"]);
    let pid = monitor.child.pid;
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    let own = namespace(&pid.to_string());
    assert_ne!(own, namespace("self"));
    assert_eq!(rustix::process::getsid(Some(pid)).unwrap(), pid);

    let file = fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
    let second = Monitor::start_with_fds(&["--network-fd", "6"], &[file.as_fd()]).unwrap();
    assert_eq!(namespace(&second.child.pid.to_string()), own);
}

#[test]
fn nothing_inherited_stays_open_but_what_was_meant() {
    let stray = fs::File::open("/etc").unwrap();
    let monitor = Monitor::start_with_fds(&[], &[stray.as_fd(), stray.as_fd()]).unwrap();
    let proc = format!("/proc/{}", monitor.child.pid);
    let open: Vec<_> = fs::read_dir(format!("{proc}/fd"))
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap())
        .collect();
    assert!(!open.iter().any(|target| target.starts_with("/etc")), "{open:?}");
    assert_eq!(fs::read_link(format!("{proc}/cwd")).unwrap().to_str(), Some("/"));
}

#[test]
fn what_keeps_a_monitor_from_being_ready_is_one_line() {
    for (arguments, words) in [
        (&["--bogus"][..], "--bogus"),
        (&["--network-fd", "99"], "the network namespace (descriptor 99)"),
        (&["--network-fd", "6"], "cannot enter the network namespace: "),
        (&["--console-socket-fd", "6"], "console socket: "),
    ] {
        let file = fs::File::open("/dev/null").unwrap();
        let error = Monitor::start_with_fds(arguments, &[file.as_fd()]).map(drop).unwrap_err();
        assert!(error.starts_with("error: ") && error.contains(words), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
