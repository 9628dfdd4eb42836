//! What a well-behaved guest and host see of each other.

use std::io::{Read, Write};

use proptest::prelude::{ProptestConfig, any, prop, proptest};

use super::rig::{Rig, header, operations};
use crate::vsock::{
    header::{HEADER_LEN, Header, Op},
    muxer::BUFFER,
};

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn shutdown(flags: u32) -> Header {
    Header { flags, ..header(7, Op::Shutdown) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_packet_may_be_cut_anywhere(
        len in 1usize..65_536,
        cuts in prop::collection::vec(0usize..9_000, 0..60),
    ) {
        let mut rig = Rig::new();
        let mut host = rig.connect(7);
        let payload = pattern(len);
        let mut bytes = Header { len: len as u32, ..header(7, Op::Data) }.encode().to_vec();
        bytes.extend_from_slice(&payload);
        rig.send_cut(&bytes, &cuts);
        let mut got = vec![0; len];
        host.read_exact(&mut got).unwrap();
        assert!(got == payload);
    }

    #[test]
    fn guest_buffers_may_have_any_size(len in 1usize..150_000, buffer in 45u32..60_000) {
        let mut rig = Rig::new();
        let mut host = rig.connect(7);
        let payload = pattern(len);
        rig.buffers_of(buffer);
        host.set_nonblocking(true).unwrap();
        let (mut written, mut got) = (0, Vec::new());
        while got.len() < len {
            if let Ok(count) = host.write(&payload[written..]) { written += count; }
            let packets = rig.packets();
            got.extend(packets.into_iter().flat_map(|(_, payload)| payload));
        }
        assert!(got == payload);
    }

    #[test]
    fn both_ways_at_once_with_a_slow_host(
        steps in prop::collection::vec((any::<bool>(), 1usize..65_536), 1..60),
    ) {
        let mut rig = Rig::new();
        let mut host = rig.connect(7);
        host.set_nonblocking(true).unwrap();
        let payload = pattern(4 << 20);
        let (mut sent, mut passed_on, mut got) = (0_usize, 0_u32, 0);
        let mut buffer = vec![0; 65_536];
        for (guest_sends, len) in steps {
            if guest_sends {
                // As a guest: never more than its credit.
                let credit = (BUFFER - (sent as u32 - passed_on)) as usize;
                let len = len.min(credit);
                if len > 0 {
                    rig.send(7, Op::Data, &payload[sent..sent + len]);
                    sent += len;
                }
            } else if let Ok(count) = host.read(&mut buffer[..len]) {
                assert!(buffer[..count] == payload[got..got + count]);
                got += count;
            }
            for (header, _) in rig.packets() {
                assert_ne!(header.op, Op::Reset as u16);
                passed_on = header.fwd_cnt;
            }
        }
        while got < sent {
            let count = host.read(&mut buffer).unwrap();
            assert!(buffer[..count] == payload[got..got + count]);
            got += count;
            rig.packets();
        }
    }
}

#[test]
fn a_port_that_is_not_listed_is_refused() {
    let mut rig = Rig::new();
    rig.send_header(&Header { dst_port: 22, ..header(7, Op::Request) }, &[]);
    let packets = rig.packets();
    assert_eq!(operations(&packets), [Op::Reset]);
    assert_eq!((packets[0].0.src_port, packets[0].0.dst_port), (22, 7));
    assert!(rig.host.sockets.lock().unwrap().is_empty());
}

#[test]
fn a_host_that_is_behind_delays_the_answer() {
    let mut rig = Rig::new();
    *rig.host.behind.lock().unwrap() = true;
    rig.send(7, Op::Request, &[]);
    assert!(rig.packets().is_empty());
    *rig.host.behind.lock().unwrap() = false;
    rig.send(8, Op::Request, &[]);
    assert_eq!(operations(&rig.packets()), [Op::Response, Op::Response]);
}

#[test]
fn a_half_closed_guest_still_reads() {
    let mut rig = Rig::new();
    let mut host = rig.connect(7);
    rig.send(7, Op::Data, b"question");
    rig.send_header(&shutdown(2), &[]);
    let mut question = String::new();
    host.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    host.write_all(b"answer").unwrap();
    drop(host);
    let packets = rig.packets();
    let answer: Vec<u8> = packets.iter().flat_map(|(_, payload)| payload.clone()).collect();
    assert_eq!(answer, b"answer");
    let last = packets.last().unwrap().0;
    assert_eq!((last.op, last.flags), (Op::Shutdown as u16, 3));
}

#[test]
fn the_end_of_the_host_comes_after_its_last_byte() {
    let mut rig = Rig::new();
    let mut host = rig.connect(7);
    host.write_all(&pattern(100_000)).unwrap();
    host.shutdown(std::net::Shutdown::Write).unwrap();
    let packets = rig.packets();
    let (last, data) = packets.split_last().unwrap();
    assert_eq!((last.0.op, last.0.flags), (Op::Shutdown as u16, 2));
    assert_eq!(data.iter().map(|(_, payload)| payload.len()).sum::<usize>(), 100_000);
    rig.send(7, Op::Data, b"still here");
    let mut text = [0; 10];
    host.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"still here");
}

#[test]
fn a_closed_guest_is_answered_with_a_reset_once_the_backlog_is_empty() {
    let mut rig = Rig::new();
    let mut host = rig.connect(7);
    let mut sent = 0;
    while sent + 65_536 <= BUFFER as usize {
        rig.send(7, Op::Data, &pattern(65_536));
        sent += 65_536;
    }
    rig.send_header(&shutdown(3), &[]);
    assert!(operations(&rig.packets()).iter().all(|op| *op == Op::CreditUpdate));
    let (mut got, mut answers) = (vec![0; 65_536], Vec::new());
    while sent > 0 {
        sent -= host.read(&mut got).unwrap();
        answers.extend(operations(&rig.packets()));
    }
    assert_eq!(answers, [Op::Reset]);
    assert_eq!(host.read(&mut got).unwrap(), 0);
    assert!(rig.muxer.is_empty());
}

#[test]
fn what_was_sent_before_a_reset_is_delivered() {
    let mut rig = Rig::new();
    let mut host = rig.connect(7);
    for _ in 0..4 {
        rig.send(7, Op::Data, &pattern(65_536));
    }
    rig.send(7, Op::Reset, &[]);
    // The ports are free again before the last byte is out.
    let _second = rig.connect(7);
    assert_eq!(rig.muxer.len(), 2);
    let (mut got, mut buffer) = (Vec::new(), vec![0; 65_536]);
    while got.len() < 4 * 65_536 {
        let count = host.read(&mut buffer).unwrap();
        got.extend_from_slice(&buffer[..count]);
        rig.packets();
    }
    assert!(got.chunks(65_536).all(|chunk| chunk == pattern(65_536)));
    assert_eq!(host.read(&mut buffer).unwrap(), 0);
    assert_eq!(rig.muxer.len(), 1);
}

#[test]
fn a_gone_host_is_told_at_once_and_costs_no_credit() {
    let mut rig = Rig::new();
    drop(rig.connect(7));
    let packets = rig.packets();
    assert_eq!(packets.last().unwrap().0.flags, 3);
    rig.send(7, Op::Data, &pattern(65_536));
    rig.send(7, Op::CreditRequest, &[]);
    assert_eq!(rig.packets()[0].0.fwd_cnt, 65_536);
    rig.send(7, Op::Reset, &[]);
    assert!(rig.muxer.is_empty());
}

#[test]
fn a_guest_without_room_is_asked_once_and_served_when_it_has_some() {
    let mut rig = Rig::new();
    let mut host = rig.connect(7);
    host.set_nonblocking(true).unwrap();
    rig.send_header(&Header { buf_alloc: 1000, ..header(7, Op::CreditUpdate) }, &[]);
    host.write_all(&pattern(2500)).unwrap();
    assert_eq!(operations(&rig.packets()), [Op::Data, Op::CreditRequest]);
    assert!(rig.packets().is_empty());
    let more = Header { buf_alloc: 1000, fwd_cnt: 1000, ..header(7, Op::CreditUpdate) };
    rig.send_header(&more, &[]);
    assert_eq!(rig.packets()[0].1.len(), 1000);
}

#[test]
fn a_malformed_length_ends_the_connection() {
    let mut rig = Rig::new();
    let _host = rig.connect(7);
    let lie = Header { len: 5000, ..header(7, Op::Data) };
    rig.send_cut(&[&lie.encode()[..], &[0; 100]].concat(), &[HEADER_LEN]);
    assert_eq!(operations(&rig.packets()), [Op::Reset]);
    assert!(rig.muxer.is_empty());
}
