//! Redirects as eBPF programs, for a link's ingress hook.
//!
//! Packets of a link without Ethernet get a header in front: to the guest's card, from an address that no card has. On the
//! way back the kernel takes the header off, since such a link has none.

use kata_sys::bpf::Instruction;

use super::view::CardAddress;

/// Where such packets come from, for the guest.
const SENDER: CardAddress = [0x02, 0x6b, 0, 0, 0, 0];
/// Length of Ethernet's header.
const HEADER: i32 = 14;
/// `protocol` of `struct __sk_buff`.
const PROTOCOL: i16 = 16;
/// The header is put together below the frame pointer.
const STACK: i16 = -16;
/// TC_ACT_SHOT.
const DROP: i32 = 2;

/// Helpers, by their numbers in linux/bpf.h.
const STORE_BYTES: i32 = 9;
const REDIRECT: i32 = 23;
const CHANGE_HEAD: i32 = 43;

const MOVE: u8 = 0xbf;
const SET: u8 = 0xb7;
const ADD: u8 = 0x07;
const LOAD_WORD: u8 = 0x61;
const STORE_WORD: u8 = 0x62;
const STORE_HALF: u8 = 0x6a;
const STORE_HALF_OF: u8 = 0x6b;
const CALL: u8 = 0x85;
const JUMP_IF: u8 = 0x15;
const EXIT: u8 = 0x95;

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, immediate }
}

/// Sends what comes in out of the link `to`; behind an Ethernet header to a card, if that has to be added.
pub(super) fn redirect(to: u32, header: Option<CardAddress>) -> Vec<Instruction> {
    let mut program = header.map(add_header).unwrap_or_default();
    program.extend([
        instruction(SET, 1, 0, 0, to.cast_signed()),
        instruction(SET, 2, 0, 0, 0),
        instruction(CALL, 0, 0, 0, REDIRECT),
        instruction(EXIT, 0, 0, 0, 0),
    ]);
    program
}

fn add_header(card: CardAddress) -> Vec<Instruction> {
    let [a, b, c, d, e, f] = card;
    let [g, h, i, j, k, l] = SENDER;
    vec![
        instruction(MOVE, 6, 1, 0, 0),
        instruction(LOAD_WORD, 7, 6, PROTOCOL, 0),
        instruction(SET, 2, 0, 0, HEADER),
        instruction(SET, 3, 0, 0, 0),
        instruction(CALL, 0, 0, 0, CHANGE_HEAD),
        instruction(JUMP_IF, 0, 0, 2, 0),
        instruction(SET, 0, 0, 0, DROP),
        instruction(EXIT, 0, 0, 0, 0),
        instruction(STORE_WORD, 10, 0, STACK, i32::from_ne_bytes([a, b, c, d])),
        instruction(STORE_HALF, 10, 0, STACK + 4, i16::from_ne_bytes([e, f]).into()),
        instruction(STORE_HALF, 10, 0, STACK + 6, i16::from_ne_bytes([g, h]).into()),
        instruction(STORE_WORD, 10, 0, STACK + 8, i32::from_ne_bytes([i, j, k, l])),
        instruction(STORE_HALF_OF, 10, 7, STACK + 12, 0),
        instruction(MOVE, 1, 6, 0, 0),
        instruction(SET, 2, 0, 0, 0),
        instruction(MOVE, 3, 10, 0, 0),
        instruction(ADD, 3, 0, 0, STACK.into()),
        instruction(SET, 4, 0, 0, HEADER),
        instruction(SET, 5, 0, 0, 0),
        instruction(CALL, 0, 0, 0, STORE_BYTES),
    ]
}

#[cfg(test)]
mod tests {
    use super::{EXIT, JUMP_IF, redirect};

    #[test]
    fn a_program_without_a_header_redirects_and_no_more() {
        let program = redirect(7, None);
        assert_eq!((program.len(), program[0].immediate), (4, 7));
    }

    #[test]
    fn what_cannot_grow_is_dropped_and_the_rest_goes_on() {
        let program = redirect(7, Some([2, 0, 0, 0, 0, 1]));
        let jump = program.iter().position(|one| one.code == JUMP_IF).unwrap();
        assert_eq!((program[jump].offset, program[jump + 2].code), (2, EXIT));
        assert_eq!(program.last().unwrap().code, EXIT);
    }
}
