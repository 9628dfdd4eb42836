//! Streams of exec, attach and port-forward, as a kubelet passes them on: Kubernetes' channels over a WebSocket
//! (RFC 6455), each message begun by the number of its channel.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use crate::Netns;

/// Nothing that a test waits for takes longer.
const DEADLINE: Duration = Duration::from_secs(60);

/// A stream's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Channel {
    /// To the process, or to and from the first forwarded port.
    Stdin = 0,
    /// From the process.
    Stdout = 1,
    /// Likewise.
    Stderr = 2,
    /// How it ended, as a `Status` of Kubernetes.
    Error = 3,
    /// JSON with `Width` and `Height`.
    Resize = 4,
}

/// A connection to an engine's streaming server.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    received: Arc<(Mutex<Received>, Condvar)>,
}

/// What came so far.
#[derive(Debug, Default)]
struct Received {
    channels: [Vec<u8>; 5],
    ended: bool,
}

impl Stream {
    /// Connects to what an engine in this namespace has answered with.
    pub fn open(network: &Netns, url: &str) -> Self {
        let (authority, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
        let at = authority.to_owned();
        let mut socket = network.beside(move || TcpStream::connect(at)).join().unwrap().unwrap();
        socket.set_nodelay(true).unwrap();
        // The key is one of the RFC's own: whoever wants to check the answer to it may.
        let request = format!(
            "GET /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: v4.channel.k8s.io\r\nOrigin: http://{authority}\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).unwrap();
        let head = read_head(&mut socket);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let received = Arc::new((Mutex::new(Received::default()), Condvar::new()));
        let (reader, shared) = (socket.try_clone().unwrap(), Arc::clone(&received));
        thread::spawn(move || receive(reader, &shared));
        Self { socket, received }
    }

    /// Sends to a channel.
    pub fn send(&mut self, channel: Channel, bytes: &[u8]) {
        let payload = [&[channel as u8], bytes].concat();
        let length = u16::try_from(payload.len()).unwrap();
        // Whole, binary; masked with zeros, as a client may.
        let mut frame = vec![0x82];
        match u8::try_from(length) {
            Ok(short) if short < 126 => frame.push(0x80 | short),
            _ => {
                frame.push(0x80 | 126);
                frame.extend(length.to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        self.socket.write_all(&frame).unwrap();
    }

    /// What has come on a channel.
    pub fn text(&self, channel: Channel) -> String {
        let received = self.received.0.lock().unwrap();
        String::from_utf8_lossy(&received.channels[channel as usize]).into_owned()
    }

    /// Waits until what has come on a channel is as wanted.
    pub fn until(&self, channel: Channel, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + DEADLINE;
        let mut received = self.received.0.lock().unwrap();
        loop {
            let text = String::from_utf8_lossy(&received.channels[channel as usize]).into_owned();
            if wanted(&text) {
                return text;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!received.ended && !left.is_zero(), "{channel:?}: {text:?} of {received:?}");
            received = self.received.1.wait_timeout(received, left).unwrap().0;
        }
    }

    /// Waits for the end; the exit code by the engine's words.
    pub fn ended(&self) -> i32 {
        let deadline = Instant::now() + DEADLINE;
        let mut received = self.received.0.lock().unwrap();
        while !received.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "does not end: {received:?}");
            received = self.received.1.wait_timeout(received, left).unwrap().0;
        }
        let status: serde_json::Value =
            serde_json::from_slice(&received.channels[Channel::Error as usize]).unwrap();
        if status["status"] == "Success" {
            return 0;
        }
        let causes = status["details"]["causes"].as_array();
        let code = causes.into_iter().flatten().find(|cause| cause["reason"] == "ExitCode");
        let code = code.unwrap_or_else(|| panic!("{status}"));
        code["message"].as_str().unwrap().parse().unwrap()
    }
}

impl Drop for Stream {
    /// Hangs up: the thread that takes frames has the connection open too.
    fn drop(&mut self) {
        self.socket.shutdown(Shutdown::Both).ok();
    }
}

fn read_head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    String::from_utf8(head).unwrap()
}

/// Takes frames until the end of the connection.
fn receive(mut socket: TcpStream, shared: &(Mutex<Received>, Condvar)) {
    while let Some(payload) = frame(&mut socket) {
        let Some((channel, bytes)) = payload.split_first() else { continue };
        shared.0.lock().unwrap().channels[usize::from(*channel)].extend_from_slice(bytes);
        shared.1.notify_all();
    }
    shared.0.lock().unwrap().ended = true;
    shared.1.notify_all();
}

/// The next frame of data; a server masks none.
fn frame(socket: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = [0; 2];
    socket.read_exact(&mut head).ok()?;
    let mut length = u64::from(head[1] & 0x7f);
    if length == 126 {
        let mut more = [0; 2];
        socket.read_exact(&mut more).ok()?;
        length = u16::from_be_bytes(more).into();
    } else if length == 127 {
        let mut more = [0; 8];
        socket.read_exact(&mut more).ok()?;
        length = u64::from_be_bytes(more);
    }
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    socket.read_exact(&mut payload).ok()?;
    match head[0] & 0x0f {
        8 => None,
        1 | 2 => Some(payload),
        _ => frame(socket),
    }
}
