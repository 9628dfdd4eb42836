//! Device rules as an eBPF program.
//!
//! The specification's rules apply in order, so for each of the three accesses (read, write, mknod) the last rule that
//! matches decides. The program walks them backwards with the accesses that are still undecided in a register: a
//! matching rule that allows takes its accesses out, one that denies ends with a refusal if any of its own is left.
//! What no rule allows is denied.

use std::io;

use kata_sys::bpf::Instruction;

use crate::spec::DeviceRule;

/// `BPF_DEVCG_DEV_*` and `BPF_DEVCG_ACC_*` of `linux/bpf.h`.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

/// Registers: the context comes in the first; the rest is ours.
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const UNDECIDED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

const LOAD_WORD: u8 = 0x61;
const MOVE_REGISTER: u8 = 0xbf;
const MOVE: u8 = 0xb7;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_IF_NOT_EQUAL: u8 = 0x55;
/// On 32 bits: the other one extends the sign of its immediate, which device numbers have none of.
const JUMP_IF_NOT_EQUAL_WORD: u8 = 0x56;
const EXIT: u8 = 0x95;

/// More rules than any engine writes; the kernel takes a million instructions.
const MAX_RULES: usize = 4096;

fn with_immediate(code: u8, register: u8, immediate: i32) -> Instruction {
    Instruction { code, registers: register, offset: 0, immediate }
}

fn jump(code: u8, register: u8, immediate: i32, offset: usize) -> Instruction {
    // Never above the length of one rule.
    Instruction { code, registers: register, offset: offset as i16, immediate }
}

fn answer(value: i32) -> [Instruction; 2] {
    [with_immediate(MOVE, 0, value), with_immediate(EXIT, 0, 0)]
}

/// The program for these rules, followed by those devices that every container has.
pub(super) fn assemble(rules: &[DeviceRule]) -> io::Result<Vec<Instruction>> {
    if rules.len() > MAX_RULES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many device rules"));
    }
    let load = |register, offset| Instruction {
        code: LOAD_WORD,
        registers: CONTEXT << 4 | register,
        offset,
        immediate: 0,
    };
    let mut program = vec![
        load(KIND, 0),
        Instruction {
            code: MOVE_REGISTER,
            registers: KIND << 4 | UNDECIDED,
            offset: 0,
            immediate: 0,
        },
        with_immediate(AND, KIND, 0xffff),
        with_immediate(SHIFT_RIGHT, UNDECIDED, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in rules.iter().chain(&always_allowed()).rev() {
        program.extend(assemble_rule(rule)?);
    }
    program.extend(answer(0));
    Ok(program)
}

/// What runc adds to every container's rules: any node may be made, and these may be opened.
fn always_allowed() -> Vec<DeviceRule> {
    let rule = |kind: &str, (major, minor), access: &str| DeviceRule {
        allow: true,
        kind: Some(kind.into()),
        major,
        minor,
        access: Some(access.into()),
        disk: None,
    };
    let mut rules = vec![rule("c", (None, None), "m"), rule("b", (None, None), "m")];
    // null, zero, full, random, urandom; tty, ptmx; net/tun, which runc 1.2 was without until 1.2.4; the slaves of pseudo
    // terminals.
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (10, 200)] {
        rules.push(rule("c", (Some(major), Some(minor)), "rwm"));
    }
    rules.push(rule("c", (Some(136), None), "rwm"));
    rules
}

/// Instructions that settle one rule's accesses, or fall through to what follows.
fn assemble_rule(rule: &DeviceRule) -> io::Result<Vec<Instruction>> {
    let access = access_bits(rule.access.as_deref().unwrap_or("rwm"))?;
    let mut tests = Vec::new();
    match rule.kind.as_deref() {
        None | Some("a" | "") => {}
        Some("b") => tests.push((KIND, BLOCK)),
        Some("c" | "u") => tests.push((KIND, CHARACTER)),
        Some(_) => return Err(io::Error::new(io::ErrorKind::InvalidInput, "unknown device type")),
    }
    for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(number) = number.filter(|number| *number != -1) {
            let number = u32::try_from(number).map_err(io::Error::other)?;
            tests.push((register, number.cast_signed()));
        }
    }
    let verdict = if rule.allow {
        let [allow, exit] = answer(1);
        vec![
            with_immediate(AND, UNDECIDED, !access & 7),
            jump(JUMP_IF_NOT_EQUAL, UNDECIDED, 0, 2),
            allow,
            exit,
        ]
    } else {
        let [deny, exit] = answer(0);
        vec![
            Instruction {
                code: MOVE_REGISTER,
                registers: UNDECIDED << 4 | SCRATCH,
                offset: 0,
                immediate: 0,
            },
            with_immediate(AND, SCRATCH, access),
            jump(JUMP_IF_EQUAL, SCRATCH, 0, 2),
            deny,
            exit,
        ]
    };
    let mut instructions = Vec::new();
    for (index, (register, value)) in tests.iter().enumerate() {
        let rest = tests.len() - index - 1 + verdict.len();
        instructions.push(jump(JUMP_IF_NOT_EQUAL_WORD, *register, *value, rest));
    }
    instructions.extend(verdict);
    Ok(instructions)
}

fn access_bits(access: &str) -> io::Result<i32> {
    access.chars().try_fold(0, |bits, access| match access {
        'r' => Ok(bits | READ),
        'w' => Ok(bits | WRITE),
        'm' => Ok(bits | MKNOD),
        'a' => Ok(READ | WRITE | MKNOD),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "unknown device access")),
    })
}

#[cfg(test)]
mod tests;
