//! Promised latencies on machines that are slower than the one that they are promised for.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use crate::{Kata, Root};

/// What a run of nothing takes where nothing else runs, with a debug build under emulation.
const NOMINAL: Duration = Duration::from_millis(1500);

/// Asserts that something took no longer than `promised`, times how much slower a bare run is here than it should be.
pub fn within(took: Duration, promised: Duration, (kata, root): (&Kata, &Root)) {
    static FACTOR: OnceLock<f64> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| {
        let started = Instant::now();
        let bare = kata.shell(root, "exit 0");
        assert_eq!(bare.code, 0, "{}", bare.stderr());
        (started.elapsed().as_secs_f64() / NOMINAL.as_secs_f64()).max(1.0)
    });
    let allowed = promised.mul_f64(*factor);
    assert!(took <= allowed, "took {took:?}, allowed are {promised:?} times {factor:.1}");
}
