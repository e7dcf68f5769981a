//! Follows what is applied on this node: answers those who wait, tells readers and publishers how far it is, and
//! keeps the age of open groups.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use lockstep_consensus::Observer;
use lockstep_consensus::StateStore;
use lockstep_ledger::{
    Applied, GroupChange, GroupClosing, GroupKey, Head, Ledger, Members, OpenGroup, OrderError, Outcome, OutputStates,
    Projects, Write,
};
use lockstep_types::{Height, OutputName, ProjectId, Sequence, TaskNumber, TimeMs};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::evidence::EvidenceQueue;
use crate::limits::CLOSINGS_MAX;
use crate::mempool::Mempool;
use crate::metrics;

/// How long a group has been open, by this node's monotonic clock.
struct OpenSince {
    first_sequence: Sequence,
    since: Instant,
    /// When it becomes a task by its project's rules, in batch time. Any batch that is not before will do.
    due: Option<TimeMs>,
    /// Asked to be closed already, and when.
    asked: Option<Instant>,
}

/// See the module's documentation.
pub(crate) struct Tracker {
    mempool: Mempool,
    state: StateStore,
    evidence: Arc<EvidenceQueue>,
    members: watch::Sender<Arc<Members>>,
    projects: watch::Sender<Projects>,
    /// Those who wait for what becomes of an order.
    orders: Mutex<HashMap<(ProjectId, u64), WaitingForOrder>>,
    /// The next block to read, where the network reads a chain and knows how.
    pub next_block: watch::Sender<Option<u64>>,
    /// Batches that are not final yet, with the number of the task after each.
    unfinal: Mutex<VecDeque<(Height, TaskNumber)>>,
    head: watch::Sender<Option<Head>>,
    newest_task: watch::Sender<Option<TaskNumber>>,
    progress: watch::Sender<BTreeMap<OutputName, TaskNumber>>,
    output_states: watch::Sender<OutputStates>,
    groups: Mutex<HashMap<GroupKey, OpenSince>>,
}

/// What became of an order.
pub(crate) type OrderVerdict = Result<(), OrderError>;

/// Those who wait for one.
type WaitingForOrder = Vec<oneshot::Sender<OrderVerdict>>;

/// Orders whose senders wait.
const ORDERS_WAITING_MAX: usize = 1_024;

/// Batches without a certificate whose tasks are remembered; those of more are read from the store.
const UNFINAL_MAX: usize = 65_536;

/// A closing that was asked for and did not come is asked for again after this time.
const CLOSING_RETRY: Duration = Duration::from_secs(2);

impl Tracker {
    pub fn new(
        mempool: Mempool,
        state: StateStore,
        evidence: Arc<EvidenceQueue>,
        members: Members,
        projects: Projects,
    ) -> Self {
        Self {
            mempool,
            state,
            evidence,
            members: watch::Sender::new(Arc::new(members)),
            projects: watch::Sender::new(projects),
            orders: Mutex::default(),
            next_block: watch::Sender::new(None),
            unfinal: Mutex::default(),
            head: watch::channel(None).0,
            newest_task: watch::channel(None).0,
            progress: watch::channel(BTreeMap::new()).0,
            output_states: watch::Sender::default(),
            groups: Mutex::new(HashMap::new()),
        }
    }

    /// The time by this node's clock.
    pub fn now(&self) -> TimeMs {
        self.mempool.now()
    }

    /// This node's clock.
    pub fn clock(&self) -> &Clock {
        self.mempool.clock()
    }

    /// The head after the newest applied entry; `None` before the state was loaded.
    pub fn head(&self) -> watch::Receiver<Option<Head>> {
        self.head.subscribe()
    }

    /// Who belongs to the network.
    pub fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.subscribe()
    }

    /// The projects, with the settings that hold now.
    pub fn projects(&self) -> watch::Receiver<Projects> {
        self.projects.subscribe()
    }

    /// Told what becomes of the next order with this number when it is applied here; dropped where too many wait.
    pub fn order_verdict(&self, project: ProjectId, number: u64) -> oneshot::Receiver<OrderVerdict> {
        let (told, verdict) = oneshot::channel();
        let mut orders = self.orders.lock();
        for waiting in orders.values_mut() {
            waiting.retain(|told| !told.is_closed());
        }
        orders.retain(|_, waiting| !waiting.is_empty());
        if orders.len() < ORDERS_WAITING_MAX {
            orders.entry((project, number)).or_default().push(told);
        }
        verdict
    }

    /// The number of the task after the newest final batch.
    fn next_final_task(&self, head: &Head, batch: Option<&lockstep_types::Batch>) -> Option<TaskNumber> {
        let mut unfinal = self.unfinal.lock();
        if let Some(header) = batch.map(|batch| &batch.header) {
            if unfinal.len() == UNFINAL_MAX {
                unfinal.pop_front();
            }
            unfinal.push_back((header.height, TaskNumber(header.first_task_number.0 + header.task_count)));
        }
        let mut newest = None;
        while let Some((height, next)) = unfinal.front().copied().filter(|(height, _)| *height <= head.final_height) {
            newest = (height == head.final_height).then_some(next).or(newest);
            unfinal.pop_front();
        }
        newest
    }

    /// The same, from what is stored.
    fn stored_final_task(&self, head: &Head) -> Option<TaskNumber> {
        let header = self.state.batch(head.final_height).ok()??.header;
        Some(TaskNumber(header.first_task_number.0 + header.task_count))
    }

    /// Number of the newest final task.
    pub fn newest_task(&self) -> watch::Receiver<Option<TaskNumber>> {
        self.newest_task.subscribe()
    }

    /// What the log knows of outputs.
    pub fn progress(&self) -> BTreeMap<OutputName, TaskNumber> {
        self.progress.borrow().clone()
    }

    /// The same, as it changes.
    pub fn progress_changes(&self) -> watch::Receiver<BTreeMap<OutputName, TaskNumber>> {
        self.progress.subscribe()
    }

    /// What the network wants of its outputs.
    pub fn output_states(&self) -> watch::Receiver<OutputStates> {
        self.output_states.subscribe()
    }

    /// Whether an output of the network was removed, and not added anew since.
    pub fn is_removed(&self, output: &OutputName) -> bool {
        self.output_states.borrow().is_removed(output)
    }

    /// The oldest message that is not in a task yet.
    pub fn oldest_open_message(&self) -> Option<Sequence> {
        self.groups.lock().values().map(|open| open.first_sequence).min()
    }

    /// Has groups of projects' rules that begin before a message closed with the next batch, whenever they are due. Says how
    /// many there are.
    pub fn close_before(&self, first_kept: Sequence) -> usize {
        let mut groups = self.groups.lock();
        let in_the_way = groups.values_mut().filter(|open| open.first_sequence < first_kept && open.due.is_some());
        in_the_way.map(|open| open.due = Some(TimeMs(0))).count()
    }

    /// Groups that are older than their project allows, and when the next one will be.
    pub fn due_closings(&self, age_max: impl Fn(&GroupKey) -> Duration) -> (Vec<GroupClosing>, Option<Instant>) {
        let (now, clock) = (Instant::now(), self.now());
        let (mut due, mut next) = (Vec::new(), None::<Instant>);
        for (key, open) in self.groups.lock().iter_mut() {
            let mut at = match open.due {
                Some(due) => now + Duration::from_millis(due.0.saturating_sub(clock.0)),
                None => open.since + age_max(key),
            };
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
        let open = |(key, group): (&GroupKey, &OpenGroup)| {
            let open = OpenSince { first_sequence: group.first_sequence(), since, due: group.due(), asked: None };
            (key.clone(), open)
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
                    let (first_sequence, since) = (*first_sequence, Instant::now());
                    groups.insert(key.clone(), OpenSince { first_sequence, since, due: None, asked: None });
                }
                GroupChange::Due(key, first_sequence, due) => {
                    let (first_sequence, since) = (*first_sequence, Instant::now());
                    groups.insert(key.clone(), OpenSince { first_sequence, since, due: Some(*due), asked: None });
                }
                GroupChange::Closed(key) => {
                    groups.remove(key);
                }
            }
        }
    }
}

impl Tracker {
    /// Tells everyone where the ledger stands. Readers first: whoever hears of a position can read it here at once.
    fn tell(&self, ledger: &Ledger) {
        self.tell_output_states(ledger);
        self.members.send_if_modified(|members| {
            let changed = **members != *ledger.members();
            if changed {
                *members = Arc::new(ledger.members().clone());
            }
            changed
        });
        self.projects.send_if_modified(|projects| {
            let changed = !projects.is_same(ledger.projects());
            if changed {
                *projects = ledger.projects().clone();
            }
            changed
        });
        self.next_block.send_if_modified(|known| {
            let next = ledger.next_block();
            std::mem::replace(known, next) != next
        });
        self.head.send_if_modified(|head| {
            let changed = head.as_ref() != Some(ledger.head());
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
    }

    fn tell_output_states(&self, ledger: &Ledger) {
        self.output_states.send_if_modified(|states| {
            let changed = states != ledger.outputs();
            if changed {
                states.clone_from(ledger.outputs());
            }
            changed
        });
    }

    /// Tells publishers of tasks that have become final; `next` is the number after them.
    fn tell_final(&self, ledger: &Ledger, next: TaskNumber) {
        let newest = (next > ledger.params().first_task_number).then(|| TaskNumber(next.0 - 1));
        self.newest_task.send_if_modified(|known| std::mem::replace(known, newest) != newest);
    }
}

impl Observer for Tracker {
    fn loaded(&self, ledger: &Ledger) {
        self.load_groups(ledger);
        ledger.rules_states().iter().for_each(|(project, state)| metrics::project(*project, state));
        self.unfinal.lock().clear();
        self.tell(ledger);
        self.tell_final(ledger, self.stored_final_task(ledger.head()).unwrap_or(ledger.params().first_task_number));
    }

    fn applied(&self, ledger: &Ledger, applied: &Applied) {
        let before = self.head.borrow().as_ref().map_or(Height(0), |head| head.final_height);
        self.follow_groups(&applied.groups);
        // Before anyone hears of the batch, and looks for it in the store.
        self.evidence.applied(applied);
        self.tell(ledger);
        if let Some((project, number, verdict)) = &applied.order {
            for told in self.orders.lock().remove(&(*project, *number)).unwrap_or_default() {
                let _ = told.send(verdict.clone());
            }
        }
        self.mempool.settle(&applied.outcomes);
        let (head, batch) = (ledger.head(), applied.batch());
        let next = self.next_final_task(head, batch);
        if head.final_height != before
            && let Some(next) = next.or_else(|| self.stored_final_task(head))
        {
            self.tell_final(ledger, next);
        }
        count(applied);
    }
}

fn count(applied: &Applied) {
    for write in &applied.writes {
        if let Write::RulesState(project, state) = write {
            metrics::project(*project, state);
        }
    }
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
