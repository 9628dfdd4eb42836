//! Port 53 of docker's resolver, which stays free for a container that is a server of names itself: what containers send there goes to
//! a port that nobody wants, and what comes back seems to come from 53. So it is with docker, which has the rules of a firewall for it.

use std::{io, net::SocketAddrV4};

use kata_sys::bpf::{self, AddressHook, Attached, Instruction};

use crate::cgroup;

/// Offsets in `struct bpf_sock_addr`, and how to read and write a word of it.
const ADDRESS_V4: i16 = 4;
const ADDRESS_V6: i16 = 8;
const PORT: i16 = 24;
const LOAD_WORD: u8 = 0x61;
const STORE_WORD: u8 = 0x63;
const MOVE: u8 = 0xb7;
const JUMP_IF_NOT_EQUAL_WORD: u8 = 0x56;
const EXIT: u8 = 0x95;

/// Registers: the answer, the context, and one of ours.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const WORD: u8 = 2;

/// On its way: what is connected, or sent to, by each family of socket. A datagram to an address of version 4 is one of that version,
/// whatever the socket is.
const THERE: [AddressHook; 3] =
    [AddressHook::ConnectV4, AddressHook::ConnectV6, AddressHook::SendV4];
/// What is asked for later, or comes with an answer.
const BACK: [AddressHook; 4] = [
    AddressHook::ReceiveV4,
    AddressHook::ReceiveV6,
    AddressHook::PeerNameV4,
    AddressHook::PeerNameV6,
];

/// Has the containers find at `address` what listens at this port of the same host, for as long as the answer lives.
pub(super) fn install(address: SocketAddrV4, port: u16) -> io::Result<Vec<Attached>> {
    let there = THERE.map(|hook| (hook, address.port(), port));
    let back = BACK.map(|hook| (hook, port, address.port()));
    let install = |(hook, from, to): (AddressHook, u16, u16)| {
        let from = SocketAddrV4::new(*address.ip(), from);
        let program = bpf::load_address_program(hook, &assemble(hook, from, to))?;
        bpf::attach_address_program(hook, cgroup::containers()?, program)
    };
    there.into_iter().chain(back).map(install).collect()
}

/// Gives another port to what is about this address, and lets everything pass.
fn assemble(hook: AddressHook, from: SocketAddrV4, to: u16) -> Vec<Instruction> {
    let network = |port: u16| i32::from(port.to_be());
    let address = i32::from_ne_bytes(from.ip().octets());
    let mut words = match hook.is_v6() {
        false => vec![(ADDRESS_V4, address)],
        // As a socket of version 6 has an address of version 4.
        true => {
            let mapped = [0, 0, i32::from_be(0xffff), address];
            (ADDRESS_V6..).step_by(4).zip(mapped).collect()
        }
    };
    words.push((PORT, network(from.port())));
    let to = network(to);
    let change = [
        Instruction { code: MOVE, registers: WORD, offset: 0, immediate: to },
        Instruction {
            code: STORE_WORD,
            registers: WORD << 4 | CONTEXT,
            offset: PORT,
            immediate: 0,
        },
    ];
    let mut program = Vec::new();
    for (index, (offset, value)) in words.iter().enumerate() {
        // Never above a dozen.
        let rest = (2 * (words.len() - index - 1) + change.len()) as i16;
        program.extend([
            Instruction {
                code: LOAD_WORD,
                registers: CONTEXT << 4 | WORD,
                offset: *offset,
                immediate: 0,
            },
            Instruction {
                code: JUMP_IF_NOT_EQUAL_WORD,
                registers: WORD,
                offset: rest,
                immediate: *value,
            },
        ]);
    }
    program.extend(change);
    program.extend([
        Instruction { code: MOVE, registers: ANSWER, offset: 0, immediate: 1 },
        Instruction { code: EXIT, registers: 0, offset: 0, immediate: 0 },
    ]);
    program
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, net::SocketAddrV4};

    use kata_sys::bpf::{AddressHook, Instruction};

    use super::{BACK, THERE, assemble};

    /// The port after the program has run, as the kernel would run it, on a context with these words.
    fn run(program: &[Instruction], mut context: HashMap<i16, i32>) -> u16 {
        let (mut at, mut registers) = (0, [0; 3]);
        loop {
            let it = program[at];
            let (to, from) = (usize::from(it.registers & 15), usize::from(it.registers >> 4));
            at += 1;
            match it.code {
                0x61 => registers[to] = context[&it.offset],
                0x63 => drop(context.insert(it.offset, registers[from])),
                0xb7 => registers[to] = it.immediate,
                0x56 if registers[to] != it.immediate => at += usize::try_from(it.offset).unwrap(),
                0x56 => {}
                0x95 => break,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
        assert_eq!((at, registers[0]), (program.len(), 1), "it lets everything pass");
        u16::from_be(u16::try_from(context[&24]).unwrap())
    }

    fn context(address: [u8; 4], mapping: i32, port: u16) -> HashMap<i16, i32> {
        let word = i32::from_ne_bytes(address);
        let words = [(4, word), (8, 0), (12, 0), (16, mapping), (20, word)];
        words.into_iter().chain([(24, i32::from(port.to_be()))]).collect()
    }

    #[test]
    fn only_the_resolvers_port_is_another_one() {
        let mapped = i32::from_ne_bytes([0, 0, 0xff, 0xff]);
        let from: SocketAddrV4 = "127.0.0.11:53".parse().unwrap();
        for hook in THERE.into_iter().chain(BACK) {
            let program = assemble(hook, from, 40_001);
            assert_eq!(run(&program, context([127, 0, 0, 11], mapped, 53)), 40_001, "{hook:?}");
            assert_eq!(run(&program, context([127, 0, 0, 11], mapped, 54)), 54, "{hook:?}");
            assert_eq!(run(&program, context([127, 0, 0, 1], mapped, 53)), 53, "{hook:?}");
        }
        let program = assemble(AddressHook::ConnectV6, from, 40_001);
        assert_eq!(run(&program, context([127, 0, 0, 11], 0, 53)), 53);
    }
}
