//! Frames of the agent's connection, before anything decodes them.
//!
//! A field of two bytes becomes up to a hundred in memory, and a part of a list, of four, some six hundred when it has a field that
//! is not known. So what has more of them than any answer of an agent never gets to the decoder, and who waits for it gets a
//! refusal instead. What does get there takes some 100 MB at most.

use protobuf::Message;
use ttrpc::{
    Code, get_status,
    proto::{MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, Response},
};

/// Bytes that say how long a frame is, and whose.
pub const HEADER: usize = MESSAGE_HEADER_LENGTH;

/// Most fields of an answer, with those of the messages in it, as they count: a list of 65536 processes fits, the most that a guest
/// of 64 processors has.
const MOST_FIELDS: usize = 800_000;

/// What a part of a list counts for beside its fields: a number of one byte that it does not have can't be told from one that it has.
const PART: usize = 4;

/// What a field counts for whose number takes more than a byte: no message of ours has it, and a decoder keeps it in a map.
const UNKNOWN: usize = 16;

/// How deep messages are in the envelope: the answer, and what that is a list of.
const DEPTH: usize = 2;

/// Length of a frame by its header.
///
/// # Errors
/// How much follows the header of one that is longer than any may be: ttrpc passes over it.
pub fn length(header: &[u8; HEADER]) -> Result<usize, u64> {
    let [a, b, c, d, ..] = *header;
    let body = u32::from_be_bytes([a, b, c, d]);
    match usize::try_from(body) {
        Ok(body) if body <= MESSAGE_LENGTH_MAX => Ok(HEADER + body),
        _ => Err(body.into()),
    }
}

/// The frame, if decoding it takes no more than its bytes tell; otherwise a refusal in its place.
pub fn bounded(frame: Vec<u8>) -> Vec<u8> {
    let mut left = MOST_FIELDS;
    let Some((header, body)) = frame.split_at_checked(HEADER) else { return frame };
    if spend(body, DEPTH, &mut left).is_some() {
        return frame;
    }
    let status = get_status(Code::RESOURCE_EXHAUSTED, "the guest's answer has too many parts");
    let refusal = Response { status: Some(status).into(), ..Default::default() };
    // Messages of this type always have a form on the wire.
    let refusal = refusal.write_to_bytes().unwrap_or_default();
    let length = u32::try_from(refusal.len()).unwrap_or_default();
    [&length.to_be_bytes(), &header[4..], &refusal].concat()
}

/// Counts the fields that a decoder would come upon in a message; none when there are more than are left.
///
/// Whether what has a length is a message or a text is not known here: it is counted as the former, up to where that can't be
/// one.
fn spend(mut rest: &[u8], depth: usize, left: &mut usize) -> Option<()> {
    while let Some(tag) = varint(&mut rest) {
        *left = left.checked_sub(if tag < 0x80 { 1 } else { UNKNOWN })?;
        match tag & 7 {
            0 => drop(varint(&mut rest)),
            1 => drop(take(&mut rest, 8)),
            2 => {
                let length = varint(&mut rest).unwrap_or(0);
                let inside = take(&mut rest, usize::try_from(length).unwrap_or(usize::MAX));
                if let Some(depth) = depth.checked_sub(1) {
                    *left = left.checked_sub(if depth == 0 { PART } else { 0 })?;
                    spend(inside, depth, left)?;
                }
            }
            5 => drop(take(&mut rest, 4)),
            // A group: what is in it follows.
            3 | 4 => {}
            _ => break,
        }
    }
    Some(())
}

/// So many bytes, or all that there are: a decoder takes as many before it finds that some are missing.
fn take<'a>(rest: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, behind) = rest.split_at(length.min(rest.len()));
    *rest = behind;
    taken
}

/// A number of seven bits a byte; none when there is no whole one.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in 0..10 {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        number |= u64::from(byte & 0x7f) << (7 * shift);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use protobuf::{Message, MessageField};
    use ttrpc::proto::{MESSAGE_LENGTH_MAX, Response};

    use super::{HEADER, bounded, length};
    use crate::agent::{
        ContainerStatsResponse, LinkFailure, ListProcessesResponse, NetworkChanged, ProcessDetails,
    };

    fn frame(body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&length, &[0, 0, 0, 7, 2, 0][..], body].concat()
    }

    fn answer(answer: &impl Message) -> Vec<u8> {
        answer_of(answer.write_to_bytes().unwrap())
    }

    fn answer_of(payload: Vec<u8>) -> Vec<u8> {
        frame(&Response { payload, ..Default::default() }.write_to_bytes().unwrap())
    }

    #[test]
    fn what_an_agent_answers_is_passed_on() {
        let process = ProcessDetails {
            guest_pid: 65535,
            parent: 1,
            uid: 1000,
            cpu_ms: 5,
            command: "sleep inf".into(),
            age_ms: 70,
            terminal: 34816,
            ..Default::default()
        };
        let processes =
            ListProcessesResponse { processes: vec![process; 65536], ..Default::default() };
        let text = (0..4096).map(|line| format!("anon_{line} {line}\n")).collect::<String>();
        let files = [("memory.stat".to_owned(), text)].into();
        let statistics = ContainerStatsResponse { files, ..Default::default() };
        for frame in [answer(&processes), answer(&statistics), frame(b""), b"short".to_vec()] {
            assert!(bounded(frame.clone()) == frame);
        }
    }

    #[test]
    fn an_answer_of_many_parts_is_a_refusal() {
        let links = vec![LinkFailure::default(); 1 << 20];
        let empty = answer(&NetworkChanged { links, ..Default::default() });
        // Each with a number of its own, which no message of ours has.
        let unknown = (1 << 14..1 << 17).flat_map(|number: u32| {
            let [a, b, c, _] = (number << 3).to_le_bytes();
            [a | 0x80, a >> 7 | b << 1 | 0x80, b >> 6 | c << 2, 0]
        });
        let unknown: Vec<u8> = unknown.collect();
        let cut_off = [&[0x12, 0xff, 0xff, 0xff, 0x7f][..], &[0x0a, 0].repeat(1 << 20)].concat();
        let inside = [&[0x0a, 0x80, 0x80, 0x08][..], &unknown].concat();
        // Parts of a list, each with a field of the number 15.
        let parts = answer_of([0x0a, 2, 0x78, 0].repeat(200_000));
        for frame in [empty, answer_of(unknown), frame(&cut_off), answer_of(inside), parts] {
            let refusal = bounded(frame.clone());
            assert_eq!(refusal[4..HEADER], frame[4..HEADER], "it is an answer to the same call");
            assert_eq!(length(refusal[..HEADER].try_into().unwrap()), Ok(refusal.len()));
            let refusal = Response::parse_from_bytes(&refusal[HEADER..]).unwrap();
            assert_ne!(refusal.status, MessageField::none());
        }
    }

    #[test]
    fn a_frame_is_as_long_as_its_header_says() {
        let header = |length: usize| {
            let length = u32::try_from(length).unwrap().to_be_bytes();
            [&length[..], &[0; 6]].concat().try_into().unwrap()
        };
        assert_eq!(length(&header(0)), Ok(HEADER));
        assert_eq!(length(&header(MESSAGE_LENGTH_MAX)), Ok(HEADER + MESSAGE_LENGTH_MAX));
        assert_eq!(length(&header(MESSAGE_LENGTH_MAX + 1)), Err(MESSAGE_LENGTH_MAX as u64 + 1));
    }
}
