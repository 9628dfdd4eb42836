use std::{
    fs,
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use proptest::prelude::{Strategy, any, prop, proptest};

use super::{Budget, LayerError, apply};
use crate::tar::writer::{Words, Writer};

/// A tree that layers are applied to, and what lies beside it and must stay as it is.
struct Tree {
    scratch: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir_all(scratch.path().join("outer/root")).unwrap();
        fs::write(scratch.path().join("outer/secret"), "secret").unwrap();
        Self { scratch }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.scratch.path().join("outer/root").join(path)
    }

    fn apply(&self, layer: &[u8]) -> Result<(), LayerError> {
        self.apply_within(layer, &mut Budget::new(1000, 64 << 20))
    }

    fn apply_within(&self, layer: &[u8], budget: &mut Budget) -> Result<(), LayerError> {
        let root = fs::File::open(self.path("")).unwrap();
        let done = apply(layer, root.as_fd(), budget).map(drop);
        let beside: Vec<_> = fs::read_dir(self.scratch.path().join("outer")).unwrap().collect();
        assert_eq!(beside.len(), 2);
        assert_eq!(fs::read_to_string(self.path("../secret")).unwrap(), "secret");
        assert_eq!(fs::read_dir(self.scratch.path()).unwrap().count(), 1);
        done
    }

    fn must(&self, layer: Writer) {
        self.apply(&layer.end()).unwrap();
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    fn error(&self, layer: Writer) -> String {
        let error = self.apply(&layer.end()).unwrap_err();
        let cause = std::error::Error::source(&error).map(|source| format!(": {source}"));
        error.to_string() + &cause.unwrap_or_default()
    }
}

fn layer() -> Writer {
    Writer::mine()
}

#[test]
fn each_kind_of_entry_becomes_what_it_is() {
    let tree = Tree::new();
    let setuid = Words { mode: 0o4755, ..Words::new(b'0', "d/setuid") };
    let sticky = Words { mode: 0o1777, ..Words::new(b'5', "tmp/") };
    let layer = layer().directory("./").directory("d").file("d/file", b"text").header(&setuid);
    let layer = layer.header(&sticky).header(&Words::new(b'6', "fifo"));
    tree.must(layer.link(b'1', "hard", "d/file").link(b'2', "soft", "../../etc/passwd"));
    assert_eq!(tree.text("d/file"), "text");
    assert_eq!(fs::metadata(tree.path("d/setuid")).unwrap().mode() & 0o7777, 0o4755);
    assert_eq!(fs::metadata(tree.path("tmp")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(fs::metadata(tree.path("hard")).unwrap().nlink(), 2);
    assert!(fs::metadata(tree.path("fifo")).unwrap().file_type().is_fifo());
    assert_eq!(fs::read_link(tree.path("soft")).unwrap(), Path::new("../../etc/passwd"));
    for path in ["", "d", "d/file", "tmp", "fifo", "soft"] {
        assert_eq!(fs::symlink_metadata(tree.path(path)).unwrap().mtime(), 1_000_000_000, "{path}");
    }
}

#[test]
fn a_directory_without_an_entry_keeps_its_time() {
    let tree = Tree::new();
    tree.must(layer().directory("d/"));
    tree.must(layer().file("d/file", b"x"));
    assert_eq!(fs::metadata(tree.path("d")).unwrap().mtime(), 1_000_000_000);
}

#[test]
fn links_of_lower_layers_are_followed_below_the_root() {
    let tree = Tree::new();
    tree.must(
        layer().directory("usr/lib/").link(b'2', "lib", "/usr/lib").link(b'2', "up", "../.."),
    );
    tree.must(layer().file("lib/a", b"a").file("up/b", b"b").link(b'1', "lib/c", "lib/a"));
    assert_eq!((tree.text("usr/lib/a"), tree.text("b")), ("a".into(), "b".into()));
    assert_eq!(tree.text("usr/lib/c"), "a");
}

#[test]
fn what_was_there_is_replaced() {
    let tree = Tree::new();
    tree.must(layer().file("a", b"1").directory("b/").file("b/x", b"1").link(b'2', "c", "b"));
    tree.must(layer().directory("a/").file("a/x", b"2").file("b", b"2").directory("c/"));
    assert_eq!((tree.text("a/x"), tree.text("b")), ("2".into(), "2".into()));
    assert!(fs::symlink_metadata(tree.path("c")).unwrap().is_dir());
    tree.must(layer().file("b", b"3").file("b", b"4").link(b'1', "b", "b"));
    assert_eq!(tree.text("b"), "4");
}

#[test]
fn a_file_is_written_in_place_of_a_link_and_never_through_it() {
    let tree = Tree::new();
    symlink("../secret", tree.path("link")).unwrap();
    tree.must(layer().file("link", b"own"));
    assert_eq!(tree.text("link"), "own");
}

#[test]
fn whiteouts_hide_lower_layers_and_spare_their_own() {
    let tree = Tree::new();
    tree.must(layer().file("a", b"1").file("d/x", b"1").file("d/y", b"1").file("o/x/y", b"1"));
    tree.must(
        layer()
            .file("a", b"2")
            .file("d/new", b"2")
            .file("o/x/new", b"2")
            .file(".wh.a", b"")
            .file(".wh.d", b"")
            .file(".wh.none", b"")
            .file("o/.wh..wh..opq", b""),
    );
    assert_eq!((tree.text("a"), tree.text("d/new")), ("2".into(), "2".into()));
    assert!(!tree.path("d/x").exists() && !tree.path("d/y").exists());
    assert!(tree.path("o/x/new").exists() && !tree.path("o/x/y").exists());
    assert!(!tree.path(".wh.a").exists());
    tree.must(layer().file(".wh..wh.plnk", b"").file(".wh..wh.plnk/1.2", b""));
    assert!(!tree.path(".wh..wh.plnk").exists());
}

#[test]
fn attributes_of_the_packing_host_are_left_behind() {
    let tree = Tree::new();
    let records: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.user.kata", b"1"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.security.selinux", b"x"),
    ];
    tree.must(layer().records(records).file("f", b""));
    let mut names = [0u8; 1024];
    let length = rustix::fs::listxattr(tree.path("f"), &mut names).unwrap();
    assert!(String::from_utf8_lossy(&names[..length]).contains("user.kata"));
    assert!(!String::from_utf8_lossy(&names[..length]).contains("overlay"));
}

#[test]
fn an_attribute_that_can_t_be_kept_does_not_fail_the_layer() {
    let tree = Tree::new();
    // No file system has access control lists on symbolic links. Read for all: owner, group, others.
    let entry = |tag: u16| [&tag.to_le_bytes()[..], &4u16.to_le_bytes(), &[0xff; 4]].concat();
    let list = [2u32.to_le_bytes().to_vec(), entry(1), entry(4), entry(32)].concat();
    let records = [("SCHILY.xattr.system.posix_acl_access", &list[..])];
    tree.must(layer().records(&records).link(b'2', "l", "f"));
    assert!(tree.path("l").is_symlink());
}

#[test]
fn sparse_files_have_holes() {
    let tree = Tree::new();
    let records = [("GNU.sparse.size", &b"1000000000"[..]), ("GNU.sparse.map", b"999999000,3")];
    // GNU tar says where a hole at the end ends.
    let hole = [records[0], ("GNU.sparse.map", &b"0,3,1000000000,0"[..])];
    tree.must(layer().records(&records).file("f", b"abc").records(&hole).file("g", b"abc"));
    for name in ["f", "g"] {
        let found = fs::metadata(tree.path(name)).unwrap();
        assert!(found.len() == 1_000_000_000 && found.blocks() < 100, "{name}");
    }
}

#[test]
fn what_no_layer_may_have_is_refused_by_name() {
    let tree = Tree::new();
    for (name, why) in [
        ("../x", "leads upwards"),
        ("a/../../x", "leads upwards"),
        (".wh...", "hides nothing"),
        (".wh.", "hides nothing"),
    ] {
        let said = tree.error(layer().file(name, b"x"));
        assert!(said.starts_with(name) && said.contains(why), "{said}");
    }
    assert!(tree.error(layer().link(b'1', "h", "../secret")).contains("links to no plain path"));
    assert!(tree.error(layer().link(b'1', "h", "none")).contains("No such file"));
    assert!(tree.error(layer().directory("d").link(b'1', "h", "d")).contains("to a directory"));
    assert!(tree.error(layer().header(&Words::new(b'3', "c"))).contains("0:0"));
    assert!(tree.error(layer().file(".", b"")).contains("root of a layer"));
    assert!(tree.error(layer().file("f", b"").file("f/x", b"")).contains("ot a directory"));
    let cycle = layer().link(b'2', "a", "b").link(b'2', "b", "a").file("a/x", b"");
    assert!(tree.error(cycle).contains("symbolic links"));
}

#[test]
fn a_layer_has_no_more_room_than_it_is_given() {
    let tree = Tree::new();
    let big = layer().file("a", &[1; 100_000]).end();
    let error = tree.apply_within(&big, &mut Budget::new(10, 64 << 10)).unwrap_err();
    assert!(matches!(error, LayerError::Room(0)));
    let many = (0..11).fold(layer(), |layer, number| layer.file(&number.to_string(), b"")).end();
    let error = tree.apply_within(&many, &mut Budget::new(10, 64 << 20)).unwrap_err();
    assert!(matches!(error, LayerError::Entries));
}

#[test]
fn a_link_to_a_file_of_a_lower_layer_takes_as_much_as_its_copy() {
    let tree = Tree::new();
    // Blocks are counted: of bytes that no file system compresses.
    let data: Vec<u8> =
        (0u32..1 << 16).flat_map(|word| word.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    tree.must(layer().file("low/f", &data).directory("own/"));
    let room = 64 << 10;
    let link = layer().link(b'1', "h", "low/f").end();
    let error = tree.apply_within(&link, &mut Budget::new(10, room)).unwrap_err();
    assert!(matches!(error, LayerError::Room(_)), "{error}");
    // By the name of a file that the layer has made.
    let swapped = layer().link(b'2', "d", "own").file("d/f", b"").link(b'2', "d", "low");
    let swapped = swapped.link(b'1', "h", "d/f").end();
    let error = tree.apply_within(&swapped, &mut Budget::new(20, room)).unwrap_err();
    assert!(matches!(error, LayerError::Room(_)), "{error}");
    // Once copied, or made, a file costs nothing again.
    let links = |layer: Writer, name: &str| {
        (0..8).fold(layer, |layer, number| layer.link(b'1', &format!("h{number}"), name)).end()
    };
    let mut budget = Budget::new(40, data.len() as u64 + room);
    tree.apply_within(&links(layer(), "low/f"), &mut budget).unwrap();
    let mut budget = Budget::new(40, data.len() as u64 + room);
    tree.apply_within(&links(layer().file("new", &data), "new"), &mut budget).unwrap();
}

#[test]
fn directories_that_are_changed_are_entries_too() {
    let tree = Tree::new();
    tree.must(layer().file("1/2/3/4/5/f", b""));
    let entries = |count, layer: Writer| {
        let applied = tree.apply_within(&layer.end(), &mut Budget::new(count, 64 << 20));
        assert!(matches!(applied, Ok(()) | Err(LayerError::Entries)), "{applied:?}");
        applied.is_ok()
    };
    let deep = || layer().file("1/2/3/4/5/g", b"").file("1/2/3/4/5/h", b"").file("1/2/3/g", b"");
    assert!(!entries(7, deep()) && entries(8, deep()));
    let hidden = || layer().file("1/2/3/4/5/.wh.g", b"");
    assert!(!entries(5, hidden()) && entries(6, hidden()));
    let link = || layer().link(b'1', "h", "1/2/3/4/5/f");
    assert!(!entries(6, link()) && entries(7, link()));
    // One that has an entry is none twice.
    let own = || layer().directory("a/").directory("a/b/").file("a/b/c", b"");
    assert!(!entries(2, own()) && entries(3, own()));
}

#[test]
fn attributes_and_scattered_bytes_take_whole_blocks() {
    let records: [(&str, &[u8]); 1] = [("SCHILY.xattr.user.a", &[1; 5000])];
    let attributes = layer().records(&records).file("a", b"");
    let map = [("GNU.sparse.size", &b"99999"[..]), ("GNU.sparse.map", b"0,1,40000,1,90000,1")];
    for layer in [attributes, layer().records(&map).file("s", b"abc")] {
        let error = Tree::new().apply_within(&layer.end(), &mut Budget::new(9, 8192)).unwrap_err();
        assert!(matches!(error, LayerError::Room(0)), "{error}");
    }
}

#[test]
fn messages_are_one_short_line() {
    let name = format!("../{}\n\u{1b}[2J", "x".repeat(80));
    let said = Tree::new().error(layer().file(&name, b"x"));
    assert!(said.len() < 400 && !said.contains(['\n', '\u{1b}']), "{said:?}");
}

/// Entries that hostile layers are made of: names that meet each other, links that lead everywhere.
fn entries() -> impl Strategy<Value = Vec<(u8, usize, usize)>> {
    prop::collection::vec((0u8..7, 0usize..NAMES.len(), 0usize..NAMES.len()), 1..40)
}

const NAMES: [&str; 16] = [
    "a",
    "a/b",
    "a/b/c",
    "b",
    "b/a",
    "../secret",
    "/a/../b",
    "../..",
    "/",
    "./",
    ".wh.a",
    "a/.wh.b",
    "a/.wh..wh..opq",
    "b/../../secret",
    "../secret/x",
    "c",
];

proptest! {
    #[test]
    fn no_layer_reaches_what_is_beside_its_tree(first in entries(), second in entries()) {
        let tree = Tree::new();
        for entries in [first, second] {
            let archive = entries.into_iter().fold(layer(), |layer, (kind, name, link)| {
                let (name, link) = (NAMES[name], NAMES[link]);
                match kind {
                    0 | 1 => layer.file(name, b"changed"),
                    2 => layer.directory(name),
                    3 => layer.link(b'1', name, link),
                    4 | 5 => layer.link(b'2', name, link),
                    _ => layer.header(&Words::new(b'6', name)),
                }
            });
            // `apply` looks at what is beside the tree.
            tree.apply(&archive.end()).ok();
        }
    }

    #[test]
    fn no_change_to_a_layer_makes_it_hang_panic_or_leave_its_tree(
        changes in prop::collection::vec((0usize..6000, any::<u8>()), 1..20),
    ) {
        let tree = Tree::new();
        let mut archive = layer()
            .directory("d/")
            .link(b'2', "d/l", "../../secret")
            .file("d/l", b"text")
            .records(&[("path", b"d/long")])
            .file("x", b"text")
            .file("d/.wh.l", b"")
            .end();
        for (at, byte) in changes {
            let size = archive.len();
            archive[at % size] = byte;
        }
        tree.apply(&archive).ok();
        fs::set_permissions(tree.path(""), PermissionsExt::from_mode(0o755)).ok();
    }
}
