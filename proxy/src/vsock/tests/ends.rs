//! The back end with queues of a VMM's, up to the VMM's end; and what is not an end.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::Arc,
    time::Duration,
};

use vhost_user_backend::{VhostUserBackend, VringT};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::rig::{GUEST_CID, Host, Layout, PORT, QUEUE_SIZE, RECEIVE, Rig, TRANSMIT, operations};
use crate::{
    jail::filter,
    vring::Vring,
    vsock::{backend::VsockBackend, header::Op, muxer::Identity},
};

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// The device behind the queues of a guest, and these.
fn device(rig: &Rig) -> (Arc<VsockBackend<Host>>, [Vring<Memory>; 2]) {
    let identity = Identity { guest_cid: GUEST_CID, ports: vec![PORT] };
    let backend = VsockBackend::new(identity, rig.host.clone()).unwrap();
    let memory = GuestMemoryAtomic::new(rig.memory.clone());
    backend.update_memory(memory.clone()).unwrap();
    let vrings = [RECEIVE, TRANSMIT].map(|layout: Layout| {
        let vring = Vring::new(memory.clone(), QUEUE_SIZE).unwrap();
        vring.set_queue_info(layout.table, layout.available, layout.used).unwrap();
        vring.set_queue_ready(true);
        vring.set_enabled(true);
        vring
    });
    (backend, vrings)
}

fn host(rig: &Rig) -> UnixStream {
    rig.host.sockets.lock().unwrap().pop().unwrap()
}

#[test]
fn what_is_in_the_queue_when_the_vmm_ends_is_delivered() {
    let mut rig = Rig::new();
    let (backend, vrings) = device(&rig);
    rig.lay(7, Op::Request, &[]);
    backend.handle_event(1, EventSet::IN, &vrings, 0).unwrap();
    let mut host = host(&rig);
    rig.lay(7, Op::Data, b"the last words");
    backend.drain(Duration::ZERO);
    host.set_nonblocking(true).unwrap();
    let mut words = [0; 14];
    host.read_exact(&mut words).unwrap();
    assert_eq!(&words, b"the last words");
}

#[test]
fn a_host_without_memory_is_no_host_that_is_gone() {
    let mut rig = Rig::new();
    let mut host = rig.connect(7);
    host.set_nonblocking(true).unwrap();
    for (call, errno) in [(libc::SYS_sendmsg, libc::ENOBUFS), (libc::SYS_recvmsg, libc::ENOMEM)] {
        host.write_all(b"to the guest").unwrap();
        filter::without(call, errno, || {
            rig.send(7, Op::Data, b"one ");
            rig.send(7, Op::Data, b"two");
            assert!(operations(&rig.packets()).iter().all(|op| *op == Op::Data));
        });
        assert!(rig.muxer.is_starved());
        rig.muxer.retry();
        assert!(!rig.muxer.is_starved());
        let mut words = [0; 7];
        host.read_exact(&mut words).unwrap();
        assert_eq!(&words, b"one two");
        rig.packets();
    }
    rig.send(7, Op::CreditRequest, &[]);
    assert_eq!(rig.packets()[0].0.fwd_cnt, 14);
}
