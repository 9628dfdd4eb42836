use proptest::prelude::{any, prop, proptest};

use super::{
    Archive, Entry, Extent, Kind, Source, TarError,
    writer::{Words, Writer},
};

impl Source for &[u8] {}

/// All entries, each with its data.
fn read(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut archive = Archive::new(archive);
    let mut entries = Vec::new();
    while let Some(entry) = archive.next()? {
        let stored: u64 = entry.extents.iter().map(|extent| extent.length).sum();
        if stored > 1 << 20 {
            // More than any archive of these tests has.
            return Err(TarError::Truncated);
        }
        let mut data = vec![0; usize::try_from(stored).unwrap()];
        archive.read_data(&mut data)?;
        entries.push((entry, data));
    }
    Ok(entries)
}

fn only(archive: &[u8]) -> (Entry, Vec<u8>) {
    let mut entries = read(archive).unwrap();
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

#[test]
fn entries_come_with_their_data_whether_it_is_read_or_not() {
    let archive = Writer::default().file("a", b"one").directory("d/").file("d/b", &[7; 513]).end();
    let entries = read(&archive).unwrap();
    let names: Vec<&[u8]> = entries.iter().map(|(entry, _)| &entry.path[..]).collect();
    assert_eq!(names, [&b"a"[..], b"d/", b"d/b"]);
    assert_eq!((entries[0].1.as_slice(), entries[2].1.len()), (&b"one"[..], 513));
    let mut unread = Archive::new(&archive[..]);
    for _ in 0..3 {
        unread.next().unwrap().unwrap();
    }
    assert!(unread.next().unwrap().is_none());
}

#[test]
fn a_size_means_data_for_files_alone() {
    let sized = |flag, name| Words { size: 700, link: "a", ..Words::new(flag, name) };
    for (flag, name) in (b'1'..=b'6').map(|flag| (flag, "x")).chain([(0, "x/")]) {
        let header = Writer::default().header(&sized(flag, name));
        let told = header.records(&[("size", b"700")]).header(&sized(flag, name));
        let entries = read(&told.file("b", b"data").end()).unwrap();
        assert_eq!((entries.len(), entries[2].1.as_slice()), (3, &b"data"[..]), "{flag}");
    }
    // A directory by its slash, with data by its flag.
    for (flag, name) in [(b'0', "x/"), (b'7', "x/"), (0, "x")] {
        let archive = Writer::default().header(&sized(flag, name)).data(&[1; 700]);
        let entries = read(&archive.file("b", b"data").end()).unwrap();
        assert_eq!((entries.len(), entries[1].1.as_slice()), (2, &b"data"[..]), "{flag}");
    }
}

#[test]
fn long_names_are_gnus_or_paxs() {
    let long = "n".repeat(300);
    let with = |flag, text: &str| {
        let size = text.len() as u64 + 1;
        Writer::default()
            .header(&Words { size, ..Words::new(flag, "././@LongLink") })
            .data(format!("{text}\0").as_bytes())
    };
    let entry = only(&with(b'L', &long).file("short", b"x").end()).0;
    assert_eq!(entry.path, long.as_bytes());
    let entry = only(&with(b'K', &long).link(b'2', "short", "x").end()).0;
    assert_eq!((entry.kind, entry.link), (Kind::Symlink, long.clone().into_bytes()));
    let archive = Writer::default().records(&[("path", long.as_bytes())]).file("short", b"x");
    assert_eq!(only(&archive.end()).0.path, long.as_bytes());
}

#[test]
fn records_hold_for_the_next_entry_alone() {
    let records: &[(&str, &[u8])] =
        &[("uid", b"70000"), ("mtime", b"5.25"), ("SCHILY.xattr.user.a", b"\0\n=")];
    let archive = Writer::default().records(records).file("a", b"").file("b", b"").end();
    let entries = read(&archive).unwrap();
    let (a, b) = (&entries[0].0, &entries[1].0);
    assert_eq!((a.uid, a.modified), (70_000, (5, 250_000_000)));
    assert_eq!(a.attributes, [(b"user.a".to_vec(), b"\0\n=".to_vec())]);
    assert_eq!((b.uid, b.modified, b.attributes.len()), (0, (1_000_000_000, 0), 0));
}

#[test]
fn sparse_files_of_all_versions_have_their_holes() {
    let extents = [Extent { offset: 512, length: 3 }, Extent { offset: 4096, length: 2 }];
    let check = |archive: Vec<u8>| {
        let (entry, data) = only(&archive);
        assert_eq!((entry.size, entry.extents.as_slice()), (10_000, &extents[..]));
        assert_eq!((entry.path.as_slice(), data.as_slice()), (&b"real"[..], &b"abcde"[..]));
    };
    let name: (&str, &[u8]) = ("GNU.sparse.name", b"real");
    let map: (&str, &[u8]) = ("GNU.sparse.map", b"512,3,4096,2");
    let records = [name, ("GNU.sparse.size", b"10000"), map];
    check(Writer::default().records(&records).file("x", b"abcde").end());
    let list = b"2\n512\n3\n4096\n2\n";
    let mut data = list.to_vec();
    data.resize(512, 0);
    data.extend(b"abcde");
    let records = [("GNU.sparse.major", &b"1"[..]), name, ("GNU.sparse.realsize", &b"10000"[..])];
    check(Writer::default().records(&records).file("x", &data).end());
}

#[test]
fn a_sparse_map_that_can_t_be_is_refused() {
    for map in ["5,3,2,1", "0,9", "0,3,9990,20", "0,4", "0", "18446744073709551615,5"] {
        let records = [("GNU.sparse.size", &b"10000"[..]), ("GNU.sparse.map", map.as_bytes())];
        let archive = Writer::default().records(&records).file("x", b"abcde").end();
        assert!(matches!(read(&archive), Err(TarError::Sparse)), "{map}");
    }
}

#[test]
fn an_archive_may_lack_its_end_but_not_the_end_of_an_entry() {
    let whole = Writer::default().file("a", b"one").cut();
    assert_eq!(read(&whole).unwrap().len(), 1);
    for length in [1, 511, 513, 1023] {
        let cut = read(&whole[..length]);
        assert!(matches!(cut, Err(TarError::Truncated)), "{length}: {cut:?}");
    }
}

#[test]
fn what_is_no_archive_is_said_to_be_none() {
    assert!(matches!(read(&[b'x'; 1024]), Err(TarError::Checksum)));
    let long = Writer::default().header(&Words { size: 1 << 40, ..Words::new(b'L', "x") }).end();
    assert!(matches!(read(&long), Err(TarError::LongExtension)));
    let strange = Writer::default().header(&Words::new(b'M', "x")).end();
    assert!(matches!(read(&strange), Err(TarError::Kind('M'))));
}

#[test]
fn what_stands_before_an_entry_has_a_bound_of_its_own() {
    let name = |flag| Words { size: 400 << 10, ..Words::new(flag, "././@LongLink") };
    let named = |archive: Writer, flag| archive.header(&name(flag)).data(&[b'n'; 400 << 10]);
    let one = |archive| named(named(archive, b'L'), b'K').link(b'2', "short", "x");
    assert_eq!(read(&one(one(Writer::default())).end()).unwrap().len(), 2);
    for flags in [b"LLL", b"KKK", b"LKL"] {
        let more = flags.iter().fold(Writer::default(), |archive, flag| named(archive, *flag));
        assert!(matches!(read(&more.end()), Err(TarError::LongExtension)));
    }
    let records = |key: &str| {
        (0..30).fold(Writer::default(), |archive, number| {
            archive.records(&[(&format!("{key}{number}"), &[b'1'; 40_000])])
        })
    };
    for key in ["SCHILY.xattr.user.", "comment."] {
        assert!(matches!(read(&records(key).end()), Err(TarError::LongExtension)), "{key}");
    }
}

#[test]
fn attributes_and_extents_of_an_entry_are_counted() {
    let attributes = |count| {
        let add = |archive: Writer, number| {
            archive.records(&[(&format!("SCHILY.xattr.user.{number}"), b"1")])
        };
        (0..count).fold(Writer::default(), add).file("a", b"").end()
    };
    assert_eq!(only(&attributes(256)).0.attributes.len(), 256);
    assert!(matches!(read(&attributes(257)), Err(TarError::Attributes)));
    // No entry follows: it is the record that is refused.
    let map = "0,".repeat(1 << 17) + "0";
    let archive = Writer::default().records(&[("GNU.sparse.map", map.as_bytes())]);
    assert!(matches!(read(&archive.end()), Err(TarError::Sparse)));
}

/// An archive with something of everything.
fn sample() -> Vec<u8> {
    Writer::default()
        .directory("d/")
        .records(&[("path", b"d/long"), ("SCHILY.xattr.user.a", b"1")])
        .file("d/x", b"data")
        .records(&[("GNU.sparse.size", b"10000"), ("GNU.sparse.map", b"512,3,4096,2")])
        .file("d/s", b"abcde")
        .link(b'1', "d/h", "d/x")
        .end()
}

proptest! {
    #[test]
    fn no_bytes_make_it_hang_or_panic(
        changes in prop::collection::vec((0usize..6000, any::<u8>()), 1..40),
        length in 0usize..8000,
    ) {
        let mut archive = sample();
        for (at, byte) in changes {
            let size = archive.len();
            archive[at % size] = byte;
        }
        archive.truncate(length);
        // An error, or entries; what counts is that it ends.
        read(&archive).ok();
    }

    #[test]
    fn no_records_make_it_hang_or_panic(text in prop::collection::vec(any::<u8>(), 0..600)) {
        let size = text.len() as u64;
        let header = Words { size, ..Words::new(b'x', "records") };
        let archive = Writer::default().header(&header).data(&text).file("a", b"x").end();
        read(&archive).ok();
    }
}
