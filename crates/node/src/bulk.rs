//! Requests that came together: several verification threads share the signature checks, and whoever finishes last
//! hands all of them to the pool, in their order.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lockstep_identity::DeviceRequest;
use lockstep_types::VerifiedMessage;
use parking_lot::Mutex;

use crate::limits::VERIFY_TOGETHER_MAX;
use crate::verify::Asker;

/// A request, and who hears what becomes of it.
pub(crate) type Asked = (DeviceRequest, Asker);
/// The same once its evidence holds.
pub(crate) type Proved = (Arc<VerifiedMessage>, Asker);

/// See the module's documentation.
pub(crate) struct Bulk {
    /// Pieces of at most [`VERIFY_TOGETHER_MAX`] requests, each taken by one thread.
    pieces: Vec<Mutex<Vec<Asked>>>,
    /// What came out of each, in its place.
    proved: Mutex<Vec<Vec<Proved>>>,
    next: AtomicUsize,
    left: AtomicUsize,
}

impl Bulk {
    pub fn new(requests: Vec<Asked>) -> Self {
        let mut pieces = Vec::with_capacity(requests.len().div_ceil(VERIFY_TOGETHER_MAX));
        let mut requests = requests.into_iter();
        loop {
            let piece: Vec<Asked> = requests.by_ref().take(VERIFY_TOGETHER_MAX).collect();
            if piece.is_empty() {
                break;
            }
            pieces.push(Mutex::new(piece));
        }
        let proved = pieces.iter().map(|_| Vec::new()).collect();
        let left = AtomicUsize::new(pieces.len());
        Self { pieces, proved: Mutex::new(proved), next: AtomicUsize::new(0), left }
    }

    /// How many threads can work on it.
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Checks pieces while there are any. Returns all that holds, in order, to the one who finished the last piece.
    pub fn work(&self, check: impl Fn(Asked) -> Option<Proved>) -> Option<Vec<Proved>> {
        let mut finished = None;
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = self.pieces.get(index) else { return finished };
            let asked = mem::take(&mut *piece.lock());
            let proved = asked.into_iter().filter_map(&check).collect();
            self.proved.lock()[index] = proved;
            if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                finished = Some(mem::take(&mut *self.proved.lock()).into_iter().flatten().collect());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lockstep_types::{ProjectId, SigningKey};
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn whoever_finishes_last_gets_all_in_order_and_nobody_else_does() {
        let key = SigningKey::from_bytes([9; 32]).unwrap();
        let request = |n: usize| DeviceRequest::new(ProjectId(1), "1".into(), n.to_string(), &[]).unwrap();
        for count in [0, 1, VERIFY_TOGETHER_MAX, 1_000] {
            let bulk = Bulk::new((0..count).map(|n| (request(n), Asker::new(Instant::now()).0)).collect());
            assert_eq!(bulk.pieces(), count.div_ceil(VERIFY_TOGETHER_MAX));
            // Every third one does not hold.
            let check = |(request, asker): Asked| {
                let holds = request.data.parse::<usize>().unwrap() % 3 != 0;
                holds.then(|| (Arc::new(request.vouch(&key)), asker))
            };
            let results: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| bulk.work(check))).collect();
                threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(results.len(), usize::from(count > 0));
            let data: Vec<String> = results
                .into_iter()
                .flatten()
                .map(|(message, _)| String::from_utf8(message.message().data.to_vec()).unwrap())
                .collect();
            let expected: Vec<String> = (0..count).filter(|n| n % 3 != 0).map(|n| n.to_string()).collect();
            assert_eq!(data, expected);
        }
    }
}
