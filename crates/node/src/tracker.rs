//! Follows what is applied on this node: answers those who wait, and tells readers, publishers and the proposer how far it
//! is.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use lockstep_consensus::Observer;
use lockstep_consensus::StateStore;
use lockstep_ledger::{Applied, Head, Ledger, Members, OrderError, Outcome, OutputStates, Projects, Write};
use lockstep_types::{Height, OutputName, ProjectId, Sequence, TaskNumber, TimeMs};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::batch_time::BatchClock;
use crate::evidence::EvidenceQueue;
use crate::mempool::Mempool;
use crate::metrics;

/// What the proposer knows of open groups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct OpenGroups {
    /// When the next one becomes a task, in batch time: the first batch that is not before makes it one.
    pub next_due: Option<TimeMs>,
    /// The oldest message that is in no task yet.
    pub oldest: Option<Sequence>,
    /// Those that begin before this message are to become tasks now.
    pub make_room_before: Option<Sequence>,
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
    groups: watch::Sender<OpenGroups>,
}

/// What became of an order.
pub(crate) type OrderVerdict = Result<(), OrderError>;

/// Those who wait for one.
type WaitingForOrder = Vec<oneshot::Sender<OrderVerdict>>;

/// Orders whose senders wait.
const ORDERS_WAITING_MAX: usize = 1_024;

/// Batches without a certificate whose tasks are remembered; those of more are read from the store.
const UNFINAL_MAX: usize = 65_536;

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
            groups: watch::Sender::default(),
        }
    }

    /// Batch time, as this node would propose it.
    pub fn now(&self) -> TimeMs {
        self.mempool.now()
    }

    /// This node's batch time, and the clock that it goes by.
    pub fn clock(&self) -> &BatchClock {
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

    /// What is known of open groups.
    pub fn groups(&self) -> watch::Receiver<OpenGroups> {
        self.groups.subscribe()
    }

    /// Has groups that begin before a message become tasks with the next batches, whenever they are due. Says whether that is
    /// news.
    pub fn make_room_before(&self, first_kept: Sequence) -> bool {
        self.groups.send_if_modified(|groups| {
            let is_in_the_way = groups.oldest.is_some_and(|oldest| oldest < first_kept);
            let wanted = is_in_the_way.then_some(first_kept).max(groups.make_room_before);
            std::mem::replace(&mut groups.make_room_before, wanted) != wanted
        })
    }

    fn tell_groups(&self, ledger: &Ledger) {
        let (next_due, oldest) = (ledger.next_due(), ledger.oldest_open_message());
        self.groups.send_if_modified(|groups| {
            let make_room_before = groups.make_room_before.filter(|kept| oldest.is_some_and(|oldest| oldest < *kept));
            let known = OpenGroups { next_due, oldest, make_room_before };
            std::mem::replace(groups, known) != known
        });
    }
}

impl Tracker {
    /// Tells everyone where the ledger stands. Readers first: whoever hears of a position can read it here at once.
    fn tell(&self, ledger: &Ledger) {
        self.clock().follow(ledger.head().time_ms);
        self.tell_output_states(ledger);
        self.tell_groups(ledger);
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
        ledger.rules_states().iter().for_each(|(project, state)| metrics::project(*project, state));
        self.unfinal.lock().clear();
        self.tell(ledger);
        self.tell_final(ledger, self.stored_final_task(ledger.head()).unwrap_or(ledger.params().first_task_number));
    }

    fn applied(&self, ledger: &Ledger, applied: &Applied) {
        let before = self.head.borrow().as_ref().map_or(Height(0), |head| head.final_height);
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
