//! What the group that a sandbox's own are made in may take of the host's memory.

use std::{fs, path::PathBuf};

use super::Group;

/// A limit that somebody else has set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryCeiling {
    /// Where it is.
    pub file: PathBuf,
    /// How much.
    pub bytes: u64,
}

impl Group {
    /// The limit on memory of the group that this one is in, or is going to be in; none when there is none. Those further up are
    /// shared with other sandboxes, and what is left there changes with them.
    pub fn memory_ceiling(&self) -> Option<MemoryCeiling> {
        let memory = self.hierarchies.legacy.iter().find(|(controller, _)| *controller == "memory");
        let (root, name) = match (memory, &self.hierarchies.unified) {
            (Some((_, root)), _) => (root, "memory.limit_in_bytes"),
            (None, Some(root)) => (root, "memory.max"),
            (None, None) => return None,
        };
        let file = root.join(self.path.parent()?).join(name);
        let limit = fs::read_to_string(&file).ok()?;
        // `max` is no number, and version 1 has one that is as good as none.
        let bytes = limit.trim().parse().ok()?;
        Some(MemoryCeiling { file, bytes })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::super::{Group, hierarchies::Hierarchies};

    #[test]
    fn the_limit_is_that_of_the_group_above() {
        for (is_v2, name) in [(false, "memory.limit_in_bytes"), (true, "memory.max")] {
            let root = tempfile::tempdir().unwrap();
            let found = root.path().to_path_buf();
            let hierarchies = if is_v2 {
                Hierarchies { legacy: Vec::new(), unified: Some(found) }
            } else {
                Hierarchies { legacy: vec![("memory", found)], unified: None }
            };
            let group = Group { hierarchies, path: PathBuf::from("pods/pod/a") };
            let bytes = || group.memory_ceiling().map(|ceiling| ceiling.bytes);
            let pod = root.path().join("pods/pod");
            fs::create_dir_all(&pod).unwrap();
            fs::write(root.path().join("pods").join(name), "5\n").unwrap();
            assert_eq!(bytes(), None, "{name}");
            fs::write(pod.join(name), "max\n").unwrap();
            assert_eq!(bytes(), None, "{name}");
            fs::write(pod.join(name), "67108864\n").unwrap();
            assert_eq!(bytes(), Some(64 << 20), "{name}");
        }
    }
}
