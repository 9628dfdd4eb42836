//! Names of groups that must not be taken for a container's.
//!
//! cAdvisor, which is in every kubelet, takes a group with 64 small letters and digits in a row in its name for the container of
//! that id, and what it reads there for all that the container uses; kubelets believe it more than the engine. The group of
//! a pod's container has its monitor alone in it, and that of VMM and proxy goes by the name of the pod's: with such names
//! kubelets would count nothing for the one, and the VM for what stands for the pod. What cAdvisor knows no container of is
//! asked of the engine, who has it from the guest.

use super::{CgroupError, Group};
use crate::random;

/// What the name of the group of VMM and proxy ends with.
const VM_SUFFIX: &str = ".kata-vm";

/// Longest name of a group that another one's is made from.
const LONGEST_NAME: usize = 255 - VM_SUFFIX.len();

/// So many in a row are an id.
const ID: usize = 64;

/// So many are none, and enough for a person.
const PART: usize = 32;

impl Group {
    /// Where the group of a container goes that joins a pod: beside where its spec wants it, by a name that has no id in it.
    ///
    /// # Errors
    /// As [`Group::plan`].
    pub fn plan_member(cgroups_path: Option<&str>, id: &str) -> Result<Self, CgroupError> {
        Self::plan(cgroups_path, id)?.renamed("")
    }

    /// The group of VMM and proxy that goes with a container's, beside it.
    ///
    /// # Errors
    /// [`CgroupError::Name`].
    pub fn beside(&self) -> Result<Self, CgroupError> {
        self.renamed(VM_SUFFIX)
    }

    fn renamed(&self, suffix: &str) -> Result<Self, CgroupError> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let name = without_ids(&name);
        let name = if name.len() <= LONGEST_NAME {
            name
        } else {
            let unique = random::bytes::<4>().map_err(CgroupError::Name)?;
            format!("{name:.200}-{:08x}", u32::from_ne_bytes(unique))
        };
        let path = self.path.with_file_name(name + suffix);
        Ok(Self { hierarchies: self.hierarchies.clone(), path })
    }
}

/// The same name without an id in it, of which nothing is lost: names of two ids stay two.
fn without_ids(name: &str) -> String {
    let is_of_id = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut whole = String::with_capacity(name.len() + 1);
    for piece in name.split_inclusive(|c| !is_of_id(c)) {
        let run = piece.trim_end_matches(|c| !is_of_id(c));
        for (at, c) in piece.char_indices() {
            if run.len() >= ID && at > 0 && at < run.len() && at % PART == 0 {
                whole.push('-');
            }
            whole.push(c);
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::without_ids;

    const ID: &str = "0123456789abcdef0123456789abcdeffedcba9876543210fedcba9876543210";
    const PARTED: &str = "0123456789abcdef0123456789abcdef-fedcba9876543210fedcba9876543210";

    #[test]
    fn an_id_is_parted_wherever_it_stands() {
        assert_eq!(without_ids(ID), PARTED);
        let scope = format!("cri-containerd-{ID}.scope");
        assert_eq!(without_ids(&scope), format!("cri-containerd-{PARTED}.scope"));
        assert_eq!(without_ids(&format!("{ID}z")), format!("{PARTED}-z"));
    }

    #[test]
    fn what_is_no_id_stays() {
        for name in ["", "web", "pod.1_x", &ID[1..], &ID.to_uppercase(), "é", &"-".repeat(80)] {
            assert_eq!(without_ids(name), name);
        }
    }
}
