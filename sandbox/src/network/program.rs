//! Redirects, and an exception from them, as eBPF programs for a link's ingress hook.
//!
//! Packets of a link without Ethernet get a header in front: to the guest's card, from an address that no card has. On the
//! way back the kernel takes the header off, since such a link has none. Frames without addresses get the same, and lose
//! them on the way back: the other end takes no others for its own.

use kata_sys::bpf::Instruction;

use super::view::CardAddress;

/// Where such packets come from, for the guest.
const SENDER: CardAddress = [0x02, 0x6b, 0, 0, 0, 0];
/// Length of Ethernet's header.
const HEADER: i32 = 14;
/// The two addresses at its beginning.
const ADDRESSES: i32 = 12;
/// `protocol` of `struct __sk_buff`.
const PROTOCOL: i16 = 16;
/// The header is put together below the frame pointer.
const STACK: i16 = -16;
/// TC_ACT_SHOT.
const DROP: i32 = 2;
/// TC_ACT_OK.
const PASS: i32 = 0;
/// TC_ACT_UNSPEC: the next filter decides.
const NEXT: i32 = -1;

/// Protocols, as `PROTOCOL` has them.
const ARP: i32 = (0x0806_u16).to_be() as i32;
const IPV4: i32 = (0x0800_u16).to_be() as i32;
/// Above IPv4.
const TCP: i32 = 6;
const UDP: i32 = 17;
/// IPv4's header without options, and the ports behind it.
const ADDRESSED: i32 = 24;
/// From its source address on it is what a socket is found by.
const TUPLE: i32 = 12;
/// BPF_F_CURRENT_NETNS.
const HERE: i32 = -1;

/// Helpers, by their numbers in linux/bpf.h.
const STORE_BYTES: i32 = 9;
const REDIRECT: i32 = 23;
const CHANGE_HEAD: i32 = 43;
const CLONE_REDIRECT: i32 = 13;
const LOAD_BYTES: i32 = 26;
const FIND_TCP: i32 = 84;
const FIND_UDP: i32 = 85;
const RELEASE: i32 = 86;

const MOVE: u8 = 0xbf;
const SET: u8 = 0xb7;
const ADD: u8 = 0x07;
const LOAD_WORD: u8 = 0x61;
const STORE_WORD: u8 = 0x62;
const STORE_HALF: u8 = 0x6a;
const STORE_HALF_OF: u8 = 0x6b;
const CALL: u8 = 0x85;
const JUMP_IF: u8 = 0x15;
const JUMP_UNLESS: u8 = 0x55;
const JUMP: u8 = 0x05;
const LOAD_BYTE: u8 = 0x71;
const EXIT: u8 = 0x95;

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, immediate }
}

/// What is done to a frame before it is sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    /// A header is put in front, to this card.
    Header(CardAddress),
    /// Its header gets this address as its destination, and the sender of headers that are added; none at all if this is none.
    Addresses(CardAddress),
}

/// Sends what comes in out of the link `to`.
pub(super) fn redirect(to: u32, change: Change) -> Vec<Instruction> {
    let mut program = match change {
        Change::Nothing => Vec::new(),
        Change::Header(card) => add_header(card),
        Change::Addresses(card) => set_addresses(card),
    };
    program.extend([
        instruction(SET, 1, 0, 0, to.cast_signed()),
        instruction(SET, 2, 0, 0, 0),
        instruction(CALL, 0, 0, 0, REDIRECT),
        instruction(EXIT, 0, 0, 0, 0),
    ]);
    program
}

fn add_header(card: CardAddress) -> Vec<Instruction> {
    let mut program = vec![
        instruction(MOVE, 6, 1, 0, 0),
        instruction(LOAD_WORD, 7, 6, PROTOCOL, 0),
        instruction(SET, 2, 0, 0, HEADER),
        instruction(SET, 3, 0, 0, 0),
        instruction(CALL, 0, 0, 0, CHANGE_HEAD),
        instruction(JUMP_IF, 0, 0, 2, 0),
        instruction(SET, 0, 0, 0, DROP),
        instruction(EXIT, 0, 0, 0, 0),
        instruction(STORE_HALF_OF, 10, 7, STACK + 12, 0),
    ];
    program.extend(store_addresses(card, SENDER));
    program.extend(store_header(HEADER));
    program
}

fn set_addresses(card: CardAddress) -> Vec<Instruction> {
    let sender = if card == [0; 6] { card } else { SENDER };
    let mut program = vec![instruction(MOVE, 6, 1, 0, 0)];
    program.extend(store_addresses(card, sender));
    program.extend(store_header(ADDRESSES));
    program
}

/// On the stack.
fn store_addresses(to: CardAddress, from: CardAddress) -> [Instruction; 4] {
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (to, from);
    [
        instruction(STORE_WORD, 10, 0, STACK, i32::from_ne_bytes([a, b, c, d])),
        instruction(STORE_HALF, 10, 0, STACK + 4, i16::from_ne_bytes([e, f]).into()),
        instruction(STORE_HALF, 10, 0, STACK + 6, i16::from_ne_bytes([g, h]).into()),
        instruction(STORE_WORD, 10, 0, STACK + 8, i32::from_ne_bytes([i, j, k, l])),
    ]
}

/// So much of what is on the stack, to the beginning of the frame that register 6 leads to. It fails for what is shorter
/// than a header alone, of which there is none.
fn store_header(length: i32) -> [Instruction; 7] {
    [
        instruction(MOVE, 1, 6, 0, 0),
        instruction(SET, 2, 0, 0, 0),
        instruction(MOVE, 3, 10, 0, 0),
        instruction(ADD, 3, 0, 0, STACK.into()),
        instruction(SET, 4, 0, 0, length),
        instruction(SET, 5, 0, 0, 0),
        instruction(CALL, 0, 0, 0, STORE_BYTES),
    ]
}

/// Lets what is for a socket of the namespace itself pass to it, and shows ARP to both the namespace and the card `to`; what
/// follows in the hook decides on everything else.
pub(super) fn own_sockets(to: u32) -> Vec<Instruction> {
    let header = i16::try_from(-ADDRESSED).unwrap_or_default();
    let decide = |verdict| [instruction(SET, 0, 0, 0, verdict), instruction(EXIT, 0, 0, 0, 0)];
    let find = |helper| {
        [
            instruction(MOVE, 1, 6, 0, 0),
            instruction(MOVE, 2, 10, 0, 0),
            instruction(ADD, 2, 0, 0, -TUPLE),
            instruction(SET, 3, 0, 0, TUPLE),
            instruction(SET, 4, 0, 0, HERE),
            instruction(SET, 5, 0, 0, 0),
            instruction(CALL, 0, 0, 0, helper),
        ]
    };
    let mut program = vec![
        instruction(MOVE, 6, 1, 0, 0),
        instruction(LOAD_WORD, 7, 6, PROTOCOL, 0),
        instruction(JUMP_UNLESS, 7, 0, 6, ARP),
        instruction(MOVE, 1, 6, 0, 0),
        instruction(SET, 2, 0, 0, to.cast_signed()),
        instruction(SET, 3, 0, 0, 0),
        instruction(CALL, 0, 0, 0, CLONE_REDIRECT),
    ];
    program.extend(decide(PASS));
    program.push(instruction(JUMP_IF, 7, 0, 2, IPV4));
    program.extend(decide(NEXT));
    program.extend([
        instruction(MOVE, 1, 6, 0, 0),
        instruction(SET, 2, 0, 0, HEADER),
        instruction(MOVE, 3, 10, 0, 0),
        instruction(ADD, 3, 0, 0, -ADDRESSED),
        instruction(SET, 4, 0, 0, ADDRESSED),
        instruction(CALL, 0, 0, 0, LOAD_BYTES),
        instruction(JUMP_UNLESS, 0, 0, 4, 0),
        // Version 4, and a header of five words.
        instruction(LOAD_BYTE, 7, 10, header, 0),
        instruction(JUMP_UNLESS, 7, 0, 2, 0x45),
        instruction(LOAD_BYTE, 7, 10, header + 9, 0),
        instruction(JUMP, 0, 0, 2, 0),
    ]);
    program.extend(decide(NEXT));
    let (tcp, udp) = (find(FIND_TCP), find(FIND_UDP));
    program.push(instruction(JUMP_UNLESS, 7, 0, 8, TCP));
    program.extend(tcp);
    // Over the other one and its two questions.
    program.push(instruction(JUMP, 0, 0, 10, 0));
    program.push(instruction(JUMP_IF, 7, 0, 2, UDP));
    program.extend(decide(NEXT));
    program.extend(udp);
    program.push(instruction(JUMP_UNLESS, 0, 0, 2, 0));
    program.extend(decide(NEXT));
    program.extend([instruction(MOVE, 1, 0, 0, 0), instruction(CALL, 0, 0, 0, RELEASE)]);
    program.extend(decide(PASS));
    program
}

#[cfg(test)]
mod tests {
    use super::{Change, EXIT, JUMP, JUMP_IF, JUMP_UNLESS, own_sockets, redirect};

    #[test]
    fn what_passes_to_the_namespace_ends_in_every_branch() {
        let program = own_sockets(7);
        assert_eq!(program[4].immediate, 7);
        for (at, one) in program.iter().enumerate() {
            let target = at + 1 + usize::try_from(one.offset).unwrap_or_default();
            if [JUMP, JUMP_IF, JUMP_UNLESS].contains(&one.code) {
                // Never into the middle of a verdict.
                assert!(target < program.len() && program[target].code != EXIT, "{at}");
            }
        }
        assert_eq!(program.last().unwrap().code, EXIT);
    }

    #[test]
    fn a_program_without_a_header_redirects_and_no_more() {
        let program = redirect(7, Change::Nothing);
        assert_eq!((program.len(), program[0].immediate), (4, 7));
    }

    #[test]
    fn addresses_are_written_and_nothing_else_of_a_frame() {
        for card in [[0; 6], [2, 0, 0, 0, 0, 1]] {
            let program = redirect(7, Change::Addresses(card));
            let store = program.iter().position(|one| one.immediate == super::STORE_BYTES).unwrap();
            assert_eq!(program[store - 2].immediate, super::ADDRESSES);
            let written = program[1].immediate != 0;
            assert_eq!(written, card != [0; 6]);
            assert!(program[3..5].iter().all(|one| card != [0; 6] || one.immediate == 0));
            assert_eq!(program[store + 1].immediate, 7);
        }
    }

    #[test]
    fn what_cannot_grow_is_dropped_and_the_rest_goes_on() {
        let program = redirect(7, Change::Header([2, 0, 0, 0, 0, 1]));
        let jump = program.iter().position(|one| one.code == JUMP_IF).unwrap();
        assert_eq!((program[jump].offset, program[jump + 2].code), (2, EXIT));
        assert_eq!(program.last().unwrap().code, EXIT);
    }
}
