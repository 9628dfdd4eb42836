//! The fake, with a task that plays the guest.

use std::time::Duration;

use async_trait::async_trait;
use kata_hypervisor::{
    Hypervisor, HypervisorError, VmConfig, VmEnd,
    fake::{Fake, FakeGuest, FakeState},
};

use crate::{
    guest::{Guest, MARKER},
    suite::Rig,
};

pub struct FakeRig;

fn make(guest: Guest, kernel: &str) -> (Fake, FakeGuest) {
    let (vm, strings) = Fake::new(VmConfig::new(kernel.into(), "/proc/self/exe".into()));
    tokio::spawn(play(guest, strings.clone()));
    (vm, strings)
}

async fn play(guest: Guest, strings: FakeGuest) {
    strings.reached(&FakeState::Running).await;
    strings.print(&format!("{MARKER}\n"));
    match guest {
        Guest::Reset => strings.end(VmEnd::GuestReset),
        Guest::Off => strings.end(VmEnd::GuestOff),
        Guest::Panic => strings.print("Kernel panic - not syncing: sysrq triggered crash\n"),
        Guest::Exit => strings.print(
            "[    1.0] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000300\n",
        ),
        Guest::Probe => strings.print("PROBED\n"),
        Guest::Ticks => {
            while !matches!(strings.state(), FakeState::Ended(_)) {
                if strings.state() == FakeState::Running {
                    strings.print("tick\n");
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

#[async_trait]
impl Rig for FakeRig {
    fn vm(&self, guest: Guest) -> Box<dyn Hypervisor> {
        Box::new(make(guest, "/proc/self/exe").0)
    }

    fn vm_without_kernel(&self) -> Result<Box<dyn Hypervisor>, HypervisorError> {
        Ok(Box::new(make(Guest::Ticks, "/no/such/kernel").0))
    }

    async fn vm_and_killer(&self, guest: Guest) -> (Box<dyn Hypervisor>, Box<dyn FnOnce() + Send>) {
        let (vm, strings) = make(guest, "/proc/self/exe");
        vm.boot().await.unwrap();
        (Box::new(vm), Box::new(move || strings.end(VmEnd::VmmKilled { signal: 9 })))
    }
}
