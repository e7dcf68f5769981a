//! What is forgotten, and when. The leader proposes the horizon; every node then removes what lies below it from its
//! disk, but waits for its own outputs while there is room.

use lockstep_consensus::{Consensus, ReadError, Role, StateStore};
use lockstep_ledger::{Command, Head, Horizon};
use lockstep_outputs::Handle;
use lockstep_types::{Height, OutputName, Sequence, TaskNumber, TimeMs};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::Scope;
use crate::held_back::{HeldBack, Needed};
use crate::limits::{CONTROL_TIMEOUT, CUT_SETTLES_MAX, READ_BYTES_MAX, RETENTION_INTERVAL};
use crate::reach::Reach;
use crate::tracker::Tracker;

/// A cut goes this far below the limit, so that there is not one at every look: nine tenths.
const CUT_TO_TENTHS: u64 = 9;

/// Batches that are read together for how far back their tasks reach.
const BATCHES_LOOKED_AT: usize = 256;
/// How often that is done before others have their turn.
const PAGES_LOOKED_AT: usize = 8;

/// See the module's documentation.
pub(crate) struct Retention {
    pub state: StateStore,
    pub consensus: Consensus,
    pub tracker: std::sync::Arc<Tracker>,
    pub limits: lockstep_types::Retention,
    /// Outputs that this node feeds.
    pub outputs: Vec<(Scope, OutputName, Handle)>,
    pub first_task: TaskNumber,
    /// What keeps batches from being forgotten.
    pub held_back: watch::Sender<Option<HeldBack>>,
}

/// The oldest height to keep so that about `keep` of `bytes` are left, if batches are of like size.
fn cut(oldest: Height, head: Height, bytes: u64, keep: u64) -> Height {
    let batches = u128::from(head.0.saturating_sub(oldest.0));
    let gone = batches * u128::from(bytes.saturating_sub(keep)) / u128::from(bytes.max(1));
    Height(oldest.0 + u64::try_from(gone).unwrap_or(0))
}

/// The newest cut by size. The disk gives bytes back when files are rewritten, some time after what is in them was
/// forgotten: to cut again before that would forget more and more for the same bytes.
#[derive(Debug, Clone, Copy)]
struct Settling {
    at: Instant,
    /// Bytes on disk then, and bytes that should be left.
    bytes: u64,
    keep: u64,
}

impl Settling {
    /// Whether the cut has had its effect, at least half of it, or never will.
    fn is_over(&self, bytes: u64, now: Instant) -> bool {
        bytes <= self.keep + self.bytes.saturating_sub(self.keep) / 2
            || now.saturating_duration_since(self.at) > CUT_SETTLES_MAX
    }
}

/// What one look knows of those before it.
#[derive(Default)]
struct Memory {
    removed: Horizon,
    settling: Option<Settling>,
    /// What outputs of the network need that are behind.
    reach: Reach,
    /// The same for this node's own, which may need what the log has forgotten.
    own_reach: Reach,
}

impl Retention {
    /// Looks again and again until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut tick = interval(RETENTION_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut memory = Memory::default();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            if self.limits.is_everything() {
                continue;
            }
            let Some(head) = self.tracker.head().borrow().clone() else { continue };
            if self.consensus.status().borrow().role == Role::Leader {
                self.propose(&head, &mut memory).await;
            }
            if let Err(error) = self.remove(&head, &mut memory) {
                tracing::error!(%error, "what is forgotten cannot be removed from the disk");
            }
            match self.held_back(&head, &mut memory.reach) {
                Ok(held) => {
                    self.held_back.send_if_modified(|known| std::mem::replace(known, held.clone()) != held);
                }
                Err(error) => tracing::error!(%error, "the state cannot be read"),
            }
        }
    }

    async fn propose(&self, head: &Head, memory: &mut Memory) {
        match self.horizon(head, memory) {
            Ok(Some(oldest)) => {
                let proposal = self.consensus.propose(Command::encode_horizon(oldest));
                match timeout(CONTROL_TIMEOUT, proposal).await {
                    Ok(Ok(())) => tracing::info!(oldest_height = %oldest, "older batches are forgotten"),
                    Ok(Err(error)) => tracing::debug!(%error, "a horizon was not committed"),
                    Err(_) => {}
                }
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "the state cannot be read"),
        }
    }

    /// The oldest height to keep from now on, if that is news.
    fn horizon(&self, head: &Head, memory: &mut Memory) -> Result<Option<Height>, ReadError> {
        let oldest = Height(head.horizon.height.0.max(1));
        let bytes = self.state.bytes_on_disk();
        let (mut wanted, limits, now) = (oldest, &self.limits, Instant::now());
        let may_cut = memory.settling.is_none_or(|cut| cut.is_over(bytes, now));
        let mut by_size = None;
        let mut cut_to = |limit: u64| {
            let keep = limit / 10 * CUT_TO_TENTHS;
            by_size = Some(Settling { at: now, bytes, keep });
            cut(oldest, head.height, bytes, keep)
        };
        if limits.age_ms > 0 {
            wanted = wanted.max(self.first_after(
                oldest,
                head.height,
                TimeMs(self.tracker.now().0.saturating_sub(limits.age_ms)),
            )?);
        }
        if limits.bytes > 0 && bytes > limits.bytes && may_cut {
            wanted = wanted.max(cut_to(limits.bytes));
        }
        wanted = wanted.min(self.needed_by_outputs(head, &mut memory.reach)?);
        if limits.hard_bytes > 0 && bytes > limits.hard_bytes && may_cut {
            wanted = wanted.max(cut_to(limits.hard_bytes));
        }
        wanted = wanted.min(head.final_height);
        if let Some(sequence) = self.tracker.oldest_open_message() {
            let open = self.height_of(sequence)?.unwrap_or(oldest);
            if open < wanted {
                self.make_room(wanted)?;
            }
            wanted = wanted.min(open);
        }
        if wanted <= oldest {
            return Ok(None);
        }
        memory.settling = by_size.or(memory.settling);
        Ok(Some(wanted))
    }

    /// Rules of projects may keep groups open for longer than anything is kept: those end here.
    fn make_room(&self, wanted: Height) -> Result<(), ReadError> {
        let batch = self.state.batch(wanted)?;
        let closed = batch.map_or(0, |batch| self.tracker.close_before(batch.header.first_sequence));
        if closed > 0 {
            tracing::info!(closed, oldest_height = %wanted, "open groups of projects end, so that older batches can be forgotten");
        }
        Ok(())
    }

    fn height_of(&self, sequence: Sequence) -> Result<Option<Height>, ReadError> {
        Ok(self.state.batch_of_message(sequence)?.map(|batch| batch.header.height))
    }

    /// The first height whose batch is not before `time`.
    fn first_after(&self, oldest: Height, head: Height, time: TimeMs) -> Result<Height, ReadError> {
        let (mut low, mut high) = (oldest.0, head.0 + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.state.batch(Height(middle))? {
                Some(batch) if batch.header.time_ms < time => low = middle + 1,
                _ => high = middle,
            }
        }
        Ok(Height(low))
    }

    /// The output of the network that is furthest behind, and the first task that it does not have yet and can still get.
    fn furthest_behind(&self, head: &Head) -> Option<(TaskNumber, OutputName)> {
        let progress = self.tracker.progress();
        let of_network = self.outputs.iter().filter(|(scope, ..)| *scope == Scope::Network).map(|(_, name, _)| name);
        let own = of_network.filter(|name| !self.tracker.is_removed(name));
        let next = |name: &OutputName| progress.get(name).map_or(self.first_task, |last| last.next());
        let behind = own.chain(progress.keys()).map(|name| (next(name), name)).min();
        behind.map(|(next, name)| (next.max(head.horizon.task_number), name.clone()))
    }

    /// The batch of the first task that an output of the network does not have yet.
    fn needed_by_outputs(&self, head: &Head, reach: &mut Reach) -> Result<Height, ReadError> {
        let next = self.furthest_behind(head).map(|(next, _)| next);
        self.height_of_task(next, head, &head.horizon, reach)
    }

    /// The output that keeps batches which would be forgotten without it.
    fn held_back(&self, head: &Head, reach: &mut Reach) -> Result<Option<HeldBack>, ReadError> {
        let newest = *self.tracker.newest_task().borrow();
        let behind = self.furthest_behind(head).filter(|(next, _)| Some(*next) <= newest);
        let Some((next_task, output)) = behind else { return Ok(None) };
        let height = self.needed_by_outputs(head, reach)?;
        let Some(batch) = self.state.batch(height)? else { return Ok(None) };
        let is_oldest = height.0 <= head.horizon.height.0.max(1);
        let needed = Needed { time_ms: batch.header.time_ms, is_oldest, bytes: self.state.bytes_on_disk() };
        let is_overdue = needed.is_overdue(&self.limits, self.tracker.now());
        Ok(is_overdue.then_some(HeldBack { output, next_task, height }))
    }

    /// The batch of the oldest message that this task, or one of those that follow it, has. What was before `kept` is gone.
    fn height_of_task(
        &self,
        task: Option<TaskNumber>,
        head: &Head,
        kept: &Horizon,
        reach: &mut Reach,
    ) -> Result<Height, ReadError> {
        let batch = task.map(|task| self.state.batch_of_task(task)).transpose()?.flatten();
        let (Some(task), Some(batch)) = (task, batch) else { return Ok(head.height) };
        let height = batch.header.height;
        for _ in 0..PAGES_LOOKED_AT {
            let next = reach.read_from(height);
            if next > head.height {
                break;
            }
            reach.take(&self.state.batches(next, BATCHES_LOOKED_AT, READ_BYTES_MAX)?, kept.sequence);
        }
        let oldest = reach.oldest(task);
        if oldest.is_some_and(|sequence| sequence < kept.sequence) {
            // More was forgotten meanwhile. What is still needed has to be found anew.
            reach.clear();
        }
        if reach.read_from(height) <= head.height {
            // It is not known yet.
            return Ok(kept.height);
        }
        let reached = oldest.map(|sequence| self.height_of(sequence)).transpose()?.flatten();
        Ok(reached.map_or(height, |reached| reached.min(height)))
    }

    /// Removes from the disk what is forgotten, but for what an output of this node's own still needs.
    fn remove(&self, head: &Head, memory: &mut Memory) -> Result<(), ReadError> {
        let mut until = head.horizon;
        let full = self.limits.hard_bytes > 0 && self.state.bytes_on_disk() > self.limits.hard_bytes;
        if !full {
            let own = self.outputs.iter().filter(|(scope, ..)| *scope == Scope::Node);
            let next =
                own.map(|(_, _, handle)| handle.status().last_published.map_or(self.first_task, |last| last.next()));
            if let Some(next) = next.min().filter(|next| *next < until.task_number) {
                if self.state.batch_of_task(next)?.is_none() {
                    return Ok(());
                }
                let needed = self.height_of_task(Some(next), head, &memory.removed, &mut memory.own_reach)?;
                let Some(batch) = self.state.batch(needed)? else { return Ok(()) };
                let header = batch.header;
                let (height, sequence, task_number) = (header.height, header.first_sequence, header.first_task_number);
                until = Horizon { height, sequence, task_number };
            }
        }
        if until.height <= memory.removed.height {
            return Ok(());
        }
        self.state.forget(&until)?;
        tracing::info!(oldest_height = %until.height, "what is forgotten was removed from this node's store");
        memory.removed = until;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_leaves_what_the_limit_allows() {
        assert_eq!(cut(Height(1), Height(1_001), 1_000, 900), Height(101));
        assert_eq!(cut(Height(1), Height(1_001), 900, 900), Height(1));
        assert_eq!(cut(Height(500), Height(500), 0, 900), Height(500));
        assert_eq!(cut(Height(1), Height(u64::MAX), u64::MAX, 0), Height(u64::MAX));
    }

    #[test]
    fn what_was_cut_is_not_cut_again_before_the_disk_has_given_it_back() {
        let (at, second) = (Instant::now(), std::time::Duration::from_secs(1));
        let settling = Settling { at, bytes: 1_000, keep: 900 };
        assert!(!settling.is_over(1_000, at + second));
        assert!(!settling.is_over(951, at + CUT_SETTLES_MAX));
        assert!(settling.is_over(950, at));
        assert!(settling.is_over(1_200, at + CUT_SETTLES_MAX + second));
    }
}
