//! The filters of every container process: the one of its spec, and a small one of ours.
//!
//! Ours says that `socket(AF_VSOCK)` does not exist: vsock is not namespaced, and the host end of it is the agent's. (For what a
//! 32-bit `socketcall` or io_uring can still do, the host's tokens are the guard.)
//!
//! The spec's begins with a few instructions that it does not have from the profile, as runc's does: where it forbids unknown calls,
//! those that are newer than every call it names get ENOSYS. A C library that probes for them must not be told that they are forbidden,
//! or die of it.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    str::FromStr,
};

use kata_sys::syscall_filter::{Filter, Flags, INSTRUCTION_SIZE, Instruction};
use libseccomp::{ScmpArch, ScmpFilterContext, ScmpSyscall};
use rustix::fs::{MemfdFlags, memfd_create};

use super::seccomp;
use crate::{
    order::{self, Failure, Step},
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

/// Both filters, ready to load: compiled once, when a container is made, and loaded by each process of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Filters {
    ours: Vec<Instruction>,
    of_spec: Option<OfSpec>,
}

/// The filter of the spec.
#[derive(Debug, PartialEq, Eq)]
struct OfSpec {
    flags: Flags,
    program: Vec<Instruction>,
}

impl Filters {
    /// Compiles the filters.
    pub fn compile(seccomp: Option<&Seccomp>) -> Result<Self, Failure> {
        let of_spec = |seccomp| {
            Ok(OfSpec { flags: seccomp::flags(seccomp)?, program: compile(seccomp, LONGEST)? })
        };
        Ok(Self { ours: without_vsock(), of_spec: seccomp.map(of_spec).transpose()? })
    }

    /// From here on both hold.
    pub fn load(&self) -> Result<(), Failure> {
        self.in_order().iter().try_for_each(Filter::load).step(|| "load the seccomp filters")
    }

    /// Both, as they are to be loaded.
    pub fn in_order(&self) -> Vec<Filter<'_>> {
        let ours = Filter { program: &self.ours, flags: Flags::default() };
        let of_spec =
            self.of_spec.iter().map(|it| Filter { program: &it.program, flags: it.flags });
        std::iter::once(ours).chain(of_spec).collect()
    }

    /// For the container's other processes: the length of ours, the other one's flags if there is one, both programs.
    pub fn document(&self) -> Result<OwnedFd, Failure> {
        let length = u32::try_from(self.ours.len()).step(|| "count instructions")?;
        let flags = self.of_spec.as_ref().map_or(NO_FILTER, |it| it.flags.bits());
        let of_spec = self.of_spec.iter().flat_map(|it| &it.program);
        let mut bytes = [length.to_ne_bytes(), flags.to_ne_bytes()].concat();
        bytes.extend(self.ours.iter().chain(of_spec).flat_map(|it| it.to_bytes()));
        order::document(&bytes).step(|| "keep the filters")
    }

    /// What [`Filters::document`] has written.
    pub fn read(document: BorrowedFd<'_>) -> Result<Self, Failure> {
        let bytes = order::read_document(document).step(|| "read the filters")?;
        let (words, _) = bytes.as_chunks::<INSTRUCTION_SIZE>();
        let broken = || Failure::invalid("the filters are cut off");
        let (head, programs) = words.split_first().ok_or_else(broken)?;
        let [l0, l1, l2, l3, f0, f1, f2, f3] = *head;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).map_err(|_| broken())?;
        let flags = u32::from_ne_bytes([f0, f1, f2, f3]);
        let (ours, of_spec) = programs.split_at_checked(length).ok_or_else(broken)?;
        let program = |words: &[[u8; INSTRUCTION_SIZE]]| {
            words.iter().copied().map(Instruction::from_bytes).collect()
        };
        let of_spec = (flags != NO_FILTER)
            .then(|| OfSpec { flags: Flags::from_bits(flags), program: program(of_spec) });
        Ok(Self { ours: program(ours), of_spec })
    }
}

/// In the place of flags.
const NO_FILTER: u32 = u32::MAX;

/// Looks a call up: the kernel tries a new filter with each number of a call, for each process that loads it.
const TREE: u32 = 2;

/// Compares a call with each that is named: slower, and somewhat shorter.
const LIST: u32 = 1;

/// BPF_MAXINSNS.
const LONGEST: usize = 4096;

/// The filter of the spec in the quickest form that is not too long.
fn compile(seccomp: &Seccomp, longest: usize) -> Result<Vec<Instruction>, Failure> {
    let mut filter = seccomp::build(seccomp)?;
    let mut program = without_newer(seccomp);
    let head = program.len();
    for form in [TREE, LIST] {
        program.truncate(head);
        program.extend(export(&mut filter, form)?);
        if program.len() <= longest {
            return Ok(program);
        }
    }
    let length = program.len();
    Err(Failure::invalid(format!(
        "the seccomp profile needs {length} instructions, the kernel takes {longest}"
    )))
}

/// In a form of SCMP_FLTATR_CTL_OPTIMIZE (seccomp_attr_set(3)).
fn export(filter: &mut ScmpFilterContext, form: u32) -> Result<Vec<Instruction>, Failure> {
    filter.set_ctl_optimize(form).step(|| "sort a seccomp filter")?;
    let file = memfd_create("kata-filter", MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL)
        .step(|| "make a place for a filter")?;
    filter.export_bpf(&file).step(|| "compile the seccomp filter")?;
    let bytes = order::read_document(file.as_fd()).step(|| "read the seccomp filter")?;
    Ok(bytes.as_chunks().0.iter().copied().map(Instruction::from_bytes).collect())
}

/// Answers calls that are newer than all that the profile names, where it forbids unknown ones; whatever else comes goes on to what
/// follows.
fn without_newer(seccomp: &Seccomp) -> Vec<Instruction> {
    let forbids_unknown = match &*seccomp.default_action {
        "SCMP_ACT_ALLOW" | "SCMP_ACT_LOG" | "SCMP_ACT_TRACE" => false,
        "SCMP_ACT_ERRNO" => seccomp.default_errno_ret != Some(ENOSYS),
        _ => true,
    };
    let mut program = Vec::new();
    // The filter's are the guest's own one, and those that the profile has besides.
    let others = |abi: &&Abi| {
        let named = |name: &String| ScmpArch::from_str(name).is_ok_and(|it| it == abi.architecture);
        seccomp.architectures.iter().any(named)
    };
    let filtered = ABIS[..1].iter().chain(ABIS[1..].iter().filter(others));
    for (abi, newest) in filtered.filter_map(|abi| Some((abi, newest_named(seccomp, abi)?))) {
        if forbids_unknown {
            program.extend([load(ARCHITECTURE), jump(EQUAL, abi.audit, (0, 4))]);
            program.extend([load(NUMBER), jump(AT_LEAST, X32, (2, 0))]);
            program.extend([jump(ABOVE, newest, (0, 1)), answer(ERRNO | ENOSYS)]);
        }
    }
    program
}

/// The highest number of a call that the profile names.
fn newest_named(seccomp: &Seccomp, abi: &Abi) -> Option<u32> {
    let names = seccomp.syscalls.iter().flat_map(|rule| &rule.names);
    names
        .filter_map(|name| ScmpSyscall::from_name_by_arch(name, abi.architecture).ok())
        .filter_map(|call| u32::try_from(call.as_raw_syscall()).ok())
        .max()
}

fn without_vsock() -> Vec<Instruction> {
    let mut program = vec![load(ARCHITECTURE)];
    for abi in &ABIS {
        program.extend([jump(EQUAL, abi.audit, (0, 7)), load(NUMBER)]);
        program.extend([jump(EQUAL, abi.socket, (1, 0)), jump(EQUAL, X32_SOCKET, (0, 3))]);
        program.extend([load(FIRST_ARGUMENT), jump(EQUAL, AF_VSOCK, (0, 1))]);
        program.extend([answer(ERRNO | EAFNOSUPPORT), answer(ALLOW)]);
    }
    program.push(answer(ALLOW));
    program
}

fn load(offset: u32) -> Instruction {
    Instruction { code: LOAD, if_true: 0, if_false: 0, operand: offset }
}

fn answer(value: u32) -> Instruction {
    Instruction { code: RETURN, if_true: 0, if_false: 0, operand: value }
}

/// Passes over so many instructions when the comparison holds, and when it does not.
fn jump(code: u16, operand: u32, (if_true, if_false): (u8, u8)) -> Instruction {
    Instruction { code, if_true, if_false, operand }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, os::fd::AsFd};

    use kata_sys::syscall_filter::Instruction;
    use libseccomp::ScmpSyscall;
    use serde_json::json;

    use super::{
        ABIS, ALLOW, EAFNOSUPPORT, ENOSYS, ERRNO, Filters, LIST, LONGEST, TREE, X32, compile,
        export, seccomp, without_newer, without_vsock,
    };
    use crate::spec::Seccomp;

    /// Runs the program as the kernel would, on a call with this first argument.
    fn run(program: &[Instruction], audit: u32, number: u32, argument: u32) -> u32 {
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
                        20..64 => 0,
                        other => panic!("load of {other}"),
                    };
                    continue;
                }
                0x54 => {
                    loaded &= it.operand;
                    continue;
                }
                0x05 => {
                    at += usize::try_from(it.operand).unwrap();
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

    /// A profile of most calls, of which some are allowed with so many values of their argument.
    fn profile(values: u64) -> Seccomp {
        let mut names: Vec<String> = (0..450)
            .filter(|number| number % 7 != 0)
            .filter_map(|number| ScmpSyscall::from_raw_syscall(number).get_name().ok())
            .collect();
        let choosy: Vec<String> = names.drain(100..108).collect();
        let mut rules = vec![json!({"names": names, "action": "SCMP_ACT_ALLOW"})];
        // Calls that compare alike would share their instructions.
        rules.extend((0..).zip(&choosy).flat_map(|(index, name)| {
            (0..values).map(move |value| {
                let value: u64 = value << 32 | index;
                json!({"names": [name], "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]})
            })
        }));
        rules.push(json!({"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 9,
            "args": [{"index": 0, "value": 0x7e02_0010, "valueTwo": 0x10, "op": "SCMP_CMP_MASKED_EQ"}]}));
        let architectures =
            ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"];
        serde_json::from_value(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules,
            "architectures": architectures}))
        .unwrap()
    }

    #[test]
    fn a_tree_answers_what_a_list_does() {
        let mut filter = seccomp::build(&profile(5)).unwrap();
        let [tree, list] = [TREE, LIST].map(|form| export(&mut filter, form).unwrap());
        assert_ne!(tree, list);
        let numbers = || (0..600).chain(X32..X32 + 600).chain([0x7fff_ffff, u32::MAX]);
        let mut answers = BTreeSet::new();
        for audit in ABIS.iter().map(|abi| abi.audit).chain([0xdead]) {
            for (number, argument) in
                numbers().flat_map(|it| [0, 1, 8, 0x10].map(|argument| (it, argument)))
            {
                let [by_tree, by_list] =
                    [&tree, &list].map(|program| run(program, audit, number, argument));
                assert_eq!(by_tree, by_list, "call {number:#x} of {audit:#x} with {argument}");
                answers.insert(by_tree);
            }
        }
        assert!(answers.len() >= 3, "{answers:x?}");
    }

    #[test]
    fn what_is_too_long_as_a_tree_is_a_list() {
        let profile = profile(5);
        let mut filter = seccomp::build(&profile).unwrap();
        let [tree, list] = [TREE, LIST].map(|form| export(&mut filter, form).unwrap());
        let [tree, list] = [tree, list].map(|program| [without_newer(&profile), program].concat());
        assert!(list.len() < tree.len() && tree.len() < LONGEST);
        assert_eq!(compile(&profile, tree.len()).unwrap(), tree);
        assert_eq!(compile(&profile, tree.len() - 1).unwrap(), list);
        assert_eq!(compile(&profile, list.len()).unwrap(), list);
        let failure = compile(&profile, list.len() - 1).unwrap_err().to_string();
        let wanted = format!("the seccomp profile needs {} instructions", list.len());
        assert!(failure.starts_with(&wanted), "{failure}");
    }

    #[test]
    fn vsock_does_not_exist_under_any_abi_and_other_families_do() {
        let answer = |audit, number, argument| run(&without_vsock(), audit, number, argument);
        for abi in &ABIS {
            assert_eq!(answer(abi.audit, abi.socket, 40), ERRNO | EAFNOSUPPORT);
            assert_eq!(answer(abi.audit, abi.socket, 2), ALLOW);
            assert_eq!(answer(abi.audit, 0, 40), ALLOW);
        }
        assert_eq!(answer(ABIS[0].audit, 0x4000_0000 | 41, 40), ERRNO | EAFNOSUPPORT);
        assert_eq!(answer(0xdead, 41, 40), ALLOW);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn calls_newer_than_all_named_ones_do_not_exist_where_unknown_ones_are_forbidden() {
        const KILL_PROCESS: u32 = 0x8000_0000;
        let answers = |default: &str, architectures: &[&str]| {
            let rules = json!([{"names": ["read", "openat2"], "action": "SCMP_ACT_ALLOW"}]);
            let seccomp = json!({"defaultAction": default, "syscalls": rules,
                "architectures": architectures});
            let program = compile(&serde_json::from_value(seccomp).unwrap(), LONGEST).unwrap();
            let [native, other] = [0, 1].map(|index| ABIS[index].audit);
            // openat2 is 437 under both, and 436 is named by nobody.
            [(native, 438), (native, 436), (native, 437), (native, X32 | 600), (other, 438)]
                .map(|(audit, number)| run(&program, audit, number, 0))
        };
        let both = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"];
        for (default, unknown) in [
            ("SCMP_ACT_ERRNO", ERRNO | 1),
            ("SCMP_ACT_KILL_PROCESS", KILL_PROCESS),
            ("SCMP_ACT_TRAP", 0x0003_0000),
        ] {
            let [newer, between, named, x32, other] = answers(default, &both);
            assert_eq!((newer, between, named), (ERRNO | ENOSYS, unknown, ALLOW), "{default}");
            assert_eq!((x32 == ERRNO | ENOSYS, other), (false, ERRNO | ENOSYS), "{default}");
        }
        let [newer, .., other] = answers("SCMP_ACT_ERRNO", &[]);
        assert_eq!(newer, ERRNO | ENOSYS);
        assert_ne!(other, ERRNO | ENOSYS, "programs of that kind are not to run at all");
        assert_eq!(answers("SCMP_ACT_ALLOW", &both)[0], ALLOW);
        assert_eq!(answers("SCMP_ACT_LOG", &both)[0], 0x7ffc_0000);
    }

    #[test]
    fn a_compiled_filter_reads_the_same() {
        let document = r#"{"defaultAction": "SCMP_ACT_ERRNO", "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [{"names": ["read", "openat2"], "action": "SCMP_ACT_ALLOW"}]}"#;
        let seccomp: Seccomp = serde_json::from_str(document).unwrap();
        for seccomp in [Some(&seccomp), None] {
            let filters = Filters::compile(seccomp).unwrap();
            assert_eq!(filters.of_spec.as_ref().map(|it| it.flags.log), seccomp.map(|_| true));
            assert!(filters.of_spec.as_ref().is_none_or(|it| it.program.len() > 4));
            assert_eq!(Filters::read(filters.document().unwrap().as_fd()).unwrap(), filters);
        }
    }
}
