//! Signs of life. The emulated processor can lose an interrupt, and one of this host's processors then sleeps for good,
//! with whatever it had to run: the outer host can only know when it hears nothing more.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::report::Report;

/// Between two beats of a processor.
const BEAT: Duration = Duration::from_secs(1);
/// Beats between two signs.
const BEATS: u32 = 5;

/// Gives a sign every few seconds for as long as this process lives, each time that all processors have gone on.
pub fn start(mut report: Report) -> Result<()> {
    let processors = thread::available_parallelism().context("count the processors")?.get();
    let beats: Arc<[AtomicU64]> = (0..processors).map(|_| AtomicU64::new(0)).collect();
    for processor in 0..processors {
        let beats = Arc::clone(&beats);
        spawn(format!("beat-{processor}"), move || beat(processor, &beats[processor]))?;
    }
    spawn("pulse".to_owned(), move || {
        let mut before = vec![0; processors];
        loop {
            thread::sleep(BEAT * BEATS);
            let now: Vec<u64> = beats.iter().map(|beat| beat.load(Ordering::Relaxed)).collect();
            let all = now.iter().zip(&before).all(|(now, before)| now > before);
            // Nobody listens any more when that fails.
            if all && report.alive().is_err() {
                return;
            }
            before = now;
        }
    })
}

/// Counts on one processor, where it stays.
fn beat(processor: usize, count: &AtomicU64) {
    let mut own = CpuSet::new();
    own.set(processor);
    if let Err(error) = sched_setaffinity(None, &own) {
        eprintln!("nested host: stay on processor {processor}: {}", io::Error::from(error));
        return;
    }
    loop {
        thread::sleep(BEAT);
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new().name(name).spawn(work).context("start a thread").map(drop)
}
