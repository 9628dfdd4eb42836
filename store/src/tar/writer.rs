//! Archives for tests: right ones, and wrong ones.

/// Writes archives, byte by byte as it is told.
#[derive(Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    owner: (u32, u32),
}

/// What a header says.
pub(crate) struct Words<'a> {
    pub(crate) flag: u8,
    pub(crate) name: &'a str,
    pub(crate) link: &'a str,
    pub(crate) mode: u32,
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
}

impl<'a> Words<'a> {
    pub(crate) fn new(flag: u8, name: &'a str) -> Self {
        let mode = if flag == b'5' { 0o755 } else { 0o644 };
        Self { flag, name, link: "", mode, size: 0, device: (0, 0) }
    }
}

impl Writer {
    /// Entries that belong to the user who runs the test: nobody else may give files away.
    pub(crate) fn mine() -> Self {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        Self { bytes: Vec::new(), owner: (uid.as_raw(), gid.as_raw()) }
    }

    pub(crate) fn header(mut self, words: &Words<'_>) -> Self {
        let mut block = [0; 512];
        let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
        put(0, words.name.as_bytes());
        put(100, format!("{:07o}\0", words.mode).as_bytes());
        put(108, format!("{:07o}\0", self.owner.0).as_bytes());
        put(116, format!("{:07o}\0", self.owner.1).as_bytes());
        put(124, format!("{:011o}\0", words.size).as_bytes());
        put(136, format!("{:011o}\0", 1_000_000_000).as_bytes());
        put(148, b"        ");
        put(156, &[words.flag]);
        put(157, words.link.as_bytes());
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}\0", words.device.0).as_bytes());
        put(337, format!("{:07o}\0", words.device.1).as_bytes());
        let sum: u32 = block.iter().copied().map(u32::from).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend(block);
        self
    }

    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        self.bytes.extend(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        let size = data.len() as u64;
        self.header(&Words { size, ..Words::new(b'0', name) }).data(data)
    }

    pub(crate) fn directory(self, name: &str) -> Self {
        self.header(&Words::new(b'5', name))
    }

    pub(crate) fn link(self, flag: u8, name: &str, link: &str) -> Self {
        self.header(&Words { link, ..Words::new(flag, name) })
    }

    /// An extended header with records.
    pub(crate) fn records(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..).find(|length: &usize| length.to_string().len() + rest == *length);
            text.extend(format!("{} {key}=", length.unwrap()).bytes());
            text.extend(*value);
            text.push(b'\n');
        }
        let size = text.len() as u64;
        self.header(&Words { size, ..Words::new(b'x', "records") }).data(&text)
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.bytes.extend([0; 1024]);
        self.bytes
    }

    /// Without the blocks that say so.
    pub(crate) fn cut(self) -> Vec<u8> {
        self.bytes
    }
}
