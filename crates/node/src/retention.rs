//! What is forgotten, and when. The leader proposes the horizon; every node then removes what lies below it from its
//! disk, but waits for its own outputs while there is room, and until the state on the disk has forgotten it too: what a
//! crash goes back to needs what it has not forgotten.

use std::sync::Arc;

use lockstep_consensus::{Consensus, ReadError, Role, StateStore};
use lockstep_ledger::{Command, Head, Horizon};
use lockstep_outputs::Handle;
use lockstep_types::{Batch, BatchHeader, Height, OutputName, Sequence, TaskNumber, TimeMs};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::Scope;
use crate::held_back::{HeldBack, Needed};
use crate::limits::{
    CONTROL_TIMEOUT, CUT_SETTLES_MAX, FORGOTTEN_ON_DISK_WITHIN, FORGOTTEN_PARTS, READ_BYTES_MAX, RETENTION_INTERVAL,
};
use crate::reach::Reach;
use crate::tracker::Tracker;

/// A cut goes this far below the limit, so that there is not one at every look: nine tenths.
const CUT_TO_TENTHS: u64 = 9;

/// Batches that are read together for how far back their tasks reach.
const BATCHES_LOOKED_AT: usize = 256;
/// How often that is done before others have their turn.
const PAGES_LOOKED_AT: usize = 8;

/// See the module's documentation.
#[derive(Clone)]
pub(crate) struct Retention {
    pub state: StateStore,
    pub consensus: Consensus,
    pub tracker: Arc<Tracker>,
    pub limits: lockstep_types::Retention,
    /// Outputs that this node feeds.
    pub outputs: Vec<(Scope, OutputName, Handle)>,
    pub first_task: TaskNumber,
    /// Says what an operator has to look at.
    pub complaint: watch::Sender<Option<String>>,
    /// What keeps batches from being forgotten.
    pub held_back: watch::Sender<Option<HeldBack>>,
}

/// Nothing can be forgotten.
#[derive(Debug, thiserror::Error)]
enum RetentionError {
    #[error("the state cannot be read: {0}")]
    Read(#[from] ReadError),
    #[error(
        "nothing is forgotten any more: {0} is not forgotten, and is not there: the state of this node is damaged; stop the node and run `lockstep rebuild`"
    )]
    Missing(String),
}

fn missing(what: &str, number: impl std::fmt::Display) -> RetentionError {
    RetentionError::Missing(format!("{what} {number}"))
}

fn horizon_of(header: &BatchHeader) -> Horizon {
    let (height, sequence, task_number) = (header.height, header.first_sequence, header.first_task_number);
    Horizon { height, sequence, task_number }
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
    /// When it was proposed, and from then on when it was removed from the disk.
    at: Instant,
    /// The oldest height that it keeps.
    oldest: Height,
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
    /// Up to where everything may be removed.
    removable: Horizon,
    /// When the state was last written to the disk for that.
    flushed: Option<Instant>,
    settling: Option<Settling>,
    /// What outputs of the network need that are behind.
    reach: Reach,
    /// The same for this node's own, which may need what the log has forgotten.
    own_reach: Reach,
}

impl Memory {
    /// Whether the state is to be written to the disk, so that what is forgotten can be removed.
    fn is_flush_due(&self, head: Height, now: Instant) -> bool {
        let waiting = self.removable.height.0.saturating_sub(self.removed.height.0);
        let is_much = waiting.saturating_mul(FORGOTTEN_PARTS) >= head.0.saturating_sub(self.removed.height.0);
        let is_time =
            self.flushed.is_none_or(|flushed| now.saturating_duration_since(flushed) >= FORGOTTEN_ON_DISK_WITHIN);
        waiting > 0 && is_much && is_time
    }

    /// Whether there may be a cut by size: the one before has had its effect.
    fn may_cut(&self, bytes: u64, now: Instant) -> bool {
        self.removed.height >= self.removable.height && self.settling.is_none_or(|cut| cut.is_over(bytes, now))
    }

    fn note_removed(&mut self, removed: Horizon, bytes: u64, now: Instant) {
        if let Some(cut) = self.settling.as_mut().filter(|cut| cut.oldest > self.removed.height) {
            // The disk gives back what it gives back from here on.
            (cut.at, cut.bytes) = (now, bytes);
        }
        self.removed = removed;
    }
}

impl Retention {
    /// Looks again and again until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let this = Arc::new(self);
        let mut tick = interval(RETENTION_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut memory = Memory::default();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            if this.limits.is_everything() {
                continue;
            }
            let Some(head) = this.tracker.head().borrow().clone() else { continue };
            let leads = this.consensus.status().borrow().role == Role::Leader;
            let (looking, mut known, now) = (this.clone(), std::mem::take(&mut memory), Instant::now());
            let look = move || {
                let found = looking.look(&head, leads, &mut known, now);
                (known, found)
            };
            match this.state.blocking().run(look).await {
                Ok((known, found)) => {
                    memory = known;
                    this.tell(found.as_ref().err());
                    if let Ok(Some(horizon)) = found {
                        this.propose(&horizon).await;
                    }
                }
                Err(error) => tracing::error!(%error, "it was not looked what can be forgotten"),
            }
        }
    }

    fn tell(&self, error: Option<&RetentionError>) {
        let complaint = error.map(ToString::to_string);
        let is_news = self.complaint.send_if_modified(|before| {
            let is_news = *before != complaint;
            before.clone_from(&complaint);
            is_news
        });
        if let Some(error) = error.filter(|_| is_news) {
            tracing::error!(%error, "what is to be forgotten cannot be");
        }
    }

    async fn propose(&self, horizon: &Horizon) {
        let proposal = self.consensus.propose(Command::encode_horizon(horizon));
        match timeout(CONTROL_TIMEOUT, proposal).await {
            Ok(Ok(())) => tracing::info!(oldest_height = %horizon.height, "older batches are forgotten"),
            Ok(Err(error)) => tracing::debug!(%error, "a horizon was not committed"),
            Err(_) => {}
        }
    }

    /// Removes what can be, and says what is to be forgotten next. Blocks.
    fn look(
        &self,
        head: &Head,
        leads: bool,
        memory: &mut Memory,
        now: Instant,
    ) -> Result<Option<Horizon>, RetentionError> {
        self.remove(head, memory, now)?;
        match self.held_back(head, &mut memory.reach) {
            Ok(held) => {
                self.held_back.send_if_modified(|known| std::mem::replace(known, held.clone()) != held);
            }
            Err(error) => tracing::debug!(%error, "it is not known what holds the horizon back"),
        }
        if !leads {
            return Ok(None);
        }
        match self.horizon(head, memory, now) {
            // Another state has taken the place of the one that the head is of.
            Err(RetentionError::Missing(_)) if self.state.head()?.is_none_or(|newer| newer.horizon != head.horizon) => {
                Ok(None)
            }
            found => found,
        }
    }

    /// The horizon from now on, if that is news.
    fn horizon(&self, head: &Head, memory: &mut Memory, now: Instant) -> Result<Option<Horizon>, RetentionError> {
        let oldest = Height(head.horizon.height.0.max(1));
        let bytes = self.state.bytes_on_disk();
        let (mut wanted, limits) = (oldest, &self.limits);
        let may_cut = memory.may_cut(bytes, now);
        let mut by_size = None;
        let mut cut_to = |limit: u64| {
            let keep = limit / 10 * CUT_TO_TENTHS;
            let oldest_kept = cut(oldest, head.height, bytes, keep);
            by_size = Some(Settling { at: now, oldest: oldest_kept, bytes, keep });
            oldest_kept
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
        let oldest_open = self.tracker.groups().borrow().oldest;
        if let Some(sequence) = oldest_open {
            let open = self.height_of(sequence, head)?.unwrap_or(oldest);
            if open < wanted {
                self.make_room(wanted)?;
            }
            wanted = wanted.min(open);
        }
        if wanted <= oldest {
            return Ok(None);
        }
        memory.settling = by_size.or(memory.settling);
        Ok(Some(horizon_of(&self.kept_batch(wanted)?.header)))
    }

    /// A batch that is not forgotten.
    fn kept_batch(&self, height: Height) -> Result<Batch, RetentionError> {
        self.state.batch(height)?.ok_or_else(|| missing("the batch at height", height))
    }

    /// Projects may keep groups open for longer than anything is kept: those end here.
    fn make_room(&self, wanted: Height) -> Result<(), RetentionError> {
        let first_kept = self.kept_batch(wanted)?.header.first_sequence;
        if self.tracker.make_room_before(first_kept) {
            tracing::info!(oldest_height = %wanted, "older open groups become tasks, so that their batches can be forgotten");
        }
        Ok(())
    }

    /// The batch of a message; `None` where it is forgotten and gone.
    fn height_of(&self, sequence: Sequence, head: &Head) -> Result<Option<Height>, RetentionError> {
        match self.state.batch_of_message(sequence)? {
            None if sequence >= head.horizon.sequence => Err(missing("the batch of message", sequence)),
            found => Ok(found.map(|batch| batch.header.height)),
        }
    }

    /// The first height whose batch is not before `time`.
    fn first_after(&self, oldest: Height, head: Height, time: TimeMs) -> Result<Height, RetentionError> {
        let (mut low, mut high) = (oldest.0, head.0 + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.kept_batch(Height(middle))?.header.time_ms < time {
                low = middle + 1;
            } else {
                high = middle;
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
    fn needed_by_outputs(&self, head: &Head, reach: &mut Reach) -> Result<Height, RetentionError> {
        let next = self.furthest_behind(head).map(|(next, _)| next);
        let Some(next) = next.filter(|next| *next < head.next_task_number) else { return Ok(head.height) };
        self.height_of_task(next, head, &head.horizon, reach)
    }

    /// The output that keeps batches which would be forgotten without it.
    fn held_back(&self, head: &Head, reach: &mut Reach) -> Result<Option<HeldBack>, RetentionError> {
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
        task: TaskNumber,
        head: &Head,
        kept: &Horizon,
        reach: &mut Reach,
    ) -> Result<Height, RetentionError> {
        let batch = self.state.batch_of_task(task)?.ok_or_else(|| missing("the batch of task", task))?;
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
        let reached = oldest.map(|sequence| self.height_of(sequence, head)).transpose()?.flatten();
        Ok(reached.map_or(height, |reached| reached.min(height)))
    }

    /// Removes from the disk what is forgotten, but for what an output of this node's own still needs.
    fn remove(&self, head: &Head, memory: &mut Memory, now: Instant) -> Result<(), RetentionError> {
        let bytes = self.state.bytes_on_disk();
        let is_full = self.limits.hard_bytes > 0 && bytes > self.limits.hard_bytes;
        memory.removable = if is_full { head.horizon } else { self.needed_by_nobody(head, memory)? };
        if memory.removable.height <= memory.removed.height {
            return Ok(());
        }
        let is_on_disk = |horizon: &Horizon| Ok::<_, ReadError>(self.state.durable_horizon()?.height >= horizon.height);
        if !is_on_disk(&memory.removable)? && (is_full || memory.is_flush_due(head.height, now)) {
            self.state.flush().map_err(ReadError::from)?;
            memory.flushed = Some(now);
        }
        if self.state.durable_horizon()?.height <= memory.removed.height {
            return Ok(());
        }
        let removed = self.state.forget(&memory.removable)?;
        tracing::info!(oldest_height = %removed.height, "what is forgotten was removed from this node's store");
        memory.note_removed(removed, bytes, now);
        Ok(())
    }

    /// Up to where no output of this node's own needs anything that is forgotten.
    fn needed_by_nobody(&self, head: &Head, memory: &mut Memory) -> Result<Horizon, RetentionError> {
        let own = self.outputs.iter().filter(|(scope, ..)| *scope == Scope::Node);
        let next = own.map(|(_, _, handle)| handle.status().last_published.map_or(self.first_task, |last| last.next()));
        let Some(next) = next.min().filter(|next| *next < head.horizon.task_number) else { return Ok(head.horizon) };
        if self.state.batch_of_task(next)?.is_none() {
            // It is gone already. The output hears of that, and needs another one then.
            return Ok(memory.removed);
        }
        let needed = self.height_of_task(next, head, &memory.removed, &mut memory.own_reach)?;
        Ok(self.state.batch(needed)?.map_or(memory.removed, |batch| horizon_of(&batch.header)))
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
        let settling = Settling { at, oldest: Height(9), bytes: 1_000, keep: 900 };
        assert!(!settling.is_over(1_000, at + second));
        assert!(!settling.is_over(951, at + CUT_SETTLES_MAX));
        assert!(settling.is_over(950, at));
        assert!(settling.is_over(1_200, at + CUT_SETTLES_MAX + second));
    }

    fn up_to(height: u64) -> Horizon {
        Horizon { height: Height(height), ..Horizon::default() }
    }

    #[test]
    fn a_cut_settles_from_its_removal_on_and_none_follows_before() {
        let (start, second) = (Instant::now(), std::time::Duration::from_secs(1));
        let cut = Settling { at: start, oldest: Height(100), bytes: 1_000, keep: 900 };
        let mut memory = Memory { removed: up_to(40), removable: up_to(100), settling: Some(cut), ..Memory::default() };
        // The state on the disk has it still, however long that takes.
        assert!(!memory.may_cut(1_100, start + 3 * CUT_SETTLES_MAX));
        let removed = start + 3 * CUT_SETTLES_MAX;
        memory.note_removed(up_to(70), 1_200, removed - second);
        assert!(!memory.may_cut(1_200, removed));
        memory.note_removed(up_to(100), 1_200, removed);
        assert!(!memory.may_cut(1_200, removed + CUT_SETTLES_MAX));
        assert!(memory.may_cut(1_200, removed + CUT_SETTLES_MAX + second));
        assert!(memory.may_cut(1_050, removed + second));
        // What was removed for its age since does not make it settle anew.
        memory.note_removed(up_to(120), 1_300, removed + CUT_SETTLES_MAX);
        assert!(memory.may_cut(1_300, removed + CUT_SETTLES_MAX + second));
    }

    #[test]
    fn the_state_is_written_to_the_disk_for_much_that_is_forgotten_and_not_often() {
        let now = Instant::now();
        let mut memory = Memory { removed: up_to(1_000), removable: up_to(1_099), ..Memory::default() };
        assert!(!memory.is_flush_due(Height(2_000), now));
        memory.removable = up_to(1_100);
        assert!(memory.is_flush_due(Height(2_000), now));
        memory.flushed = Some(now);
        assert!(!memory.is_flush_due(Height(2_000), now + FORGOTTEN_ON_DISK_WITHIN / 2));
        assert!(memory.is_flush_due(Height(2_000), now + FORGOTTEN_ON_DISK_WITHIN));
        memory.removed = memory.removable;
        assert!(!memory.is_flush_due(Height(2_000), now + FORGOTTEN_ON_DISK_WITHIN));
    }
}
