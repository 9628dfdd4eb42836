//! A guest that answers nobody.
//!
//! Silence is no end. A call that was not answered in its time says so to whoever made it, and the guest may come back. From
//! then on it is asked one question, for as long as that takes, and `state` says that it does not answer. It is given up when it
//! was silent for the time that is configured, of which only those moments count in which its VMM answers promptly and says that
//! the processors run: one that somebody has stopped, frozen or paused, or that gets little of its host, is not held against its guest.

use std::{sync::Arc, time::Duration};

use kata_hypervisor::Hypervisor;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};

use super::Sandbox;
use crate::{agent::Agent, loss::Loss, vm::Vm};

/// What is said of a guest that does.
pub(super) const ANSWERS: &str = "answers";

/// A VMM that gets its share of the host answers within milliseconds.
const PROMPT: Duration = Duration::from_millis(200);

/// How often the VMM is asked; and so long the answer to a question may take before anything is said of it.
const MOMENT: Duration = Duration::from_secs(5);

impl Sandbox {
    /// Sees to a guest that leaves a call unanswered, until the sandbox is lost.
    pub(super) async fn watch_silence(self: Arc<Self>, agent: Agent, vm: Vm) {
        tokio::select! {
            _ = self.lost() => {}
            () = self.listen(&agent, &vm) => {
                let seconds = self.settings.vm.silence_limit.as_secs();
                let why = format!("the guest did not answer for {seconds} s in which its VMM ran it");
                self.give_up(Loss::GuestSilent(why));
            }
        }
    }

    /// Returns when the guest has hung.
    async fn listen(&self, agent: &Agent, vm: &Vm) {
        loop {
            agent.unanswered().await;
            let answer = agent.answer();
            tokio::pin!(answer);
            if timeout(MOMENT, &mut answer).await.is_ok() {
                continue;
            }
            tracing::warn!("the guest does not answer");
            agent.note_silence(true);
            self.guest_note.send_replace("does not answer".into());
            tokio::select! {
                answered = &mut answer => if answered.is_err() {
                    // The connection has ended, of which others tell.
                    std::future::pending::<()>().await;
                },
                () = hung(&**vm, self.settings.vm.silence_limit) => return,
            }
            tracing::info!("the guest answers again");
            agent.note_silence(false);
            self.guest_note.send_replace(ANSWERS.into());
        }
    }

    /// Whether the guest answers, in words; changes as it does.
    pub fn guest_note(&self) -> watch::Receiver<String> {
        self.guest_note.subscribe()
    }
}

/// Returns when a VM has run for so long.
async fn hung(vm: &dyn Hypervisor, limit: Duration) {
    let mut moments = interval(MOMENT);
    moments.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first comes at once.
    moments.tick().await;
    let mut left = limit;
    while !left.is_zero() {
        moments.tick().await;
        if matches!(timeout(PROMPT, vm.runs()).await, Ok(Ok(true))) {
            left = left.saturating_sub(MOMENT);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kata_hypervisor::{Hypervisor, VmConfig, fake::Fake};
    use tokio::time::{Instant, timeout};

    use super::{MOMENT, hung};

    const LIMIT: Duration = Duration::from_secs(60);

    fn vm() -> Fake {
        let file = || "/proc/self/exe".into();
        Fake::new(VmConfig::new(file(), file())).0
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_runs_hangs_when_its_time_is_over() {
        let vm = vm();
        vm.boot().await.unwrap();
        let begun = Instant::now();
        hung(&vm, LIMIT).await;
        let took = begun.elapsed();
        assert!(took >= LIMIT && took < LIMIT + MOMENT, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_in_which_it_is_paused_does_not_count() {
        let vm = vm();
        vm.boot().await.unwrap();
        vm.pause().await.unwrap();
        let waits = hung(&vm, LIMIT);
        tokio::pin!(waits);
        assert!(timeout(LIMIT * 10, &mut waits).await.is_err());
        vm.resume().await.unwrap();
        let resumed = Instant::now();
        waits.await;
        assert!(resumed.elapsed() >= LIMIT - MOMENT, "{:?}", resumed.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_vmm_that_does_not_answer_is_not_held_against_its_guest() {
        let vm = vm();
        assert!(timeout(LIMIT * 10, hung(&vm, LIMIT)).await.is_err());
    }
}
