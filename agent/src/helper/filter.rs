//! The filters of every container process: the one of its spec, and a small one of ours.
//!
//! Ours says two things. `socket(AF_VSOCK)` does not exist: vsock is not namespaced, and the host end of it is the
//! agent's. And where the spec's filter answers unknown calls with an error, calls that are newer than every call it
//! names get ENOSYS: a C library that probes for them must not be told that they are forbidden. (For what a 32-bit
//! `socketcall` or io_uring can still do, the host's tokens are the guard.)

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kata_sys::syscall_filter::{Filter, Flags, INSTRUCTION_SIZE, Instruction};
use libseccomp::{ScmpArch, ScmpFilterContext, ScmpSyscall};
use rustix::fs::{MemfdFlags, memfd_create};

use super::seccomp;
use crate::{
    order::{self, Failure, Step},
    spec::{Seccomp, SyscallRule},
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
    /// Ours is loaded again behind it.
    again: bool,
}

impl Filters {
    /// Compiles the filters.
    pub fn compile(seccomp: Option<&Seccomp>) -> Result<Self, Failure> {
        let of_spec = |seccomp| {
            let (flags, program) = (seccomp::flags(seccomp)?, compile(seccomp, LONGEST)?);
            Ok(OfSpec { flags, program, again: bears_another(seccomp) })
        };
        Ok(Self {
            ours: assemble(|abi| seccomp.and_then(|seccomp| newest_named(seccomp, abi))),
            of_spec: seccomp.map(of_spec).transpose()?,
        })
    }

    /// From here on both hold.
    pub fn load(&self) -> Result<(), Failure> {
        self.in_order().iter().try_for_each(Filter::load).step(|| "load the seccomp filters")
    }

    /// Both, as they are to be loaded.
    pub fn in_order(&self) -> Vec<Filter<'_>> {
        let ours = Filter { program: &self.ours, flags: Flags::default(), may_be_forbidden: false };
        let Some(OfSpec { flags, program, again }) = &self.of_spec else { return vec![ours] };
        let of_spec = Filter { program, flags: *flags, may_be_forbidden: false };
        // Of two errors that of the filter loaded last is returned: for ENOSYS to win, ours comes again. The spec's
        // may forbid that by now, and then its answer to unknown calls is what it wanted.
        let last = again.then_some(Filter { may_be_forbidden: true, ..ours });
        [ours, of_spec].into_iter().chain(last).collect()
    }

    /// For the container's other processes: the length of ours, the other one's flags if there is one, both programs.
    pub fn document(&self) -> Result<OwnedFd, Failure> {
        let length = u32::try_from(self.ours.len()).step(|| "count instructions")?;
        let flags = self.of_spec.as_ref().map_or(NO_FILTER, OfSpec::word);
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
        let of_spec = (flags != NO_FILTER).then(|| OfSpec {
            flags: Flags::from_bits(flags),
            program: program(of_spec),
            again: flags & AGAIN != 0,
        });
        Ok(Self { ours: program(ours), of_spec })
    }
}

impl OfSpec {
    /// All but the program, for a document.
    fn word(&self) -> u32 {
        self.flags.bits() | if self.again { AGAIN } else { 0 }
    }
}

/// In the place of flags.
const NO_FILTER: u32 = u32::MAX;

/// Beside the flags, which are few.
const AGAIN: u32 = 1 << 16;

/// Whether a filter can be loaded behind this one, or is at worst forbidden: not where that ends the process. One that
/// has no error for unknown calls needs none.
fn bears_another(seccomp: &Seccomp) -> bool {
    let bears = |rule: &SyscallRule| {
        ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_ERRNO"].contains(&&*rule.action)
    };
    let mut about_loading =
        seccomp.syscalls.iter().filter(|rule| rule.names.iter().any(|name| name == "seccomp"));
    answers_error(seccomp) && about_loading.all(bears)
}

/// Unknown calls get an error, and not the one that says that there are none.
fn answers_error(seccomp: &Seccomp) -> bool {
    seccomp.default_action == "SCMP_ACT_ERRNO" && seccomp.default_errno_ret != Some(ENOSYS)
}

/// Looks a call up: the kernel tries a new filter with each number of a call, for each process that loads it.
const TREE: u32 = 2;

/// Compares a call with each that is named: slower, and somewhat shorter.
const LIST: u32 = 1;

/// BPF_MAXINSNS.
const LONGEST: usize = 4096;

/// The filter of the spec in the quickest form that is not too long.
fn compile(seccomp: &Seccomp, longest: usize) -> Result<Vec<Instruction>, Failure> {
    let mut filter = seccomp::build(seccomp)?;
    let tree = export(&mut filter, TREE)?;
    if tree.len() <= longest {
        return Ok(tree);
    }
    let list = export(&mut filter, LIST)?;
    if list.len() <= longest {
        return Ok(list);
    }
    let length = list.len();
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

/// The highest number of a call that the filter names, where it answers the rest with an error.
fn newest_named(seccomp: &Seccomp, abi: &Abi) -> Option<u32> {
    let names = seccomp.syscalls.iter().flat_map(|rule| &rule.names);
    names
        .filter_map(|name| ScmpSyscall::from_name_by_arch(name, abi.architecture).ok())
        .filter_map(|call| u32::try_from(call.as_raw_syscall()).ok())
        .max()
        .filter(|_| answers_error(seccomp))
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
    use std::{collections::BTreeSet, os::fd::AsFd};

    use kata_sys::syscall_filter::Instruction;
    use libseccomp::ScmpSyscall;
    use serde_json::json;

    use super::{
        ABIS, ALLOW, EAFNOSUPPORT, ENOSYS, ERRNO, Filters, LIST, LONGEST, TREE, X32, assemble,
        compile, export, newest_named, seccomp,
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

    fn answer(newest: Option<u32>, audit: u32, number: u32, argument: u32) -> u32 {
        run(&assemble(|_| newest), audit, number, argument)
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

    #[test]
    fn nothing_is_loaded_behind_a_filter_that_would_kill_for_it() {
        let count = |default: &str, action: &str| {
            let rules = json!([{"names": ["read"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["getpid", "seccomp"], "action": action}]);
            let seccomp = json!({"defaultAction": default, "syscalls": rules});
            let filters =
                Filters::compile(Some(&serde_json::from_value(seccomp).unwrap())).unwrap();
            let read = Filters::read(filters.document().unwrap().as_fd()).unwrap();
            assert_eq!(read.in_order().len(), filters.in_order().len());
            filters.in_order().len()
        };
        assert_eq!(count("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW"), 3);
        assert_eq!(count("SCMP_ACT_ERRNO", "SCMP_ACT_ERRNO"), 3);
        assert_eq!(count("SCMP_ACT_ERRNO", "SCMP_ACT_KILL"), 2);
        assert_eq!(count("SCMP_ACT_KILL", "SCMP_ACT_ALLOW"), 2);
        assert_eq!(count("SCMP_ACT_TRAP", "SCMP_ACT_ERRNO"), 2);
        assert_eq!(count("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"), 2);
        assert_eq!(Filters::compile(None).unwrap().in_order().len(), 1);
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
