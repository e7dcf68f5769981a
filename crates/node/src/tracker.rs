//! Follows what is applied on this node: answers those who wait, tells readers and publishers how far it is, and
//! keeps the age of open groups.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use lockstep_consensus::Observer;
use lockstep_ledger::{Applied, GroupChange, GroupClosing, GroupKey, Head, Ledger, Outcome};
use lockstep_types::{OutputName, Sequence, TaskNumber};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::limits::CLOSINGS_MAX;
use crate::mempool::Mempool;
use crate::metrics;

/// How long a group has been open, by this node's monotonic clock.
struct OpenSince {
    first_sequence: Sequence,
    since: Instant,
    /// Asked to be closed already, and when.
    asked: Option<Instant>,
}

/// See the module's documentation.
pub(crate) struct Tracker {
    mempool: Mempool,
    head: watch::Sender<Option<Head>>,
    newest_task: watch::Sender<Option<TaskNumber>>,
    progress: watch::Sender<BTreeMap<OutputName, TaskNumber>>,
    groups: Mutex<HashMap<GroupKey, OpenSince>>,
    loaded: std::sync::atomic::AtomicBool,
}

/// A closing that was asked for and did not come is asked for again after this time.
const CLOSING_RETRY: Duration = Duration::from_secs(2);

impl Tracker {
    pub fn new(mempool: Mempool) -> Self {
        Self {
            mempool,
            head: watch::channel(None).0,
            newest_task: watch::channel(None).0,
            progress: watch::channel(BTreeMap::new()).0,
            groups: Mutex::new(HashMap::new()),
            loaded: std::sync::atomic::AtomicBool::new(false),
        }
    }

    /// The head after the newest applied entry; `None` before the state was loaded.
    pub fn head(&self) -> watch::Receiver<Option<Head>> {
        self.head.subscribe()
    }

    /// Number of the newest final task.
    pub fn newest_task(&self) -> watch::Receiver<Option<TaskNumber>> {
        self.newest_task.subscribe()
    }

    /// What the log knows of outputs.
    pub fn progress(&self) -> BTreeMap<OutputName, TaskNumber> {
        self.progress.borrow().clone()
    }

    /// Groups that are older than their project allows, and when the next one will be.
    pub fn due_closings(&self, age_max: impl Fn(&GroupKey) -> Duration) -> (Vec<GroupClosing>, Option<Instant>) {
        let now = Instant::now();
        let (mut due, mut next) = (Vec::new(), None::<Instant>);
        for (key, open) in self.groups.lock().iter_mut() {
            let mut at = open.since + age_max(key);
            if let Some(asked) = open.asked {
                at = at.max(asked + CLOSING_RETRY);
            }
            if at <= now && due.len() < CLOSINGS_MAX {
                open.asked = Some(now);
                due.push(GroupClosing { key: key.clone(), first_sequence: open.first_sequence });
            } else {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        }
        // The order of a hash map is not the same on all nodes; it is the leader's to choose, but let it be a good one.
        due.sort_by_key(|closing| closing.first_sequence);
        (due, next)
    }

    fn load_groups(&self, ledger: &Ledger) {
        let since = Instant::now();
        let open = |(key, first_sequence): (&GroupKey, Sequence)| {
            (key.clone(), OpenSince { first_sequence, since, asked: None })
        };
        *self.groups.lock() = ledger.open_groups().map(open).collect();
    }

    fn follow_groups(&self, changes: &[GroupChange]) {
        if changes.is_empty() {
            return;
        }
        let mut groups = self.groups.lock();
        for change in changes {
            match change {
                GroupChange::Opened(key, first_sequence) => {
                    let open = OpenSince { first_sequence: *first_sequence, since: Instant::now(), asked: None };
                    groups.insert(key.clone(), open);
                }
                GroupChange::Closed(key) => {
                    groups.remove(key);
                }
            }
        }
    }
}

impl Observer for Tracker {
    fn applied(&self, ledger: &Ledger, applied: &Applied) {
        let first = !self.loaded.swap(true, std::sync::atomic::Ordering::Relaxed);
        if first {
            self.load_groups(ledger);
        } else {
            self.follow_groups(&applied.groups);
        }
        // Readers first: whoever hears of a position can read it here at once.
        self.head.send_if_modified(|head| {
            let changed = head.as_ref().is_none_or(|head| head.effects != ledger.head().effects);
            if changed {
                *head = Some(ledger.head().clone());
            }
            changed
        });
        self.progress.send_if_modified(|progress| {
            let changed = progress != ledger.progress();
            if changed {
                progress.clone_from(ledger.progress());
            }
            changed
        });
        self.mempool.settle(&applied.outcomes);
        let next = ledger.head().next_task_number;
        let newest = (next > ledger.params().first_task_number).then(|| TaskNumber(next.0 - 1));
        self.newest_task.send_if_modified(|known| {
            let changed = *known != newest;
            *known = newest;
            changed
        });
        count(applied);
    }

    /// Groups that are open now were opened without this node: their age counts from here.
    fn replaced(&self, ledger: &Ledger) {
        self.load_groups(ledger);
        self.applied(ledger, &Applied::default());
    }
}

fn count(applied: &Applied) {
    let (mut ordered, mut duplicate, mut rejected) = (0, 0, 0);
    for (_, outcome) in &applied.outcomes {
        match outcome {
            Outcome::Ordered { .. } => ordered += 1,
            Outcome::Duplicate { .. } => duplicate += 1,
            Outcome::Rejected(_) => rejected += 1,
        }
    }
    if let Some(batch) = applied.batch() {
        metrics::applied(ordered, duplicate, rejected, 1, batch.tasks.len() as u64);
    } else if duplicate + rejected > 0 {
        metrics::applied(0, duplicate, rejected, 0, 0);
    }
}
