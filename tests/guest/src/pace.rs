//! Promised latencies on machines that are slower than the one that they are promised for.

use std::{
    env,
    sync::OnceLock,
    time::{Duration, Instant},
};

use crate::{Kata, Root};

/// What a run of nothing takes where nothing else runs, with a debug build under emulation; `xtask/src/test/kvm.rs` has it
/// too.
const NOMINAL: Duration = Duration::from_millis(1500);

/// How many times as slow as nominal this machine is, where that was measured already.
const SLOWNESS: &str = "KATA_TEST_SLOWNESS";

/// Asserts that something took no longer than `promised`, times how much slower a bare run is here than it should be.
pub fn within(took: Duration, promised: Duration, (kata, root): (&Kata, &Root)) {
    static FACTOR: OnceLock<f64> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| known().unwrap_or_else(|| measure(kata, root)));
    let allowed = promised.mul_f64(*factor);
    assert!(took <= allowed, "took {took:?}, allowed are {promised:?} times {factor:.1}");
}

/// A ceiling that only catches what hangs, on a machine of this slowness.
pub fn ceiling(nominal: Duration) -> Duration {
    nominal.mul_f64(known().unwrap_or(1.0))
}

fn known() -> Option<f64> {
    let text = env::var(SLOWNESS).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{SLOWNESS} is {text:?}")))
}

fn measure(kata: &Kata, root: &Root) -> f64 {
    let started = Instant::now();
    let bare = kata.shell(root, "exit 0");
    assert_eq!(bare.code, 0, "{}", bare.stderr());
    (started.elapsed().as_secs_f64() / NOMINAL.as_secs_f64()).max(1.0)
}
