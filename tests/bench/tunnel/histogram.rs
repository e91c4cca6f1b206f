//! Latencies in buckets of at most 1.6 % width, so that recording one costs an increment.

const SUB_BITS: u32 = 6;
const SUB: usize = 1 << SUB_BITS;

/// Durations in nanoseconds.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { buckets: vec![0; SUB * (64 - SUB_BITS as usize + 1)], count: 0 }
    }

    pub(crate) fn record(&mut self, nanos: u64) {
        self.buckets[index(nanos)] += 1;
        self.count += 1;
    }

    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// The smallest recorded duration that `share` of all do not exceed, to the width of a bucket.
    pub(crate) fn quantile(&self, share: f64) -> u64 {
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return lower_bound(index);
            }
        }
        0
    }
}

/// Linear up to `SUB`, then `SUB` buckets to each power of two.
fn index(nanos: u64) -> usize {
    let shift = (u64::BITS - nanos.leading_zeros()).saturating_sub(SUB_BITS + 1);
    let high = (nanos >> shift) as usize;
    shift as usize * SUB + high
}

fn lower_bound(index: usize) -> u64 {
    if index < 2 * SUB {
        return index as u64;
    }
    let shift = index / SUB - 1;
    ((index - shift * SUB) as u64) << shift
}
