//! Compressed layers. What a blob is, its first bytes say: media types are known to lie, and the sum of what comes out is
//! checked in every case.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

/// Enough for the magic number of a tar archive.
const LOOK: usize = 512;

/// A stream of which the beginning was looked at.
type Seen<R> = Chain<Cursor<Vec<u8>>, R>;

/// Takes compression away.
pub(crate) enum Plain<R: Read> {
    Uncompressed(Seen<R>),
    Gzip(Box<MultiGzDecoder<Seen<R>>>),
    Zstd(Box<ZstdFrames<Seen<R>>>),
}

impl<R: Read> Plain<R> {
    pub(crate) fn new(mut source: R) -> io::Result<Self> {
        let mut start = Vec::with_capacity(LOOK);
        source.by_ref().take(LOOK as u64).read_to_end(&mut start)?;
        let form = form(&start);
        let seen = Cursor::new(start).chain(source);
        match form? {
            Form::Uncompressed => Ok(Self::Uncompressed(seen)),
            Form::Gzip => Ok(Self::Gzip(Box::new(MultiGzDecoder::new(seen)))),
            Form::Zstd => Ok(Self::Zstd(Box::new(ZstdFrames::new(seen)))),
        }
    }
}

impl<R: Read> Read for Plain<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Uncompressed(source) => source.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(frames) => frames.read(buffer),
        }
    }
}

enum Form {
    Uncompressed,
    Gzip,
    Zstd,
}

fn form(start: &[u8]) -> io::Result<Form> {
    const OTHERS: [(&[u8], &str); 3] =
        [(b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x04\x22\x4d\x18", "lz4")];
    if start.starts_with(&[0x1f, 0x8b]) {
        return Ok(Form::Gzip);
    }
    if start.starts_with(&ZSTD_MAGIC) || is_skippable(start) {
        return Ok(Form::Zstd);
    }
    match OTHERS.iter().find(|(magic, _)| start.starts_with(magic)) {
        Some((_, name)) => Err(invalid(&format!("{name} compression is not supported"))),
        None => Ok(Form::Uncompressed),
    }
}

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Frames that carry no data: seekable layers end with them.
fn is_skippable(start: &[u8]) -> bool {
    matches!(start, [low, 0x2a, 0x4d, 0x18, ..] if low & 0xf0 == 0x50)
}

/// The largest window, and so the most memory, that a frame may ask for: what zstd itself reads when it is told nothing.
const LARGEST_WINDOW: u64 = 128 << 20;

/// All frames of a zstd stream, one behind the other.
pub(crate) struct ZstdFrames<R: Read> {
    source: BufReader<R>,
    decoder: FrameDecoder,
    inside: bool,
}

impl<R: Read> ZstdFrames<R> {
    fn new(source: R) -> Self {
        let source = BufReader::with_capacity(1 << 16, source);
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(LARGEST_WINDOW);
        Self { source, decoder, inside: false }
    }

    /// Enters the next frame; false when there is none.
    fn enter(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    let skipped = io::copy(&mut (&mut self.source).take(length), &mut io::sink())?;
                    if skipped < length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(invalid(&error.to_string())),
            }
        }
    }
}

impl<R: Read> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.inside && self.decoder.can_collect() > 0 {
                return self.decoder.read(buffer);
            }
            if self.inside && !self.decoder.is_finished() {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder
                    .decode_blocks(&mut self.source, one)
                    .map_err(|error| invalid(&error.to_string()))?;
                continue;
            }
            self.inside = self.enter()?;
            if !self.inside {
                return Ok(0);
            }
        }
    }
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use flate2::{Compression, write::GzEncoder};
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::Plain;

    fn plain(compressed: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut text = Vec::new();
        Plain::new(compressed)?.read_to_end(&mut text)?;
        Ok(text)
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        compress_to_vec(text, CompressionLevel::Fastest)
    }

    #[test]
    fn what_it_is_its_first_bytes_say() {
        let text = b"some text, and more of it ".repeat(10_000);
        assert_eq!(plain(&text).unwrap(), text);
        assert_eq!(plain(&gzip(&text)).unwrap(), text);
        assert_eq!(plain(&zstd(&text)).unwrap(), text);
        assert_eq!(plain(b"").unwrap(), b"");
    }

    #[test]
    fn streams_of_several_members_are_read_to_their_end() {
        assert_eq!(plain(&[gzip(b"one"), gzip(b"two")].concat()).unwrap(), b"onetwo");
        let skipped = b"\x50\x2a\x4d\x18\x03\0\0\0xyz";
        let frames = [&zstd(b"one")[..], skipped, &zstd(b"two"), skipped].concat();
        assert_eq!(plain(&frames).unwrap(), b"onetwo");
    }

    #[test]
    fn a_frame_has_a_window_of_128_mib_at_most() {
        // A frame of one empty block: the byte in the middle says how large its window is.
        let frame = |window| plain(&[0x28, 0xb5, 0x2f, 0xfd, 0, window, 1, 0, 0]);
        assert_eq!(frame(17 << 3).unwrap(), b"");
        let error = frame(17 << 3 | 1).unwrap_err().to_string();
        assert!(error.contains("window"), "{error}");
    }

    #[test]
    fn what_is_cut_short_or_unknown_is_an_error() {
        let text = b"some text".repeat(1000);
        for whole in [gzip(&text), zstd(&text)] {
            assert!(plain(&whole[..whole.len() / 2]).is_err());
        }
        let error = plain(b"\xfd7zXZ\0 and so on").unwrap_err().to_string();
        assert_eq!(error, "xz compression is not supported");
    }
}
