//! The agent's connection, on which no answer costs more than its bytes tell (`kata_protocol::frame`).

use std::io;

use kata_protocol::frame::{HEADER, bounded, length};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, Join, duplex, join},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// Bytes that are on their way from who looks at frames to who decodes them.
const UNDERWAY: usize = 64 * 1024;

/// The connection, of which whole frames are read; what is written to it nobody looks at. When it is dropped, that is noticed with the
/// next frame, or at the guest's end.
pub fn looked_at(connection: UnixStream) -> Join<DuplexStream, OwnedWriteHalf> {
    let (from, back) = connection.into_split();
    let (to, frames) = duplex(UNDERWAY);
    tokio::spawn(async move {
        // Who reads them sees that there are no more.
        if let Err(error) = look(from, to).await {
            tracing::debug!(%error, "read from the agent");
        }
    });
    join(frames, back)
}

async fn look(mut from: OwnedReadHalf, mut to: DuplexStream) -> io::Result<()> {
    loop {
        let mut header = [0; HEADER];
        from.read_exact(&mut header).await?;
        let mut frame = header.to_vec();
        match length(&header) {
            Ok(whole) => {
                frame.resize(whole, 0);
                from.read_exact(&mut frame[HEADER..]).await?;
                to.write_all(&bounded(frame)).await?;
            }
            Err(body) => {
                to.write_all(&frame).await?;
                tokio::io::copy(&mut (&mut from).take(body), &mut to).await?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixStream,
    };

    use super::{HEADER, looked_at};

    fn frame(body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&length, &[0, 0, 0, 1, 2, 0][..], body].concat()
    }

    #[tokio::test]
    async fn frames_come_as_they_are_or_refused() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut near = looked_at(near);
        let (small, costly) = (frame(&[0x12, 0]), frame(&[0x0a, 0].repeat(1 << 20)));
        let too_long = frame(&vec![0; (4 << 20) + 1]);
        let all = [&small[..], &too_long, &costly, &small].concat();
        let sent = tokio::spawn(async move { far.write_all(&all).await });
        let mut read = vec![0; small.len() + too_long.len() + HEADER];
        near.read_exact(&mut read).await.unwrap();
        let (passed, refusal) = read.split_at(small.len() + too_long.len());
        assert!(passed == [&small[..], &too_long].concat());
        let mut refused = vec![0; refusal[3].into()];
        near.read_exact(&mut refused).await.unwrap();
        assert!(String::from_utf8_lossy(&refused).contains("too many parts"));
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, small, "and then the end");
        sent.await.unwrap().unwrap();
    }
}
