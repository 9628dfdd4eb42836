//! Whom the host's OOM killer takes first: `oom_score_adj` of monitors, VMM and proxy.
//!
//! A monitor has the score that was asked for its container, as the process that it stands for would have. A VM and its proxy
//! have that of the container which is to be spared most; while nothing runs in them yet they go before everybody else, for it
//! is they who take what others have. None of it ever fails a container: it is a wish, and a host may not let us lower it.

use std::{
    collections::BTreeMap,
    fs, io,
    sync::{Mutex, PoisonError},
};

use super::{Sandbox, pid_number};
use crate::step::{Step, Steps};

/// The first to go.
const FIRST: i16 = 1000;

/// What the containers of a sandbox asked for, by container; none is what this process has itself.
#[derive(Debug, Default)]
pub(super) struct Ranks(Mutex<BTreeMap<String, Option<i16>>>);

impl Ranks {
    /// That of what they all are in.
    fn of_vm(&self, own: i16) -> i16 {
        let ranks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ranks.values().map(|rank| rank.unwrap_or(own)).min().unwrap_or(FIRST)
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Option<i16>>)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Sandbox {
    /// Ranks the monitor of a container, and with a container of this id VMM and proxy: there is none in the guest of what only
    /// stands for the sandbox.
    pub fn rank(&self, id: Option<&str>, monitor: u32, score: Option<i16>) {
        if let Some(score) = score {
            set(&self.steps, monitor, score);
        }
        if let Some(id) = id {
            self.ranks.change(|ranks| _ = ranks.insert(id.to_owned(), score));
            self.rank_vm();
        }
    }

    /// Ranks VMM and proxy by a container fewer.
    pub(super) fn rank_without(&self, id: &str) {
        self.ranks.change(|ranks| _ = ranks.remove(id));
        self.rank_vm();
    }

    /// Ranks VMM and proxy, as far as there are any.
    pub(super) fn rank_vm(&self) {
        let (vm, proxy) = self.processes();
        let score = if self.agent().is_ok() { self.ranks.of_vm(own()) } else { FIRST };
        // The pid of one that has ended is a stranger's.
        let vmm = vm.and_then(|vm| vm.pid()).map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
        let proxy = proxy.filter(|proxy| matches!(proxy.has_ended(), Ok(false)));
        for pid in vmm.into_iter().chain(proxy.map(|proxy| pid_number(&proxy))) {
            set(&self.steps, pid, score);
        }
    }
}

fn own() -> i16 {
    let text = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

fn set(steps: &Steps, pid: u32, score: i16) {
    let write = |score: i16| fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string());
    let ranked = steps.enter(Step::RankProcess).map_err(io::Error::other).and_then(|()| {
        // Who may not spare it more than itself spares it as much.
        write(score).or_else(|error| match own() {
            own if score < own => write(own),
            _ => Err(error),
        })
    });
    if let Err(error) = ranked {
        tracing::debug!(%error, pid, score, "rank a process for the OOM killer");
    }
}

#[cfg(test)]
mod tests {
    use super::{FIRST, Ranks};

    #[test]
    fn a_vm_is_spared_as_the_dearest_of_its_containers_is() {
        let ranks = Ranks::default();
        assert_eq!(ranks.of_vm(0), FIRST);
        ranks.change(|ranks| _ = ranks.insert("cheap".into(), Some(1000)));
        ranks.change(|ranks| _ = ranks.insert("dear".into(), Some(-997)));
        assert_eq!(ranks.of_vm(0), -997);
        ranks.change(|ranks| _ = ranks.insert("dear".into(), None));
        assert_eq!(ranks.of_vm(-5), -5);
        ranks.change(|ranks| _ = ranks.remove("dear"));
        assert_eq!(ranks.of_vm(0), 1000);
    }
}
