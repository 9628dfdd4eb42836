use kata_sys::bpf::Instruction;

use super::assemble;
use crate::spec::DeviceRule;

/// Runs the few instructions that the assembler uses, as the kernel would.
fn allowed(program: &[Instruction], kind: u64, access: u64, device: (u64, u64)) -> bool {
    let mut registers = [0_u64; 11];
    let mut at = 0_usize;
    loop {
        let instruction = program[at];
        let to = usize::from(instruction.registers & 0xf);
        let from = usize::from(instruction.registers >> 4);
        let immediate = i64::from(instruction.immediate).cast_unsigned();
        let mut jumps = false;
        match instruction.code {
            0x61 => {
                registers[to] = match instruction.offset {
                    0 => access << 16 | kind,
                    4 => device.0,
                    8 => device.1,
                    other => panic!("load beyond the context: {other}"),
                }
            }
            0xbf => registers[to] = registers[from],
            0xb7 => registers[to] = immediate,
            0x57 => registers[to] &= immediate,
            0x77 => registers[to] >>= immediate,
            0x15 => jumps = registers[to] == immediate,
            0x55 => jumps = registers[to] != immediate,
            0x56 => jumps = registers[to] as u32 != immediate as u32,
            0x95 => return registers[0] == 1,
            other => panic!("unknown instruction {other:#x}"),
        }
        let jump = if jumps { usize::try_from(instruction.offset).unwrap() } else { 0 };
        at += 1 + jump;
    }
}

const BLOCK: u64 = 1;
const CHARACTER: u64 = 2;
const MKNOD: u64 = 1;
const READ: u64 = 2;
const WRITE: u64 = 4;

fn program(rules: &str) -> Vec<Instruction> {
    assemble(&serde_json::from_str::<Vec<DeviceRule>>(rules).unwrap()).unwrap()
}

const DENY_ALL: &str = r#"{"allow": false, "access": "rwm"}"#;

#[test]
fn only_the_devices_of_every_container_are_left_when_all_is_denied() {
    let program = program(&format!("[{DENY_ALL}]"));
    assert!(allowed(&program, CHARACTER, READ | WRITE, (1, 3)));
    assert!(allowed(&program, CHARACTER, READ | WRITE, (136, 7)));
    assert!(allowed(&program, CHARACTER, READ | WRITE, (10, 200)));
    assert!(allowed(&program, BLOCK, MKNOD, (8, 0)));
    assert!(!allowed(&program, BLOCK, READ, (8, 0)));
    assert!(!allowed(&program, CHARACTER, READ, (1, 1)));
    assert!(!allowed(&program, CHARACTER, READ | MKNOD, (1, 1)));
}

#[test]
fn without_rules_the_rest_is_denied() {
    assert!(!allowed(&program("[]"), CHARACTER, READ, (10, 229)));
}

#[test]
fn accesses_of_several_rules_add_up() {
    let program = program(&format!(
        r#"[{DENY_ALL}, {{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"}},
            {{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "w"}}]"#
    ));
    assert!(allowed(&program, CHARACTER, READ | WRITE, (10, 229)));
    assert!(allowed(&program, CHARACTER, READ, (10, 229)));
    assert!(!allowed(&program, CHARACTER, READ, (10, 230)));
    assert!(!allowed(&program, BLOCK, READ, (10, 229)));
}

#[test]
fn the_last_matching_rule_decides_for_each_access() {
    let program = program(
        r#"[{"allow": true, "access": "rwm"}, {"allow": false, "type": "b", "major": 8, "access": "w"}]"#,
    );
    assert!(allowed(&program, BLOCK, READ, (8, 1)));
    assert!(!allowed(&program, BLOCK, WRITE, (8, 1)));
    assert!(!allowed(&program, BLOCK, READ | WRITE, (8, 1)));
    assert!(allowed(&program, BLOCK, READ | WRITE, (9, 1)));
}

#[test]
fn a_wildcard_number_matches_any_device_of_its_type() {
    let program =
        program(r#"[{"allow": true, "type": "b", "major": -1, "minor": -1, "access": "r"}]"#);
    assert!(allowed(&program, BLOCK, READ, (259, 5)));
    assert!(!allowed(&program, CHARACTER, READ, (10, 5)));
}

#[test]
fn an_unknown_type_or_access_is_refused() {
    for rule in [r#"[{"type": "x"}]"#, r#"[{"access": "rx"}]"#, r#"[{"major": -7}]"#] {
        assert!(
            assemble(&serde_json::from_str::<Vec<DeviceRule>>(rule).unwrap()).is_err(),
            "{rule}"
        );
    }
}
