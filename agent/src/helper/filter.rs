//! The filters of every container process: the one of its spec, and a small one of ours.
//!
//! Ours says two things. `socket(AF_VSOCK)` does not exist: vsock is not namespaced, and the host end of it is the
//! agent's. And where the spec's filter answers unknown calls with an error, calls that are newer than every call it
//! names get ENOSYS: a C library that probes for them must not be told that they are forbidden. (For what a 32-bit
//! `socketcall` or io_uring can still do, the host's tokens are the guard.)

use kata_sys::syscall_filter::{self, Instruction};
use libseccomp::{ScmpArch, ScmpFilterContext, ScmpSyscall};

use super::seccomp;
use crate::{
    order::{Failure, Step},
    spec::Seccomp,
};

const LOAD: u16 = 0x20;
const EQUAL: u16 = 0x15;
const ABOVE: u16 = 0x25;
const AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const ENOSYS: u32 = 38;
const EAFNOSUPPORT: u32 = 97;
const AF_VSOCK: u32 = 40;
/// x32 calls are marked by a bit in their number.
const X32: u32 = 0x4000_0000;
const X32_SOCKET: u32 = X32 | 41;

/// One architecture that a process may call under.
struct Abi {
    audit: u32,
    architecture: ScmpArch,
    socket: u32,
}

#[cfg(target_arch = "x86_64")]
const ABIS: [Abi; 2] = [
    Abi { audit: 0xc000_003e, architecture: ScmpArch::X8664, socket: 41 },
    Abi { audit: 0x4000_0003, architecture: ScmpArch::X86, socket: 359 },
];
#[cfg(target_arch = "aarch64")]
const ABIS: [Abi; 2] = [
    Abi { audit: 0xc000_00b7, architecture: ScmpArch::Aarch64, socket: 198 },
    Abi { audit: 0x4000_0028, architecture: ScmpArch::Arm, socket: 281 },
];

/// Both filters, ready to load.
pub struct Filters {
    of_spec: Option<ScmpFilterContext>,
    ours: Vec<Instruction>,
}

impl Filters {
    /// Builds the filters, which may read and allocate; loading them later does neither.
    pub fn prepare(seccomp: Option<&Seccomp>) -> Result<Self, Failure> {
        Ok(Self {
            of_spec: seccomp.map(seccomp::build).transpose()?,
            ours: assemble(|abi| seccomp.and_then(|seccomp| newest_named(seccomp, abi))),
        })
    }

    /// From here on both hold.
    pub fn load(&self) -> Result<(), Failure> {
        syscall_filter::load(&self.ours).step(|| "load the vsock filter")?;
        let Some(filter) = &self.of_spec else { return Ok(()) };
        filter.load().step(|| "load the seccomp filter")?;
        // Of two errors that of the filter loaded last is returned: for ENOSYS to win, ours comes again. The spec's
        // may forbid that by now, and then its answer to unknown calls is what it wanted.
        syscall_filter::load(&self.ours).ok();
        Ok(())
    }
}

/// The highest number of a call that the filter names, where it answers the rest with an error.
fn newest_named(seccomp: &Seccomp, abi: &Abi) -> Option<u32> {
    let answers_error =
        seccomp.default_action == "SCMP_ACT_ERRNO" && seccomp.default_errno_ret != Some(ENOSYS);
    let names = seccomp.syscalls.iter().flat_map(|rule| &rule.names);
    names
        .filter_map(|name| ScmpSyscall::from_name_by_arch(name, abi.architecture).ok())
        .filter_map(|call| u32::try_from(call.as_raw_syscall()).ok())
        .max()
        .filter(|_| answers_error)
}

fn assemble(newest: impl Fn(&Abi) -> Option<u32>) -> Vec<Instruction> {
    let load = |offset| Instruction { code: LOAD, if_true: 0, if_false: 0, operand: offset };
    let answer = |value| Instruction { code: RETURN, if_true: 0, if_false: 0, operand: value };
    let jump =
        |code, operand, (if_true, if_false)| Instruction { code, if_true, if_false, operand };
    let mut program = vec![load(ARCHITECTURE)];
    for abi in &ABIS {
        let mut block = vec![load(NUMBER), jump(EQUAL, abi.socket, (2, 0))];
        block.push(jump(EQUAL, X32_SOCKET, (1, 0)));
        // Behind the check of the family: three instructions on.
        block.push(jump(AT_LEAST, 0, (4, 0)));
        block.extend([load(FIRST_ARGUMENT), jump(EQUAL, AF_VSOCK, (0, 1))]);
        block.extend([answer(ERRNO | EAFNOSUPPORT), answer(ALLOW)]);
        if let Some(newest) = newest(abi) {
            block.push(jump(AT_LEAST, X32, (2, 0)));
            block.push(jump(ABOVE, newest, (0, 1)));
            block.push(answer(ERRNO | ENOSYS));
        }
        block.push(answer(ALLOW));
        // Never above a dozen.
        let length = u8::try_from(block.len()).unwrap_or(u8::MAX);
        program.push(jump(EQUAL, abi.audit, (0, length)));
        program.extend(block);
    }
    program.push(answer(ALLOW));
    program
}

#[cfg(test)]
mod tests {
    use super::{ABIS, ALLOW, EAFNOSUPPORT, ENOSYS, ERRNO, assemble, newest_named};
    use crate::spec::Seccomp;

    /// Runs the program as the kernel would.
    fn answer(newest: Option<u32>, audit: u32, number: u32, argument: u32) -> u32 {
        let program = assemble(|_| newest);
        let (mut at, mut loaded) = (0, 0);
        loop {
            let it = program[at];
            at += 1;
            let holds = match it.code {
                0x20 => {
                    loaded = match it.operand {
                        0 => number,
                        4 => audit,
                        16 => argument,
                        other => panic!("load of {other}"),
                    };
                    continue;
                }
                0x15 => loaded == it.operand,
                0x25 => loaded > it.operand,
                0x35 => loaded >= it.operand,
                0x06 => return it.operand,
                other => panic!("unknown instruction {other:#x}"),
            };
            at += usize::from(if holds { it.if_true } else { it.if_false });
        }
    }

    #[test]
    fn vsock_does_not_exist_under_any_abi_and_other_families_do() {
        for abi in &ABIS {
            for newest in [None, Some(450)] {
                assert_eq!(answer(newest, abi.audit, abi.socket, 40), ERRNO | EAFNOSUPPORT);
                assert_eq!(answer(newest, abi.audit, abi.socket, 2), ALLOW);
                assert_eq!(answer(newest, abi.audit, 0, 40), ALLOW);
            }
        }
        assert_eq!(answer(None, ABIS[0].audit, 0x4000_0000 | 41, 40), ERRNO | EAFNOSUPPORT);
    }

    #[test]
    fn calls_newer_than_all_named_ones_do_not_exist() {
        let audit = ABIS[0].audit;
        assert_eq!(answer(Some(435), audit, 436, 0), ERRNO | ENOSYS);
        assert_eq!(answer(Some(435), audit, 435, 0), ALLOW);
        assert_eq!(answer(Some(435), audit, 0x4000_0000 | 500, 0), ALLOW);
        assert_eq!(answer(None, audit, 9999, 0), ALLOW);
        assert_eq!(answer(Some(435), 0xdead, 436, 0), ALLOW);
    }

    #[test]
    fn only_a_filter_that_answers_errors_has_a_newest_call() {
        let seccomp = |default: &str| -> Seccomp {
            let rules = r#"[{"names": ["read", "openat2"], "action": "SCMP_ACT_ALLOW"}]"#;
            let document = format!(r#"{{"defaultAction": "{default}", "syscalls": {rules}}}"#);
            serde_json::from_str(&document).unwrap()
        };
        assert_eq!(newest_named(&seccomp("SCMP_ACT_ERRNO"), &ABIS[0]), Some(437));
        assert_eq!(newest_named(&seccomp("SCMP_ACT_ALLOW"), &ABIS[0]), None);
    }
}
