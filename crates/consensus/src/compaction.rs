//! Keeps the log short: decides when the state is copied, and up to where the log may then be purged.
//!
//! The order that makes it safe: a copy of the state is made, which first brings the state to disk up to the copy's
//! newest entry; only entries that are in the copy are purged. So after a crash at any moment the state on disk goes at
//! least up to where the log begins. openraft purges nothing by itself here (`max_in_snapshot_log_to_keep` has no
//! bound), only what this module asks for, and no entry that it is sending.

use openraft::async_runtime::WatchReceiver as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::limits::{
    COMPACTION_INTERVAL, LOG_BYTES_MAX, LOG_ENTRIES_MAX, LOG_HELD_FACTOR, LOG_KEPT_ENTRIES, SNAPSHOT_RETRY,
};
use crate::log_size::LogSize;
use crate::log_store::LogStore;
use crate::raft_types::Raft;
use crate::state_store::StateStore;

/// How long the log may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompactionOptions {
    /// Bytes of entries since the last snapshot; with more, a snapshot is made and the log purged.
    pub log_bytes_max: u64,
    /// Entries since the last snapshot; as `log_bytes_max`.
    pub log_entries_max: u64,
    /// Newest entries of a snapshot that are kept all the same, as far as they take no more than half of
    /// `log_bytes_max`, so that a member that was away briefly catches up from the log.
    pub log_kept_entries: u64,
}

impl Default for CompactionOptions {
    fn default() -> Self {
        Self { log_bytes_max: LOG_BYTES_MAX, log_entries_max: LOG_ENTRIES_MAX, log_kept_entries: LOG_KEPT_ENTRIES }
    }
}

/// Where the log stands: indexes of the newest applied entry, the newest one in a snapshot, and the newest purged one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct View {
    applied: u64,
    snapshot: Option<u64>,
    purged: u64,
    /// A member needs the entries behind this one.
    needed_after: Option<u64>,
}

impl CompactionOptions {
    /// Whether a snapshot is due.
    fn wants_snapshot(&self, view: &View, size: &LogSize) -> bool {
        let from = view.snapshot.unwrap_or(view.purged);
        let entries = view.applied.saturating_sub(from);
        let bytes = size.bytes_after(from).saturating_sub(size.bytes_after(view.applied));
        entries > self.log_entries_max || (entries > 0 && bytes > self.log_bytes_max)
    }

    /// Up to where to purge now, if anywhere.
    fn purge_to(&self, view: &View, size: &LogSize) -> Option<u64> {
        let snapshot = view.snapshot?;
        let by_entries = snapshot.saturating_sub(self.log_kept_entries);
        let by_bytes = size.index_with_bytes_to(snapshot, self.log_bytes_max / 2);
        let mut to = by_entries.max(by_bytes);
        if let Some(needed) = view.needed_after.filter(|needed| !self.is_too_long(*needed, view, size)) {
            to = to.min(needed);
        }
        (to > view.purged).then_some(to)
    }

    /// Whether a log that begins behind `after` is longer than what is kept for others.
    fn is_too_long(&self, after: u64, view: &View, size: &LogSize) -> bool {
        view.applied.saturating_sub(after) > self.log_entries_max.saturating_mul(LOG_HELD_FACTOR)
            || size.bytes_after(after) > self.log_bytes_max.saturating_mul(LOG_HELD_FACTOR)
    }
}

/// The log's upkeep. See the module's documentation.
pub(crate) struct Compaction<'a> {
    pub raft: &'a Raft,
    pub log: &'a LogStore,
    pub state: &'a StateStore,
    pub options: CompactionOptions,
}

/// What was asked of openraft, so that it is asked once.
#[derive(Default)]
struct Asked {
    snapshot: Option<(Option<u64>, Instant)>,
    purge: u64,
    reclaimed: u64,
}

impl Compaction<'_> {
    pub async fn run<S: Fn() + Clone + Send + 'static>(&self, stop: CancellationToken, sweep: S) {
        let mut asked = Asked { reclaimed: self.view().purged, ..Asked::default() };
        while tokio::time::timeout(COMPACTION_INTERVAL, stop.cancelled()).await.is_err() {
            let (state, sweep) = (self.state.clone(), sweep.clone());
            let swept = self.state.blocking().run(move || {
                state.shelf().sweep();
                sweep();
            });
            if let Err(error) = swept.await {
                warn!(%error, "copies of the state that nobody needs were not removed");
            }
            let view = self.view();
            if self.step(&view, &mut asked).await.is_err() {
                // Raft has stopped, and whoever supervises it knows; nothing is left to do here.
                stop.cancelled().await;
                return;
            }
            if view.purged > asked.reclaimed {
                asked.reclaimed = view.purged;
                self.reclaim(&view).await;
            }
        }
    }

    fn view(&self) -> View {
        let metrics = self.raft.data_metrics();
        let data = metrics.borrow_watched();
        View {
            applied: data.last_applied.map_or(0, |id| id.index),
            snapshot: data.snapshot.map(|id| id.index),
            purged: data.purged.map_or(0, |id| id.index),
            needed_after: self.state.shelf().log_needed_after(),
        }
    }

    async fn step(&self, view: &View, asked: &mut Asked) -> Result<(), openraft::errors::Fatal<crate::TypeConfig>> {
        let (wants_snapshot, purge_to) =
            self.log.size(|size| (self.options.wants_snapshot(view, size), self.options.purge_to(view, size)));
        let is_asked = asked.snapshot.is_some_and(|(of, at)| of == view.snapshot && at.elapsed() < SNAPSHOT_RETRY);
        if wants_snapshot && !is_asked {
            asked.snapshot = Some((view.snapshot, Instant::now()));
            self.raft.trigger().snapshot().await?;
        }
        if let Some(to) = purge_to.filter(|to| *to > asked.purge) {
            asked.purge = to;
            self.raft.trigger().purge_log(to).await?;
        }
        // Openraft does not purge what it is sending; a member that takes it too slowly would let the log grow for ever.
        let is_stuck =
            asked.purge > view.purged && self.log.size(|size| self.options.is_too_long(view.purged, view, size));
        self.log.withhold(is_stuck.then_some(asked.purge));
        Ok(())
    }

    async fn reclaim(&self, view: &View) {
        let log = self.log.clone();
        match self.state.blocking().run(move || log.reclaim()).await {
            Ok(Ok(())) => {
                let bytes = self.log.size(LogSize::bytes);
                info!(purged = view.purged, snapshot = view.snapshot, bytes, "the log was purged");
            }
            Ok(Err(error)) => warn!(%error, "the disk has not got back what the purged log takes"),
            Err(error) => warn!(%error, "the disk has not got back what the purged log takes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: CompactionOptions =
        CompactionOptions { log_bytes_max: 1 << 20, log_entries_max: 1000, log_kept_entries: 100 };

    fn log(entries: u64, bytes: u64) -> LogSize {
        let mut size = LogSize::default();
        (1..=entries).for_each(|index| size.appended(index, bytes));
        size
    }

    fn view(applied: u64, snapshot: u64, purged: u64) -> View {
        View { applied, snapshot: (snapshot > 0).then_some(snapshot), purged, needed_after: None }
    }

    #[test]
    fn a_snapshot_is_due_by_entries_and_by_bytes_of_what_is_applied() {
        let small = log(5000, 10);
        assert!(!OPTIONS.wants_snapshot(&view(1000, 0, 0), &small));
        assert!(OPTIONS.wants_snapshot(&view(1001, 0, 0), &small));
        assert!(!OPTIONS.wants_snapshot(&view(2000, 1000, 500), &small));
        assert!(OPTIONS.wants_snapshot(&view(2001, 1000, 500), &small));
        let large = log(300, 64 << 10);
        assert!(!OPTIONS.wants_snapshot(&view(10, 0, 0), &large), "what is not applied is in no snapshot");
        assert!(OPTIONS.wants_snapshot(&view(40, 0, 0), &large));
        assert!(!OPTIONS.wants_snapshot(&view(300, 290, 0), &large));
        assert!(!OPTIONS.wants_snapshot(&view(300, 300, 0), &large), "an idle network makes none");
    }

    #[test]
    fn only_what_a_snapshot_contains_is_purged_and_some_of_that_is_kept() {
        let small = log(5000, 10);
        assert_eq!(OPTIONS.purge_to(&view(5000, 0, 0), &small), None);
        assert_eq!(OPTIONS.purge_to(&view(5000, 3000, 0), &small), Some(2900));
        assert_eq!(OPTIONS.purge_to(&view(5000, 3000, 2900), &small), None);
        assert_eq!(OPTIONS.purge_to(&view(5000, 50, 0), &small), None);
        // 100 entries of 64 KiB are more than half a MiB: fewer are kept.
        let large = log(300, 64 << 10);
        let to = OPTIONS.purge_to(&view(300, 200, 0), &large).unwrap();
        assert!((190..=200).contains(&to), "{to}");
    }

    #[test]
    fn entries_that_a_member_needs_are_kept_within_a_bound() {
        let small = log(20_000, 10);
        let needed = |after: u64, view: View| View { needed_after: Some(after), ..view };
        assert_eq!(OPTIONS.purge_to(&needed(1500, view(5000, 5000, 1000)), &small), Some(1500));
        assert_eq!(OPTIONS.purge_to(&needed(1500, view(5000, 5000, 1500)), &small), None);
        assert_eq!(OPTIONS.purge_to(&needed(1500, view(9501, 9400, 1500)), &small), Some(9300));
        assert_eq!(OPTIONS.purge_to(&needed(100, view(150, 150, 100)), &log(150, 64 << 10)), None);
        assert!(OPTIONS.purge_to(&needed(100, view(300, 300, 100)), &log(300, 64 << 10)) > Some(250));
    }
}
