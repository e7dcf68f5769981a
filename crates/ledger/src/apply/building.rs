//! A batch in the making: places, tasks, and what is stored of both.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_rules::Accepted;
use lockstep_types::genesis::RETRY_WINDOW_FOR_EVER_MS;
use lockstep_types::message::PROJECT_VERSION_BYTES_MAX;
use lockstep_types::{
    Api, Batch, BatchHash, BatchHeader, ContentId, Hash32, Height, MemberSet, Message, OrderedMessage, ProjectId,
    Sequence, Task, TaskNumber, TimeMs,
};

use super::judges::Judges;
use super::packing::Placed;
use super::permissions::Permissions;
use super::{Applied, Ledger, Outcome, Rejection};
use crate::effects::{Effects, Head, Occurrence, Write};
use crate::groups::GroupKey;
use crate::rules::LastTaken;

/// A batch in the making.
pub(super) struct Building<'a> {
    pub(super) ledger: &'a mut Ledger,
    pub(super) height: Height,
    pub(super) time_ms: TimeMs,
    pub(super) first_sequence: Sequence,
    first_task_number: TaskNumber,
    pub(super) effects: Effects,
    messages: Vec<OrderedMessage>,
    pub(super) tasks: Vec<Task>,
    outcomes: Vec<(ContentId, Outcome)>,
    /// Contents ordered by this very batch, which `view` does not know yet.
    fresh: BTreeMap<ContentId, Occurrence>,
    /// Groups whose stored form is out of date.
    pub(super) touched: BTreeSet<GroupKey>,
    /// Groups that were closed because their time had come.
    pub(super) due_closed: usize,
    /// Hash of the members who certify this batch.
    members_before: Hash32,
    /// The members from the next batch on, where they change.
    next_set: Option<MemberSet>,
    /// What the state says about devices and nonces.
    asked: Permissions,
    /// The rules of projects.
    pub(super) judges: Judges,
    /// Projects whose rules' stored state is out of date.
    pub(super) judged: BTreeSet<ProjectId>,
}

impl<'a> Building<'a> {
    pub(super) fn new(
        ledger: &'a mut Ledger,
        proposed_time: TimeMs,
        capacity: usize,
        asked: Permissions,
        judges: Judges,
    ) -> Self {
        let head = &ledger.head;
        let mut building = Self {
            height: head.height.next(),
            time_ms: proposed_time.max(head.time_ms),
            first_sequence: head.next_sequence,
            first_task_number: head.next_task_number,
            effects: Effects::with_capacity(capacity),
            messages: Vec::with_capacity(capacity),
            tasks: Vec::with_capacity(capacity),
            outcomes: Vec::with_capacity(capacity),
            fresh: BTreeMap::new(),
            touched: BTreeSet::new(),
            due_closed: 0,
            members_before: ledger.members.hash(),
            next_set: None,
            asked,
            judges,
            judged: BTreeSet::new(),
            ledger,
        };
        building.close_changing();
        building
    }

    /// Whether the message can be ordered, by everything but its nonce; the time within which the same content is a
    /// retry.
    fn check(&self, message: &Message) -> Result<u64, Rejection> {
        let params = self.ledger.params();
        let project = self.ledger.projects.settings(message.project_id).ok_or(Rejection::UnknownProject)?;
        if message.api == Api::Unsigned && !params.allow_unsigned {
            return Err(Rejection::Unsigned);
        }
        if message.data.len() as u64 > params.message_bytes_max {
            return Err(Rejection::TooLarge);
        }
        if message.data.is_empty() || message.project_version.len() > PROJECT_VERSION_BYTES_MAX {
            return Err(Rejection::Malformed);
        }
        // Before retries are answered: who may not submit any more hears nothing of what it submitted.
        self.asked.check_device(message, project)?;
        Permissions::check_signed(message, project)?;
        Ok(if self.asked.is_once(message) { RETRY_WINDOW_FOR_EVER_MS } else { project.retry_window_ms })
    }

    /// Uses up the message's nonce, where it has one.
    fn use_nonce(&mut self, message: &Message) -> Result<(), Rejection> {
        let settings = self.ledger.projects.settings(message.project_id).ok_or(Rejection::UnknownProject)?;
        self.asked.use_nonce(message, settings, self.ledger.head.next_sequence, &mut self.effects)
    }

    /// The members change after this batch; they are in the ledger already. `before` is the hash of those until now.
    pub(super) fn change_members(&mut self, before: Hash32) {
        self.members_before = before;
        self.effects.members(&self.ledger.members);
        self.next_set = Some(self.ledger.members.set().clone());
    }

    /// Decides about a message of that age.
    pub(super) fn take(&mut self, message: Message, id: ContentId, before: Option<Occurrence>, age_ms: u64) {
        let window_ms = match self.check(&message) {
            Ok(window_ms) => window_ms,
            Err(rejection) => return self.outcomes.push((id, Outcome::Rejected(rejection))),
        };
        let kept = self.ledger.head.horizon.height;
        let before = self.fresh.get(&id).copied().or(before).filter(|before| before.height >= kept);
        let came_in = TimeMs(self.time_ms.0.saturating_sub(age_ms));
        if let Some(first) = before.filter(|first| first.is_repeated(came_in, window_ms)) {
            let outcome = Outcome::Duplicate {
                message_id: first.message_id(&id),
                sequence: first.sequence,
                height: first.height,
            };
            return self.outcomes.push((id, outcome));
        }
        // Before its nonce is used up: what is not taken may come again, another way.
        let accepted = match self.judge(&message) {
            Ok(accepted) => accepted,
            Err(rejection) => return self.outcomes.push((id, Outcome::Rejected(rejection))),
        };
        if let Err(rejection) = self.use_nonce(&message) {
            return self.outcomes.push((id, Outcome::Rejected(rejection)));
        }
        let placed = accepted.and_then(|accepted| self.note(&message, &accepted));
        self.order(message, id, before, placed);
    }

    /// What the project's rules make of a message; nothing where it has none.
    fn judge(&mut self, message: &Message) -> Result<Option<Accepted>, Rejection> {
        let project = message.project_id;
        if !self.judges.has(project) {
            return Ok(None);
        }
        self.judged.insert(project);
        let state = self.ledger.rules.entry(project).or_default();
        self.judges.judge(message, self.time_ms, state).transpose()
    }

    /// Keeps what is known of a message that the rules took and that is about to be ordered; says where they put it.
    fn note(&mut self, message: &Message, accepted: &Accepted) -> Option<Placed> {
        let (project, sequence) = (message.project_id, self.ledger.head.next_sequence);
        let placed = self.place(message, accepted);
        let flags = placed.as_ref().map_or(&accepted.flags[..], Placed::flags);
        let late = placed.as_ref().is_some_and(|placed| placed.late);
        self.ledger.rules.entry(project).or_default().took(!flags.is_empty(), late);
        let reached = placed.as_ref().and_then(|placed| placed.reached);
        let last = LastTaken { data: message.data.clone(), time_ms: self.time_ms, sequence, reached };
        if !flags.is_empty() {
            self.effects.flags(sequence, flags.to_vec());
        }
        if self.judges.note(message, &last) {
            self.effects.last(project, message.device, last);
        }
        placed
    }

    fn order(&mut self, message: Message, id: ContentId, before: Option<Occurrence>, placed: Option<Placed>) {
        let sequence = self.ledger.head.next_sequence;
        self.ledger.head.next_sequence = sequence.next();
        let (count, since) = match before {
            Some(before) => (before.count + 1, before.since),
            None => (1, self.ledger.head.horizon.height),
        };
        let occurrence = Occurrence { count, since, sequence, height: self.height, time_ms: self.time_ms };
        let message_id = occurrence.message_id(&id);
        // The occurrence record names the newest place only, and it alone is found by the content id. Every other id
        // gets an entry of its own.
        if let Some(first) = before.filter(|before| before.message_id(&id).0 == id.0) {
            self.effects.message_place(first.message_id(&id), first.sequence);
        }
        if message_id.0 != id.0 {
            self.effects.message_place(message_id, sequence);
        }
        self.effects.occurrence(id, occurrence);
        if let Some(alias) = message.task_alias() {
            self.effects.task_alias(alias, sequence);
        }
        self.fresh.insert(id, occurrence);
        let (task_id, via) = (self.pack(&message, (sequence, message_id), placed), message.via);
        self.messages.push(OrderedMessage { id: message_id, message });
        self.outcomes.push((id, Outcome::Ordered { message_id, sequence, height: self.height, task_id, via }));
    }

    pub(super) fn finish(mut self) -> Applied {
        self.pay_for_groups();
        let Self { ledger, .. } = self;
        for project in &self.judged {
            if let Some(state) = ledger.rules.get(project) {
                self.effects.rules_state(*project, state);
            }
        }
        if self.messages.is_empty() && self.tasks.is_empty() && self.next_set.is_none() {
            // What rules have spent and refused is kept, also where nothing came of it.
            let kept = if self.judged.is_empty() { Applied::default() } else { ledger.roll(self.effects) };
            return Applied { outcomes: self.outcomes, ..kept };
        }
        for key in &self.touched {
            let group = ledger.groups.get(key);
            self.effects.group(key, group);
            for (sequence, waiting) in group.into_iter().flat_map(|group| group.waiting_from(self.first_sequence)) {
                self.effects.writes.push(Write::Waiting(sequence, Some(waiting)));
            }
        }
        let effects = self.effects.roll(&ledger.head.effects);
        let header = BatchHeader {
            rules_version: ledger.head.rules_version,
            network: ledger.network,
            epoch: ledger.epoch,
            height: self.height,
            parent: ledger.head.hash,
            time_ms: self.time_ms,
            first_sequence: self.first_sequence,
            message_count: self.messages.len() as u64,
            messages_root: Batch::messages_root(self.first_sequence, &self.messages),
            first_task_number: self.first_task_number,
            task_count: self.tasks.len() as u64,
            tasks_root: Batch::tasks_root(&self.tasks),
            members: self.members_before,
            next_members: ledger.members.hash(),
            effects,
        };
        ledger.projects.changed(self.height);
        let hash: BatchHash = header.hash();
        let batch = Batch { header, messages: self.messages, tasks: self.tasks, next_set: self.next_set };
        ledger.head = Head { height: self.height, hash, time_ms: self.time_ms, effects, ..ledger.head.clone() };
        let mut writes = self.effects.writes;
        writes.push(Write::Batch(Box::new(batch)));
        writes.push(Write::Head(ledger.head.clone()));
        Applied { outcomes: self.outcomes, writes, ..Applied::default() }
    }
}
