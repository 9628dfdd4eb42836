//! How a sandbox was lost, decided once from the ends of VMM and proxy.

use std::io;

use kata_hypervisor::VmEnd;
use kata_sys::spawn::Exit;

use crate::agent::presentable;

/// Signals that are sent to end a process; all others tell of a mistake in it.
const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// How a sandbox was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loss {
    /// The guest kernel panicked; its last words.
    GuestPanic(String),
    /// It did so because it was out of memory.
    GuestOom(String),
    /// The guest restarted itself or switched itself off.
    GuestReset(String),
    /// The guest did not end what it was told to kill, so we ended the VM.
    GuestStuck(String),
    /// The guest hung: it answered nobody for as long as was configured, so we ended the VM.
    GuestSilent(String),
    /// The agent died or closed its connection.
    Agent(String),
    /// Somebody killed the VMM.
    Vmm(String),
    /// The VMM died by itself.
    VmmCrash(String),
    /// The host's OOM killer killed one of them.
    HostOom(String),
    /// Somebody killed the proxy.
    Proxy(String),
    /// The proxy died by itself.
    ProxyCrash(String),
    /// We stopped it.
    Stopped,
}

impl Loss {
    /// For people.
    pub fn describe(&self) -> String {
        match self {
            Self::GuestPanic(text) => format!("guest kernel panicked: {text}"),
            Self::Agent(text) => format!("agent was lost: {text}"),
            Self::GuestOom(text) => format!("guest was out of memory: {text}"),
            Self::GuestReset(text) | Self::GuestStuck(text) | Self::GuestSilent(text) => {
                text.clone()
            }
            Self::Vmm(text) | Self::VmmCrash(text) => format!("VMM ended: {text}"),
            Self::HostOom(text) => format!("the host was out of memory: {text}"),
            Self::Proxy(text) | Self::ProxyCrash(text) => format!("proxy ended: {text}"),
            Self::Stopped => "it was stopped".into(),
        }
    }
}

/// Which of the two began it, once both are known or the other one's time is over.
pub(crate) fn decide(vm: VmEnd, proxy: Option<&io::Result<Exit>>) -> Loss {
    match vm {
        VmEnd::Stopped => Loss::Stopped,
        VmEnd::GuestPanic(text) if is_out_of_memory(&text) => Loss::GuestOom(presentable(&text)),
        VmEnd::GuestPanic(text) => Loss::GuestPanic(presentable(&text)),
        end @ (VmEnd::GuestReset | VmEnd::GuestOff) => Loss::GuestReset(end.to_string()),
        VmEnd::AgentDied(text) => Loss::Agent(presentable(&text)),
        end @ VmEnd::VmmKilled { signal: SIGKILL | SIGTERM | SIGINT } => Loss::Vmm(end.to_string()),
        end @ VmEnd::VmmKilled { .. } => Loss::VmmCrash(end.to_string()),
        // A proxy that loses its VMM exits in order; one that dies may take its VMM along.
        end => match proxy {
            None | Some(Ok(Exit::Code(0))) => Loss::VmmCrash(end.to_string()),
            Some(proxy) => of_proxy(proxy),
        },
    }
}

/// The proxy ended while its VMM lived.
pub(crate) fn of_proxy(exit: &io::Result<Exit>) -> Loss {
    match exit {
        Ok(Exit::Code(code)) => Loss::ProxyCrash(format!("proxy exited with code {code}")),
        Ok(Exit::Signal(signal @ (SIGKILL | SIGTERM | SIGINT))) => {
            Loss::Proxy(format!("proxy was killed by signal {signal}"))
        }
        Ok(Exit::Signal(signal)) => {
            Loss::ProxyCrash(format!("proxy was killed by signal {signal}"))
        }
        Err(error) => Loss::Proxy(format!("proxy ended unseen: {error}")),
    }
}

/// What the OOM killer of the host has to do with a loss: a kill without one is somebody's.
pub(crate) fn by_host(loss: Loss, oom_kills: u64) -> Loss {
    match loss {
        Loss::Vmm(text) | Loss::Proxy(text) if oom_kills > 0 => Loss::HostOom(text),
        loss => loss,
    }
}

/// The kernel's words when it has nobody left to kill.
fn is_out_of_memory(panic: &str) -> bool {
    ["Out of memory", "out of memory", "deadlocked on memory"].iter().any(|w| panic.contains(w))
}

#[cfg(test)]
mod tests {
    use kata_hypervisor::VmEnd;
    use kata_sys::spawn::Exit;

    use super::{Loss, by_host, decide, of_proxy};

    fn exited(code: i32) -> VmEnd {
        VmEnd::VmmExited { code, stderr: String::new() }
    }

    #[test]
    fn a_killed_vmm_is_the_cause_whatever_the_proxy_did_then() {
        let killed = VmEnd::VmmKilled { signal: 9 };
        for proxy in [None, Some(Ok(Exit::Code(0))), Some(Ok(Exit::Code(1)))] {
            assert!(matches!(decide(killed.clone(), proxy.as_ref()), Loss::Vmm(_)));
        }
    }

    #[test]
    fn who_dies_of_a_mistake_of_its_own_has_crashed() {
        let crashed = VmEnd::VmmKilled { signal: 11 };
        assert!(matches!(decide(crashed, None), Loss::VmmCrash(_)));
        assert!(matches!(decide(exited(1), None), Loss::VmmCrash(_)));
        assert!(matches!(of_proxy(&Ok(Exit::Signal(6))), Loss::ProxyCrash(_)));
        assert!(matches!(of_proxy(&Ok(Exit::Code(1))), Loss::ProxyCrash(_)));
    }

    #[test]
    fn a_kill_by_the_hosts_oom_killer_is_nobodys() {
        let killed = || decide(VmEnd::VmmKilled { signal: 9 }, None);
        assert!(matches!(by_host(killed(), 1), Loss::HostOom(_)));
        assert!(matches!(by_host(killed(), 0), Loss::Vmm(_)));
        let panic = Loss::GuestPanic("x".into());
        assert_eq!(by_host(panic.clone(), 1), panic);
    }

    #[test]
    fn what_a_guest_does_to_itself_is_told_apart() {
        assert!(matches!(decide(VmEnd::GuestReset, None), Loss::GuestReset(_)));
        assert!(matches!(decide(VmEnd::GuestOff, Some(&Ok(Exit::Code(0)))), Loss::GuestReset(_)));
        let panic = VmEnd::GuestPanic("Kernel panic: System is deadlocked on memory".into());
        assert!(matches!(decide(panic, None), Loss::GuestOom(_)));
    }

    #[test]
    fn a_proxy_that_was_killed_takes_its_vmm_along() {
        assert!(matches!(decide(exited(1), Some(&Ok(Exit::Signal(9)))), Loss::Proxy(_)));
    }

    #[test]
    fn a_proxy_that_ends_in_order_followed_its_vmm() {
        assert!(matches!(decide(exited(1), Some(&Ok(Exit::Code(0)))), Loss::VmmCrash(_)));
    }

    #[test]
    fn what_the_guest_said_counts_more_than_how_the_processes_went() {
        let panic = VmEnd::GuestPanic("Oops".into());
        let proxy = Ok(Exit::Signal(9));
        assert_eq!(decide(panic, Some(&proxy)), Loss::GuestPanic("Oops".into()));
        let died = VmEnd::AgentDied("init".into());
        assert_eq!(decide(died, Some(&proxy)), Loss::Agent("init".into()));
    }
}
