//! Every driver against one suite, and what is true of QEMU alone.
//!
//! Own main: the jail's launcher must be a process with one thread, and this binary is also that launcher.
//! `KATA_TEST_KERNEL` names a guest kernel; without one the tests that boot print SKIP.

// Test code, which clippy cannot see: it has a main of its own.
#![allow(clippy::unwrap_used)]

mod devices;
mod fake;
mod guest;
mod qemu;
mod suite;

use std::{env, io::Write, path::Path, process::ExitCode, time::Instant};

use kata_hypervisor::{MachineType, jail};

use fake::FakeRig;
use qemu::QemuRig;
use suite::Rig;

/// The QEMU under test.
const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// First argument of the jail's launcher.
const LAUNCHER: &str = "vmm-jail";

/// First argument of a process that owns a VM.
const OWNER: &str = "own-a-vm";

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("stdout takes a line");
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let first = arguments.first().map(String::as_str);
    if first == Some(LAUNCHER) {
        let Err(error) = jail::enter_and_exec();
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        eprintln!("{error}{}", source.unwrap_or_default());
        return ExitCode::FAILURE;
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    if first == Some(OWNER) {
        let q35 = arguments.get(1).is_some_and(|machine| machine == "q35");
        let machine = if q35 { MachineType::Q35 } else { MachineType::Microvm };
        runtime.block_on(qemu::own(&QemuRig { machine, jailed: true }));
        return ExitCode::SUCCESS;
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-')).cloned();
    runtime.block_on(all(&Runner { filter: filter.unwrap_or_default() }));
    ExitCode::SUCCESS
}

struct Runner {
    filter: String,
}

impl Runner {
    async fn run(&self, name: &str, test: impl Future<Output = ()>) {
        if name.contains(&self.filter) {
            let start = Instant::now();
            test.await;
            say(&format!("ok   {name} ({:.2?})", start.elapsed()));
        }
    }
}

async fn all(runner: &Runner) {
    conform(runner, "fake", &FakeRig).await;
    if let Err(reason) = &*guest::IMAGE {
        return say(&format!("SKIP QEMU: {reason}"));
    }
    runner.run("verify", qemu::this_qemu_has_all_that_is_used()).await;
    for (name, machine) in [("microvm", MachineType::Microvm), ("q35", MachineType::Q35)] {
        let jailed = QemuRig { machine, jailed: true };
        conform(runner, &format!("{name}-jailed"), &jailed).await;
        alone(runner, name, &jailed).await;
        runner
            .run(&format!("{name}: devices_are_what_was_configured"), devices::work(&jailed))
            .await;
        match env::var_os("KATA_TEST_PROXY") {
            Some(proxy) => {
                let test = devices::work_over_vhost_user(&jailed, Path::new(&proxy));
                runner.run(&format!("{name}: vhost_user_devices_work"), test).await;
            }
            None => say("SKIP vhost-user: KATA_TEST_PROXY names no proxy"),
        }
        // Minutes, and no claim: by name only.
        if runner.filter.contains("timings") {
            runner.run(&format!("{name}: timings"), qemu::timings(machine)).await;
        }
    }
}

async fn conform(runner: &Runner, name: &str, rig: &dyn Rig) {
    macro_rules! claims {
        ($($claim:ident)*) => {
            $(runner.run(&format!("{name}: {}", stringify!($claim)), suite::$claim(rig)).await;)*
        };
    }
    claims! {
        a_stopped_vm_says_so_for_ever
        a_vm_boots_once
        a_vm_can_be_stopped_before_it_boots
        a_paused_vm_does_nothing_until_it_is_resumed
        a_guest_ends_in_its_own_way
        a_killed_vmm_is_no_stop
        a_killed_vmm_is_known_while_paused
        everybody_who_waits_hears_the_end
        a_kernel_that_is_none_is_named
    }
}

async fn alone(runner: &Runner, name: &str, rig: &QemuRig) {
    macro_rules! claims {
        ($($claim:ident)*) => {
            $(runner.run(&format!("{name}: {}", stringify!($claim)), qemu::$claim(rig)).await;)*
        };
    }
    claims! {
        the_jail_holds_nothing_but_qemu
        qemus_own_words_are_told
        a_launcher_that_fails_says_why
        a_terminated_vmm_is_a_killed_one
        a_dropped_vm_leaves_no_process
        a_vmm_ends_with_its_owner
        a_panicked_guest_that_stays_is_ended
    }
}
