//! Weights of version 2 of control groups, from those of version 1: host and guest convert alike.

/// Shares of the processor (2 to 262144) as `cpu.weight` (1 to 10000), as runc 1.3 and crun 1.23 convert them: a curve
/// through both ends and both defaults, 1024 and 100.
pub fn of_cpu_shares(shares: u64) -> u64 {
    const LEAST: u32 = 2;
    const MOST: u32 = 262_144;
    let shares = u32::try_from(shares).unwrap_or(MOST).clamp(LEAST, MOST);
    let doublings = f64::from(shares).log2();
    let exponent = (doublings * doublings + 125.0 * doublings) / 612.0 - 7.0 / 34.0;
    // Within 1 and 10000, both of which come out a rounding error beside themselves.
    10_f64.powf(exponent).ceil().clamp(1.0, 10_000.0) as u64
}

/// A weight of block devices (10 to 1000) as `io.weight` (1 to 10000).
pub fn of_block_io(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9_999 / 990
}

#[cfg(test)]
mod tests {
    use super::{of_block_io, of_cpu_shares};

    #[test]
    fn ends_and_defaults_fit() {
        let shares = [0, 1, 2, 102, 512, 1024, 2048, 262_144, u64::MAX];
        assert_eq!(shares.map(of_cpu_shares), [1, 1, 1, 17, 59, 100, 174, 10_000, 10_000]);
        assert_eq!([0, 10, 505, 1000, u16::MAX].map(of_block_io), [1, 1, 5000, 10_000, 10_000]);
    }
}
