//! What a hostile guest can do: nothing but harm itself, within bounds.

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop, prop_oneof, proptest};
use vm_memory::{Bytes, GuestAddress};

use super::rig::{
    INDIRECT, MEMORY, NEXT, PORT, QUEUE_SIZE, RECEIVE, Rig, TRANSMIT, WRITE, header, operations,
};
use crate::vsock::{
    device,
    header::{Header, Op},
    muxer::{BUFFER, BUFFER_BUDGET, MAX_CONNECTIONS, MAX_RESETS, SMALL_BUFFER},
};

/// Addresses in, at the edge of, and outside of memory, and on the rings themselves.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..MEMORY as u64,
        1 => Just(MEMORY as u64 - 1),
        1 => Just(TRANSMIT.table),
        1 => Just(RECEIVE.used),
        1 => any::<u64>(),
        1 => Just(u64::MAX),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0u32..200,
        2 => Just(44),
        2 => 0u32..70_000,
        1 => any::<u32>(),
        1 => Just(u32::MAX),
        1 => (0u32..80).prop_map(|entries| entries * 16),
    ]
}

fn flags() -> impl Strategy<Value = u16> {
    prop_oneof![Just(0), Just(NEXT), Just(WRITE), Just(NEXT | WRITE), Just(INDIRECT), any::<u16>()]
}

type Entry = ((u64, u32), (u16, u16));

fn table() -> impl Strategy<Value = Vec<Entry>> {
    let link = (flags(), 0..QUEUE_SIZE + 2);
    prop::collection::vec(((address(), length()), link), usize::from(QUEUE_SIZE))
}

/// Headers near enough to real ones that all paths are taken.
fn wild_header() -> impl Strategy<Value = Header> {
    let ids = (
        prop_oneof![9 => Just(3), 1 => any::<u64>()],
        prop_oneof![9 => Just(2), 1 => any::<u64>()],
    );
    let ports = (0u32..4, prop_oneof![9 => Just(PORT), 1 => any::<u32>()]);
    let what = (
        prop_oneof![9 => Just(1), 1 => any::<u16>()],
        prop_oneof![9 => 0u16..9, 1 => any::<u16>()],
    );
    let credit = (
        prop_oneof![Just(0u32), Just(BUFFER), any::<u32>()],
        prop_oneof![0u32..9_000, any::<u32>()],
    );
    (ids, ports, what, prop_oneof![0u32..5, any::<u32>()], credit).prop_map(
        |((src_cid, dst_cid), (src_port, dst_port), (kind, op), flags, (buf_alloc, fwd_cnt))| {
            let len = 0;
            Header {
                src_cid,
                dst_cid,
                src_port,
                dst_port,
                len,
                kind,
                op,
                flags,
                buf_alloc,
                fwd_cnt,
            }
        },
    )
}

fn assert_bounded(rig: &Rig) {
    assert!(rig.muxer.len() <= MAX_CONNECTIONS);
    let small = MAX_CONNECTIONS * SMALL_BUFFER as usize;
    assert!(rig.muxer.granted() <= BUFFER_BUDGET + small);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_rings_are_survived(
        tables in (table(), table()),
        heads in prop::collection::vec(0..QUEUE_SIZE + 2, usize::from(QUEUE_SIZE)),
        indices in (any::<u16>(), any::<u16>()),
        near in any::<bool>(),
        headers in prop::collection::vec((0..MEMORY as u64 - 44, wild_header()), 0..20),
    ) {
        let mut rig = Rig::new();
        let _host = rig.connect(7);
        for (at, header) in headers {
            rig.memory.write_slice(&header.encode(), GuestAddress(at)).unwrap();
        }
        for (layout, table) in [(TRANSMIT, tables.0), (RECEIVE, tables.1)] {
            for (index, (place, link)) in (0..).zip(table) {
                rig.descriptor(layout.table, index, place, link);
            }
            for (slot, head) in (0..).zip(&heads) {
                rig.memory.write_obj(*head, GuestAddress(layout.available + 4 + 2 * slot)).unwrap();
            }
        }
        for (layout, index) in [(TRANSMIT, indices.0), (RECEIVE, indices.1)] {
            let index = if near { index % (QUEUE_SIZE + 2) } else { index };
            rig.memory.write_obj(index, GuestAddress(layout.available + 2)).unwrap();
        }
        // A broken queue is an error; that the call comes back is what counts.
        for _ in 0..4 {
            let sent = device::transmit(&mut rig.muxer, &mut rig.transmit, &rig.memory);
            let received = device::receive(&mut rig.muxer, &mut rig.receive, &rig.memory);
            rig.muxer.on_host_events().unwrap();
            if sent.is_err() && received.is_err() { break; }
        }
        assert_bounded(&rig);
    }

    #[test]
    fn any_packets_are_survived(
        packets in prop::collection::vec((wild_header(), 0usize..3_000, any::<bool>()), 0..300),
    ) {
        let mut rig = Rig::new();
        for (header, len, close) in packets {
            rig.send_header(&header, &vec![1; len]);
            if close { rig.host.sockets.lock().unwrap().clear(); }
            rig.packets();
            assert_bounded(&rig);
        }
    }
}

#[test]
fn a_chain_in_a_circle_ends() {
    let mut rig = Rig::new();
    for index in 0..QUEUE_SIZE {
        let place = (TRANSMIT.buffers, 0);
        rig.descriptor(TRANSMIT.table, index, place, (NEXT, (index + 1) % QUEUE_SIZE));
    }
    rig.memory.write_obj(1_u16, GuestAddress(TRANSMIT.available + 2)).unwrap();
    let progress = device::transmit(&mut rig.muxer, &mut rig.transmit, &rig.memory).unwrap();
    assert!(progress.used && !progress.more);
}

#[test]
fn an_indirect_table_of_65_535_crumbs_is_cut_short() {
    let mut rig = Rig::new();
    let (table, entries) = (0x60_0000, 65_535_u32);
    for index in 0..u16::MAX {
        rig.descriptor(table, index, (TRANSMIT.buffers, 1), (NEXT, index.wrapping_add(1)));
    }
    let place = (table, entries * 16);
    rig.descriptor(TRANSMIT.table, 0, place, (INDIRECT, 0));
    rig.memory.write_obj(1_u16, GuestAddress(TRANSMIT.available + 2)).unwrap();
    let progress = device::transmit(&mut rig.muxer, &mut rig.transmit, &rig.memory).unwrap();
    assert!(progress.used);
    assert!(rig.packets().is_empty());
}

#[test]
fn a_queue_that_lies_about_its_length_is_an_error() {
    let mut rig = Rig::new();
    rig.memory.write_obj(QUEUE_SIZE + 1, GuestAddress(TRANSMIT.available + 2)).unwrap();
    assert!(device::transmit(&mut rig.muxer, &mut rig.transmit, &rig.memory).is_err());
}

#[test]
fn more_than_was_granted_ends_the_connection() {
    let mut rig = Rig::new();
    let _host = rig.connect(7);
    for _ in 0..20 {
        rig.send(7, Op::Data, &[0; 65_536]);
    }
    assert!(operations(&rig.packets()).contains(&Op::Reset));
    assert!(rig.muxer.is_empty());
}

#[test]
fn connections_by_the_thousand_stay_within_the_bounds() {
    let mut rig = Rig::new();
    let mut answers = Vec::new();
    for port in 0..5000 {
        rig.send(port, Op::Request, &[]);
        answers.extend(operations(&rig.packets()));
    }
    let accepted = answers.iter().filter(|op| **op == Op::Response).count();
    assert_eq!((answers.len(), accepted), (5000, MAX_CONNECTIONS));
    assert_bounded(&rig);
    for port in 0..5000 {
        rig.send(port, Op::Reset, &[]);
    }
    assert!(rig.muxer.is_empty());
    assert_eq!(rig.muxer.granted(), 0);
}

#[test]
fn a_guest_that_takes_no_answers_may_not_go_on_asking() {
    let mut rig = Rig::new();
    let refused = Header { dst_port: 1, ..header(7, Op::Request) };
    for _ in 0..MAX_RESETS {
        rig.send_header(&refused, &[]);
    }
    assert!(rig.muxer.is_congested());
    let before: u16 = rig.memory.read_obj(GuestAddress(TRANSMIT.used + 2)).unwrap();
    rig.send_header(&refused, &[]);
    let after: u16 = rig.memory.read_obj(GuestAddress(TRANSMIT.used + 2)).unwrap();
    assert_eq!(before, after);
    assert_eq!(rig.packets().len(), MAX_RESETS);
    device::transmit(&mut rig.muxer, &mut rig.transmit, &rig.memory).unwrap();
    assert_eq!(rig.packets().len(), 1);
}

#[test]
fn a_reset_is_never_answered() {
    let mut rig = Rig::new();
    rig.send(9, Op::Reset, &[]);
    assert!(rig.packets().is_empty());
}
