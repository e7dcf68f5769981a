//! What an output is missing. The log says which tasks were forgotten before an output was known to have them; which of
//! them it really lacks, or got back since, only its store knows, so that is asked. What is above the horizon cannot be
//! missing for good, but for tasks that reach back behind it; so a network that forgets nothing asks nothing.

use std::sync::Arc;
use std::time::Duration;

use lockstep_ledger::Head;
use lockstep_outputs::publisher::Handle;
use lockstep_outputs::{Output, OutputError};
use lockstep_types::{OutputName, TaskNumber};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// How often it is looked whether more was forgotten.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How often a gap is looked at again: another node may have filled it. Also the rest after a store that did not answer.
const AGAIN_INTERVAL: Duration = Duration::from_secs(30);
/// Numbers that one question to a store covers, so that none takes long.
const NUMBERS_MAX: u64 = 1 << 20;
/// Most gaps of one output; what lies behind them waits until they are filled.
const GAPS_MAX: usize = 1_024;

/// First and last number of tasks that are missing.
pub(crate) type Range = (TaskNumber, TaskNumber);

/// What a store was found to lack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Everything before this number was looked at.
    pub next: TaskNumber,
    /// What is missing there, ascending.
    pub gaps: Vec<Range>,
}

impl Seen {
    /// All that is missing: what was seen, and beyond that what is said to be missing.
    pub fn with(&self, said: impl IntoIterator<Item = Range>) -> Vec<Range> {
        let beyond = said.into_iter().filter(|(_, last)| *last >= self.next);
        let mut all = self.gaps.clone();
        all.extend(beyond.map(|(first, last)| (first.max(self.next), last)));
        merged(all)
    }
}

/// The same numbers in as few ranges as possible, ascending.
fn merged(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut out: Vec<Range> = Vec::new();
    for (first, last) in ranges {
        match out.last_mut() {
            Some((_, end)) if first <= end.next() => *end = last.max(*end),
            _ => out.push((first, last)),
        }
    }
    out
}

/// How many tasks these are.
pub(crate) fn count(ranges: &[Range]) -> u64 {
    ranges.iter().map(|(first, last)| (last.0 + 1).saturating_sub(first.0)).sum()
}

/// The last number that may be missing for good, where tasks from `kept` on are kept. The first of these may have begun
/// with messages that are not: the publisher skips such a task when it comes to it, and says so.
fn lost_until(kept: TaskNumber, skipped: Option<Range>) -> Option<TaskNumber> {
    let forgotten = kept.0.checked_sub(1).map(TaskNumber);
    forgotten.max(skipped.map(|(_, last)| last))
}

/// What a store lacks from `first` to `last`, as far as [`GAPS_MAX`] allows, and the number behind what was looked at.
pub(crate) async fn look(output: &dyn Output, first: TaskNumber, last: TaskNumber) -> Result<Seen, OutputError> {
    let mut seen = Seen { next: first, gaps: Vec::new() };
    while seen.next <= last && seen.gaps.len() < GAPS_MAX {
        let end = last.min(TaskNumber(seen.next.0.saturating_add(NUMBERS_MAX - 1)));
        match output.first_gap(seen.next, end).await? {
            Some(gap) => {
                seen.next = gap.1.next();
                seen.gaps.push(gap);
            }
            None => seen.next = end.next(),
        }
    }
    seen.gaps = merged(seen.gaps);
    Ok(seen)
}

/// Looks after the gaps of one output.
pub(crate) struct GapWatch {
    pub name: OutputName,
    pub output: Arc<dyn Output>,
    pub head: watch::Receiver<Option<Head>>,
    /// What feeds it.
    pub publisher: Handle,
    /// Rung when gaps may have been filled.
    pub bell: Arc<Notify>,
    pub seen: watch::Sender<Seen>,
}

impl GapWatch {
    /// Looks again and again until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let looking = async {
            let mut looked_at = Instant::now();
            let mut again = false;
            loop {
                let rest = match self.look_on(again).await {
                    Ok(()) => LOOK_INTERVAL,
                    Err(error) => {
                        // It is for the publisher to tell the operator.
                        tracing::debug!(output = self.name.as_str(), %error, "gaps cannot be looked for");
                        AGAIN_INTERVAL
                    }
                };
                if again {
                    looked_at = Instant::now();
                }
                let rung = timeout(rest, self.bell.notified()).await.is_ok();
                again = rung || looked_at.elapsed() >= AGAIN_INTERVAL;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = looking => {}
        }
    }

    /// Looks at what was forgotten since, and `again` at what was missing.
    async fn look_on(&self, again: bool) -> Result<(), OutputError> {
        let Seen { mut next, mut gaps } = self.seen.borrow().clone();
        let kept = self.head.borrow().as_ref().map_or(TaskNumber(0), |head| head.horizon.task_number);
        let until = lost_until(kept, self.publisher.status().newest_gap);
        if again {
            let known = std::mem::take(&mut gaps);
            for (first, last) in known {
                gaps.extend(look(&*self.output, first, last).await?.gaps);
            }
        }
        // The publisher has passed the store's last task, and so has skipped what it lacks below.
        if let Some(until) = until.filter(|until| next <= *until)
            && let Some(last) = self.output.last().await?
        {
            let found = look(&*self.output, next, last.min(until)).await?;
            next = found.next;
            gaps.extend(found.gaps);
        }
        let seen = Seen { next, gaps: merged(gaps) };
        self.seen.send_if_modified(|before| std::mem::replace(before, seen.clone()) != seen);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(pairs: &[(u64, u64)]) -> Vec<Range> {
        pairs.iter().map(|(first, last)| (TaskNumber(*first), TaskNumber(*last))).collect()
    }

    #[test]
    fn what_the_publisher_skipped_is_looked_at_although_it_is_behind_the_horizon() {
        let until = |kept, skipped: Option<(u64, u64)>| {
            let skipped = skipped.map(|(first, last)| (TaskNumber(first), TaskNumber(last)));
            lost_until(TaskNumber(kept), skipped).map(|last| last.0)
        };
        assert_eq!(until(0, None), None);
        assert_eq!(until(149, None), Some(148));
        assert_eq!(until(149, Some((11, 148))), Some(148));
        assert_eq!(until(149, Some((149, 149))), Some(149));
        assert_eq!(until(200, Some((149, 149))), Some(199));
    }

    #[test]
    fn what_the_log_says_counts_only_where_the_store_was_not_looked_at() {
        let seen = Seen { next: TaskNumber(50), gaps: ranges(&[(3, 5), (20, 49)]) };
        assert_eq!(seen.with([]), seen.gaps);
        assert_eq!(seen.with(ranges(&[(1, 10), (15, 49)])), seen.gaps);
        assert_eq!(seen.with(ranges(&[(1, 60), (60, 70)])), ranges(&[(3, 5), (20, 70)]));
        assert_eq!(count(&seen.gaps), 33);
    }
}
