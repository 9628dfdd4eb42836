//! Who a process is and what it may do: ids, groups, capabilities.
//!
//! ```text
//! enter:   bounding set ─► keep capabilities ─► groups, gid, uid ─► wanted sets (+ SYS_ADMIN until the filters are in)
//! settle:  wanted sets, right before execve; with no_new_privs before the filters, which need none then
//! ```

use rustix::{
    fs::{FileType, Gid, Mode, Uid, fchown, fstat},
    process::umask,
    stdio::{stderr, stdin, stdout},
    thread::{
        CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
        configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
        set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    },
};

use crate::{
    order::{Failure, Step},
    spec::{Capabilities, Process, Shared, User},
};

/// In the order of their numbers.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The five sets of a process, parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    bounding: CapabilitySet,
    ambient: CapabilitySet,
    sets: CapabilitySets,
}

impl Wanted {
    /// Those of the spec; without any, none.
    pub fn parse(capabilities: Option<&Capabilities>) -> Result<Self, Failure> {
        let nothing = Capabilities::default();
        let names = capabilities.unwrap_or(&nothing);
        Ok(Self {
            bounding: parse_set(&names.bounding)?,
            ambient: parse_set(&names.ambient)?,
            sets: CapabilitySets {
                effective: parse_set(&names.effective)?,
                permitted: parse_set(&names.permitted)?,
                inheritable: parse_set(&names.inheritable)?,
            },
        })
    }

    /// Drops everything but the wanted sets and SYS_ADMIN, which loading a filter needs.
    pub fn enter(&self, user: &User) -> Result<(), Failure> {
        for number in 0..NAMES.len() {
            let one = single(number);
            if !self.bounding.contains(one)
                && capability_is_in_bounding_set(one).step(|| "read the bounding set")?
            {
                remove_capability_from_bounding_set(one).step(|| "drop from the bounding set")?;
            }
        }
        set_keep_capabilities(true).step(|| "keep capabilities")?;
        become_user(user)?;
        set_keep_capabilities(false).step(|| "keep no capabilities")?;
        let mut sets = self.sets;
        sets.effective |= CapabilitySet::SYS_ADMIN;
        sets.permitted |= CapabilitySet::SYS_ADMIN;
        set_capabilities(None, sets).step(|| "set capabilities")?;
        clear_ambient_capability_set().step(|| "clear ambient capabilities")?;
        // Others can't be raised. runc passes over them, too, and its own example has some.
        let ambient = self.ambient & self.sets.permitted & self.sets.inheritable;
        for number in (0..NAMES.len()).filter(|number| ambient.contains(single(*number))) {
            configure_capability_in_ambient_set(single(number), true)
                .step(|| format!("raise ambient CAP_{}", NAMES[number]))?;
        }
        Ok(())
    }

    /// Leaves exactly the wanted sets.
    pub fn settle(&self) -> Result<(), Failure> {
        set_capabilities(None, self.sets).step(|| "set capabilities")
    }
}

fn single(number: usize) -> CapabilitySet {
    CapabilitySet::from_bits_retain(1 << number)
}

fn parse_set(names: &[String]) -> Result<CapabilitySet, Failure> {
    names.iter().try_fold(CapabilitySet::empty(), |set, name| {
        let known =
            name.strip_prefix("CAP_").and_then(|bare| NAMES.iter().position(|it| *it == bare));
        let number =
            known.ok_or_else(|| Failure::invalid(format!("unknown capability {name:?}")))?;
        Ok(set | single(number))
    })
}

fn become_user(user: &User) -> Result<(), Failure> {
    let groups: Vec<Gid> = user.additional_gids.iter().map(|gid| Gid::from_raw(*gid)).collect();
    // In a user namespace that forbids it, an empty list is all there can be anyway.
    match set_thread_groups(&groups) {
        Err(rustix::io::Errno::PERM) if groups.is_empty() => {}
        result => result.step(|| "set supplementary groups")?,
    }
    let gid = Gid::from_raw(user.gid);
    set_thread_res_gid(gid, gid, gid).step(|| format!("become group {}", user.gid))?;
    let uid = Uid::from_raw(user.uid);
    set_thread_res_uid(uid, uid, uid).step(|| format!("become user {}", user.uid))?;
    umask(Mode::from_raw_mode(user.umask.unwrap_or(0o022) & 0o777));
    Ok(())
}

/// Gives the standard streams to the user, so that `/dev/stdout` can be opened by name.
///
/// The pipes belong to the agent's user namespace, so that is where they must be given away.
pub fn own_streams(process: &Process, shared: &Shared) -> Result<(), Failure> {
    let user = Some(Uid::from_raw(shared.outer_uid(process.user.uid)));
    for stream in [stdin(), stdout(), stderr()] {
        let stat = fstat(stream).step(|| "look at a stream")?;
        // Devices are shared with others: /dev/null stays root's.
        if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
            fchown(stream, user, None).step(|| "give a stream to the user")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::thread::CapabilitySet;

    use super::{Wanted, parse_set};

    #[test]
    fn names_are_the_numbers_of_the_kernel() {
        let set = parse_set(&[
            "CAP_CHOWN".into(),
            "CAP_SYS_ADMIN".into(),
            "CAP_CHECKPOINT_RESTORE".into(),
        ]);
        let expected =
            CapabilitySet::CHOWN | CapabilitySet::SYS_ADMIN | CapabilitySet::CHECKPOINT_RESTORE;
        assert_eq!(set.unwrap(), expected);
    }

    #[test]
    fn an_unknown_name_is_refused_by_name() {
        let error = parse_set(&["CAP_EVERYTHING".into()]).unwrap_err();
        assert_eq!(error.message, "unknown capability \"CAP_EVERYTHING\"");
        assert!(parse_set(&["CHOWN".into()]).is_err());
    }

    #[test]
    fn no_capabilities_object_means_no_capability() {
        assert_eq!(Wanted::parse(None).unwrap().bounding, CapabilitySet::empty());
    }
}
