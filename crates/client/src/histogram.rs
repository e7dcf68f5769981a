//! Latencies in buckets whose width is 1/64 of their value: fixed memory, errors below 1.6 %.

/// Values below this have a bucket each; above, each doubling has as many.
const STEPS: usize = 64;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Doublings above [`STEPS`] in 32 bits of microseconds (71 minutes).
const BUCKETS: usize = (32 - STEP_BITS as usize + 1) * STEPS;

/// Counts of microseconds.
#[derive(Clone)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max_micros: u32,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max_micros: 0 }
    }

    pub(crate) fn record(&mut self, elapsed: std::time::Duration) {
        let micros = u32::try_from(elapsed.as_micros()).unwrap_or(u32::MAX);
        self.counts[bucket(micros)] += 1;
        self.total += 1;
        self.max_micros = self.max_micros.max(micros);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, theirs)| *mine += theirs);
        self.total += other.total;
        self.max_micros = self.max_micros.max(other.max_micros);
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    pub(crate) fn max_ms(&self) -> f64 {
        f64::from(self.max_micros) / 1000.0
    }

    /// The value that `percent` of the recorded ones do not exceed; 0 when there is none.
    pub(crate) fn percentile_ms(&self, percent: u64) -> f64 {
        let rank = (self.total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return f64::from(upper_bound(index).min(self.max_micros)) / 1000.0;
            }
        }
        0.0
    }
}

fn bucket(micros: u32) -> usize {
    let shift = micros.max(1).ilog2().saturating_sub(STEP_BITS);
    // Above the first row, the shifted value lies in STEPS..2*STEPS.
    shift as usize * STEPS + (micros >> shift) as usize
}

fn upper_bound(index: usize) -> u32 {
    let shift = (index / STEPS).saturating_sub(1);
    let step = (index - shift * STEPS) as u64;
    u32::try_from(((step + 1) << shift) - 1).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_value_lies_in_the_bucket_whose_bound_is_close_above() {
        for micros in (0..100_000).chain((0..32).map(|b| 1 << b)).chain([u32::MAX]) {
            let bound = upper_bound(bucket(micros));
            assert!(bound >= micros && u64::from(bound - micros) <= u64::from(micros) / 64, "{micros} {bound}");
            assert!(bucket(micros) < BUCKETS);
        }
    }

    #[test]
    fn percentiles_are_close_to_the_exact_ones() {
        let (mut low, mut high) = (Histogram::new(), Histogram::new());
        assert_eq!(low.percentile_ms(99), 0.0);
        (1..=500).for_each(|n| low.record(Duration::from_micros(n * 10)));
        (501..=1000).for_each(|n| high.record(Duration::from_micros(n * 10)));
        low.merge(&high);
        assert_eq!((low.total(), low.max_ms()), (1000, 10.0));
        assert!((low.percentile_ms(50) - 5.0).abs() < 0.1);
        assert!((low.percentile_ms(99) - 9.9).abs() < 0.2);
    }
}
