//! What happened, in order: as a running hash, which tells whether two runs are the same, and the last of it in words.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Events that are kept in words.
const KEPT_MAX: usize = 400;

struct Inner {
    start: Instant,
    hash: u64,
    events: u64,
    kept: VecDeque<String>,
    echo: bool,
}

/// See the module's documentation. Clones share it.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<Inner>>);

/// One step of a running hash: a multiplication and a shift for each eight bytes.
fn mix(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

fn mix_bytes(mut hash: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        hash = mix(hash, u64::from_le_bytes(*word));
    }
    rest.iter().fold(mix(hash, bytes.len() as u64), |hash, byte| mix(hash, u64::from(*byte)))
}

impl Trace {
    /// An empty one that begins now. With `echo` every event is printed when it happens.
    pub fn new(echo: bool) -> Self {
        let kept = VecDeque::with_capacity(KEPT_MAX);
        Self(Arc::new(Mutex::new(Inner { start: Instant::now(), hash: 0, events: 0, kept, echo })))
    }

    /// Something that happens often: it goes into the hash only.
    pub fn note(&self, numbers: [u64; 3], bytes: &[u8]) {
        let mut inner = self.0.lock();
        let at = u64::try_from(inner.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let hash = numbers.iter().fold(mix(inner.hash, at), |hash, number| mix(hash, *number));
        inner.hash = mix_bytes(hash, bytes);
        inner.events += 1;
    }

    /// Something that is worth a line.
    pub fn say(&self, what: fmt::Arguments<'_>) {
        let mut inner = self.0.lock();
        let at = inner.start.elapsed();
        let line = format!("{:>10.6} {what}", at.as_secs_f64());
        inner.hash = mix_bytes(inner.hash, line.as_bytes());
        inner.events += 1;
        if inner.echo {
            println!("{line}");
        }
        if inner.kept.len() == KEPT_MAX {
            inner.kept.pop_front();
        }
        inner.kept.push_back(line);
    }

    /// The hash of all that happened.
    pub fn hash(&self) -> u64 {
        self.0.lock().hash
    }

    /// How much happened.
    pub fn events(&self) -> u64 {
        self.0.lock().events
    }

    /// The last events, in words.
    pub fn last(&self, count: usize) -> Vec<String> {
        let inner = self.0.lock();
        inner.kept.iter().skip(inner.kept.len().saturating_sub(count)).cloned().collect()
    }
}
