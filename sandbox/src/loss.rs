//! How a sandbox was lost, decided once from the ends of VMM and proxy.

use std::io;

use kata_hypervisor::VmEnd;
use kata_sys::spawn::Exit;

use crate::agent::presentable;

/// How a sandbox was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loss {
    /// The guest kernel panicked; its last words.
    GuestPanic(String),
    /// The agent died or closed its connection.
    Agent(String),
    /// The VMM died by itself or was killed.
    Vmm(String),
    /// The proxy died by itself or was killed.
    Proxy(String),
    /// We stopped it.
    Stopped,
}

impl Loss {
    /// For people.
    pub fn describe(&self) -> String {
        match self {
            Self::GuestPanic(text) => format!("guest kernel panicked: {text}"),
            Self::Agent(text) => format!("agent was lost: {text}"),
            Self::Vmm(text) => format!("VMM ended: {text}"),
            Self::Proxy(text) => format!("proxy ended: {text}"),
            Self::Stopped => "it was stopped".into(),
        }
    }
}

/// Which of the two began it, once both are known or the other one's time is over.
pub(crate) fn decide(vm: VmEnd, proxy: Option<&io::Result<Exit>>) -> Loss {
    match vm {
        VmEnd::Stopped => Loss::Stopped,
        VmEnd::GuestPanic(text) => Loss::GuestPanic(presentable(&text)),
        VmEnd::AgentDied(text) => Loss::Agent(presentable(&text)),
        end @ VmEnd::VmmKilled { .. } => Loss::Vmm(end.to_string()),
        // A proxy that loses its VMM exits in order; one that dies may take its VMM along.
        end => match proxy {
            None | Some(Ok(Exit::Code(0))) => Loss::Vmm(end.to_string()),
            Some(proxy) => of_proxy(proxy),
        },
    }
}

/// The proxy ended while its VMM lived.
pub(crate) fn of_proxy(exit: &io::Result<Exit>) -> Loss {
    Loss::Proxy(match exit {
        Ok(Exit::Code(code)) => format!("proxy exited with code {code}"),
        Ok(Exit::Signal(signal)) => format!("proxy was killed by signal {signal}"),
        Err(error) => format!("proxy ended unseen: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use kata_hypervisor::VmEnd;
    use kata_sys::spawn::Exit;

    use super::{Loss, decide};

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
    fn a_proxy_that_was_killed_takes_its_vmm_along() {
        assert!(matches!(decide(exited(1), Some(&Ok(Exit::Signal(9)))), Loss::Proxy(_)));
    }

    #[test]
    fn a_proxy_that_ends_in_order_followed_its_vmm() {
        assert!(matches!(decide(exited(1), Some(&Ok(Exit::Code(0)))), Loss::Vmm(_)));
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
