//! Options of a mount, as the specification and mount(8) word them.

use rustix::mount::{MountAttrFlags as Attribute, MountPropagationFlags as Propagation};

/// A change of mount attributes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    pub set: u64,
    pub clear: u64,
}

impl Change {
    fn apply(&mut self, attribute: Attribute, word: Word) {
        let times = Attribute::MOUNT_ATTR_NOATIME | Attribute::MOUNT_ATTR_STRICTATIME;
        // RELATIME is zero: the default of the field that the other two are values of.
        if attribute.is_empty() || times.contains(attribute) {
            // The kernel takes a new value of the field only together with the clearing of all of it.
            let field = u64::from(Attribute::MOUNT_ATTR__ATIME.bits());
            self.clear |= field;
            self.set &= !field;
            if matches!(word, Word::Set) {
                self.set |= u64::from(attribute.bits());
            }
            return;
        }
        let bits = u64::from(attribute.bits());
        let (to, from) = match word {
            Word::Set => (&mut self.set, &mut self.clear),
            Word::Clear => (&mut self.clear, &mut self.set),
        };
        *to |= bits;
        *from &= !bits;
    }
}

#[derive(Clone, Copy)]
enum Word {
    Set,
    Clear,
}

/// How far a bind mount or a propagation type reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    Mount,
    Tree,
}

/// What the options of one mount ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub bind: Option<Extent>,
    /// Of the mount itself.
    pub mount: Change,
    /// Of the mount and all below it (`rro` and its like).
    pub tree: Change,
    pub propagation: Vec<(Propagation, Extent)>,
    pub copy_up: bool,
    /// For the file system; without a value it is a flag.
    pub data: Vec<(String, Option<String>)>,
}

impl Options {
    /// Sorts the words of `options`.
    pub fn parse(options: &[String]) -> Self {
        let mut parsed = Self::default();
        for option in options {
            parsed.take(option);
        }
        parsed
    }

    fn take(&mut self, option: &str) {
        match option {
            // No kernel attaches a meaning to these for a new mount.
            "" | "defaults" | "remount" | "silent" | "loud" | "iversion" | "noiversion" | "acl"
            | "noacl" => {}
            "bind" => self.bind = Some(Extent::Mount),
            "rbind" => self.bind = Some(Extent::Tree),
            "tmpcopyup" => self.copy_up = true,
            _ if self.take_propagation(option) => {}
            _ => {
                if let Some((attribute, word)) = attribute(option) {
                    self.mount.apply(attribute, word);
                } else if let Some((attribute, word)) = option.strip_prefix('r').and_then(attribute)
                {
                    self.tree.apply(attribute, word);
                } else {
                    let (key, value) = match option.split_once('=') {
                        Some((key, value)) => (key, Some(value.to_owned())),
                        None => (option, None),
                    };
                    self.data.push((key.to_owned(), value));
                }
            }
        }
    }

    fn take_propagation(&mut self, option: &str) -> bool {
        let kind = |name: &str| match name {
            "private" => Some(Propagation::PRIVATE),
            "shared" => Some(Propagation::SHARED),
            "slave" => Some(Propagation::DOWNSTREAM),
            "unbindable" => Some(Propagation::UNBINDABLE),
            _ => None,
        };
        let found = match kind(option) {
            Some(kind) => Some((kind, Extent::Mount)),
            None => option.strip_prefix('r').and_then(kind).map(|kind| (kind, Extent::Tree)),
        };
        self.propagation.extend(found);
        found.is_some()
    }
}

fn attribute(option: &str) -> Option<(Attribute, Word)> {
    let (attribute, word) = match option {
        "ro" => (Attribute::MOUNT_ATTR_RDONLY, Word::Set),
        "rw" => (Attribute::MOUNT_ATTR_RDONLY, Word::Clear),
        "nosuid" => (Attribute::MOUNT_ATTR_NOSUID, Word::Set),
        "suid" => (Attribute::MOUNT_ATTR_NOSUID, Word::Clear),
        "nodev" => (Attribute::MOUNT_ATTR_NODEV, Word::Set),
        "dev" => (Attribute::MOUNT_ATTR_NODEV, Word::Clear),
        "noexec" => (Attribute::MOUNT_ATTR_NOEXEC, Word::Set),
        "exec" => (Attribute::MOUNT_ATTR_NOEXEC, Word::Clear),
        "nodiratime" => (Attribute::MOUNT_ATTR_NODIRATIME, Word::Set),
        "diratime" => (Attribute::MOUNT_ATTR_NODIRATIME, Word::Clear),
        "nosymfollow" => (Attribute::MOUNT_ATTR_NOSYMFOLLOW, Word::Set),
        "symfollow" => (Attribute::MOUNT_ATTR_NOSYMFOLLOW, Word::Clear),
        "noatime" => (Attribute::MOUNT_ATTR_NOATIME, Word::Set),
        "atime" => (Attribute::MOUNT_ATTR_NOATIME, Word::Clear),
        "relatime" => (Attribute::MOUNT_ATTR_RELATIME, Word::Set),
        "norelatime" => (Attribute::MOUNT_ATTR_RELATIME, Word::Clear),
        "strictatime" => (Attribute::MOUNT_ATTR_STRICTATIME, Word::Set),
        "nostrictatime" => (Attribute::MOUNT_ATTR_STRICTATIME, Word::Clear),
        _ => return None,
    };
    Some((attribute, word))
}

#[cfg(test)]
mod tests {
    use rustix::mount::MountPropagationFlags as Propagation;

    use super::{Change, Extent, Options};

    const RDONLY: u64 = 1;
    const NOSUID: u64 = 2;
    const NOATIME: u64 = 0x10;
    const ATIME: u64 = 0x70;

    fn parse(options: &str) -> Options {
        Options::parse(&options.split(',').map(String::from).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_not_ours_goes_to_the_file_system() {
        let options = parse("nosuid,mode=1777,size=65536k,newinstance");
        assert_eq!(options.mount, Change { set: NOSUID, clear: 0 });
        let data = [("mode", Some("1777")), ("size", Some("65536k")), ("newinstance", None)];
        let data = data.map(|(key, value)| (key.to_owned(), value.map(str::to_owned)));
        assert_eq!(options.data, data);
    }

    #[test]
    fn the_later_of_two_contrary_words_holds() {
        assert_eq!(parse("ro,rw").mount, Change { set: 0, clear: RDONLY });
        assert_eq!(parse("rw,ro").mount, Change { set: RDONLY, clear: 0 });
    }

    #[test]
    fn a_recursive_word_reaches_the_tree_and_no_word_is_mistaken_for_one() {
        let options = parse("rbind,rro,rprivate,ro");
        assert_eq!(options.bind, Some(Extent::Tree));
        assert_eq!(options.tree, Change { set: RDONLY, clear: 0 });
        assert_eq!(options.mount, Change { set: RDONLY, clear: 0 });
        assert_eq!(options.propagation, [(Propagation::PRIVATE, Extent::Tree)]);
        assert!(options.data.is_empty());
        assert_eq!(parse("relatime").tree, Change::default());
    }

    #[test]
    fn access_times_are_one_field() {
        assert_eq!(parse("noatime").mount, Change { set: NOATIME, clear: ATIME });
        assert_eq!(parse("noatime,relatime").mount, Change { set: 0, clear: ATIME });
        assert_eq!(parse("noatime,atime").mount, Change { set: 0, clear: ATIME });
    }
}
