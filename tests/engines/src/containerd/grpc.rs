//! gRPC's unary calls over a Unix socket: as much as a test needs.

use std::{path::Path, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request};
use protobuf::Message;
use tokio::{net::UnixStream, time::timeout};

/// Nothing that a test asks for takes longer.
const DEADLINE: Duration = Duration::from_secs(120);

/// What an engine says to a call that it does not carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// gRPC's number.
    pub code: u32,
    /// The engine's words.
    pub message: String,
}

/// Calls `/SERVICE/METHOD` and waits for its answer.
pub async fn call<A: Message>(
    socket: &Path,
    method: &str,
    request: &impl Message,
) -> Result<A, Status> {
    timeout(DEADLINE, exchange(socket, method, request)).await.unwrap()
}

async fn exchange<A: Message>(
    socket: &Path,
    method: &str,
    request: &impl Message,
) -> Result<A, Status> {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let head = Request::post(format!("http://localhost{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let mut client = client.ready().await.unwrap();
    let (response, mut body) = client.send_request(head, false).unwrap();
    body.send_data(framed(request), true).unwrap();
    let response = response.await.unwrap();
    let head = response.headers().clone();
    let mut stream = response.into_body();
    let mut answer = BytesMut::new();
    while let Some(data) = stream.data().await {
        let data = data.unwrap();
        stream.flow_control().release_capacity(data.len()).unwrap();
        answer.extend_from_slice(&data);
    }
    let trailers = stream.trailers().await.unwrap();
    // An answer without a body has its status in front.
    check(trailers.as_ref().unwrap_or(&head))?;
    // One byte for compression, four for the length.
    Ok(A::parse_from_bytes(&answer[5..]).unwrap())
}

fn framed(message: &impl Message) -> Bytes {
    let bytes = message.write_to_bytes().unwrap();
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(bytes.len()).unwrap());
    frame.put_slice(&bytes);
    frame.freeze()
}

fn check(trailers: &HeaderMap) -> Result<(), Status> {
    let text = |name: &str| trailers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let code = text("grpc-status").unwrap().parse().unwrap();
    match code {
        0 => Ok(()),
        code => Err(Status { code, message: text("grpc-message").unwrap_or_default() }),
    }
}
