//! What every hypervisor does, whichever it is.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use kata_hypervisor::{Hypervisor, HypervisorError, VmEnd};
use tokio::time::{sleep, timeout};

use crate::guest::{Guest, MARKER};

/// A boot under emulation on a busy host; only a dead guest needs as long.
const BOOT: Duration = Duration::from_secs(120);

/// The promise: every end is known within a second. The guest itself has some way to go to it under emulation.
const END: Duration = Duration::from_secs(2);

/// One way to make VMs.
#[async_trait]
pub trait Rig: Send + Sync {
    /// A VM that has not booted.
    fn vm(&self, guest: Guest) -> Box<dyn Hypervisor>;
    /// A VM whose kernel is none.
    fn vm_without_kernel(&self) -> Result<Box<dyn Hypervisor>, HypervisorError>;
    /// A running VM, and a blow from outside to its VMM.
    async fn vm_and_killer(&self, guest: Guest) -> (Box<dyn Hypervisor>, Box<dyn FnOnce() + Send>);
}

/// Waits until the console says `text`.
pub async fn console_says(vm: &dyn Hypervisor, text: &str) {
    let looking = async {
        while !vm.console_tail().contains(text) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    if timeout(BOOT, looking).await.is_err() {
        panic!("no {text:?} on the console: {}", vm.console_tail());
    }
}

async fn ended(vm: &dyn Hypervisor) -> VmEnd {
    match timeout(END, vm.wait()).await {
        Ok(end) => end,
        Err(_) => panic!("no end within {END:?}; console: {}", vm.console_tail()),
    }
}

pub async fn a_stopped_vm_says_so_for_ever(rig: &dyn Rig) {
    let vm = rig.vm(Guest::Ticks);
    vm.boot().await.unwrap();
    console_says(&*vm, MARKER).await;
    let start = Instant::now();
    vm.stop().await.unwrap();
    assert!(start.elapsed() < END);
    assert_eq!(ended(&*vm).await, VmEnd::Stopped);
    vm.stop().await.unwrap();
    assert_eq!(ended(&*vm).await, VmEnd::Stopped);
    assert!(vm.console_tail().contains(MARKER));
}

pub async fn a_vm_boots_once(rig: &dyn Rig) {
    let vm = rig.vm(Guest::Ticks);
    vm.boot().await.unwrap();
    let again = vm.boot().await.unwrap_err();
    assert!(matches!(again, HypervisorError::State { operation: "boot", .. }), "{again}");
    vm.stop().await.unwrap();
    assert!(matches!(vm.boot().await, Err(HypervisorError::State { .. })));
}

pub async fn a_vm_can_be_stopped_before_it_boots(rig: &dyn Rig) {
    let vm = rig.vm(Guest::Ticks);
    vm.stop().await.unwrap();
    assert_eq!(ended(&*vm).await, VmEnd::Stopped);
    assert!(matches!(vm.boot().await, Err(HypervisorError::State { .. })));
}

pub async fn a_paused_vm_does_nothing_until_it_is_resumed(rig: &dyn Rig) {
    let vm = rig.vm(Guest::Ticks);
    assert!(matches!(vm.pause().await, Err(HypervisorError::State { .. })));
    vm.boot().await.unwrap();
    console_says(&*vm, "tick").await;
    assert!(vm.runs().await.unwrap());
    vm.pause().await.unwrap();
    vm.pause().await.unwrap();
    assert!(!vm.runs().await.unwrap());
    // What was under way has arrived by then.
    sleep(Duration::from_millis(100)).await;
    let before = vm.console_tail();
    sleep(Duration::from_millis(300)).await;
    assert_eq!(vm.console_tail(), before);
    vm.resume().await.unwrap();
    vm.resume().await.unwrap();
    let more = async {
        while vm.console_tail() == before {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(END, more).await.expect("a resumed guest runs");
    assert!(vm.runs().await.unwrap());
    vm.stop().await.unwrap();
    for result in [vm.pause().await, vm.resume().await, vm.runs().await.map(drop)] {
        assert!(matches!(result, Err(HypervisorError::State { .. })));
    }
}

pub async fn a_guest_ends_in_its_own_way(rig: &dyn Rig) {
    for guest in [Guest::Reset, Guest::Off, Guest::Panic, Guest::Exit] {
        let vm = rig.vm(guest);
        vm.boot().await.unwrap();
        console_says(&*vm, MARKER).await;
        let end = ended(&*vm).await;
        match (guest, &end) {
            (Guest::Reset, VmEnd::GuestReset) | (Guest::Off, VmEnd::GuestOff) => {}
            (Guest::Panic, VmEnd::GuestPanic(text)) => assert!(text.contains("sysrq"), "{text}"),
            (Guest::Exit, VmEnd::AgentDied(text)) => {
                assert!(text.contains("exitcode=0x00000300"), "{text}");
            }
            _ => panic!("{guest:?} was told as {end:?}; console: {}", vm.console_tail()),
        }
        // An end is an end: a later stop does not rewrite it.
        vm.stop().await.unwrap();
        assert_eq!(ended(&*vm).await, end);
    }
}

pub async fn a_killed_vmm_is_no_stop(rig: &dyn Rig) {
    let (vm, kill) = rig.vm_and_killer(Guest::Ticks).await;
    console_says(&*vm, MARKER).await;
    kill();
    assert_eq!(ended(&*vm).await, VmEnd::VmmKilled { signal: 9 });
}

pub async fn a_killed_vmm_is_known_while_paused(rig: &dyn Rig) {
    let (vm, kill) = rig.vm_and_killer(Guest::Ticks).await;
    vm.pause().await.unwrap();
    kill();
    assert_eq!(ended(&*vm).await, VmEnd::VmmKilled { signal: 9 });
}

pub async fn everybody_who_waits_hears_the_end(rig: &dyn Rig) {
    let vm = rig.vm(Guest::Ticks);
    vm.boot().await.unwrap();
    let (first, second, stopped) = tokio::join!(vm.wait(), vm.wait(), vm.stop());
    stopped.unwrap();
    assert_eq!((first, second), (VmEnd::Stopped, VmEnd::Stopped));
}

pub async fn a_kernel_that_is_none_is_named(rig: &dyn Rig) {
    let error = match rig.vm_without_kernel() {
        Err(error) => error,
        Ok(vm) => {
            let error = vm.boot().await.unwrap_err();
            ended(&*vm).await;
            error
        }
    };
    let HypervisorError::File { what: "kernel", path, .. } = &error else { panic!("{error:?}") };
    assert!(error.to_string().contains(path.to_str().unwrap()));
}
