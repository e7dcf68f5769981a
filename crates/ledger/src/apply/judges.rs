//! Which rules hold for the messages of a batch, and what they know of the devices' last messages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lockstep_rules::{Accepted, Input, Last, Rules};
use lockstep_types::{Address, Height, Message, ProjectId, TimeMs};

use super::{History, Ledger, Rejection};
use crate::rules::{LastTaken, Reached, RulesState};

/// A message, as rules see it.
pub fn rules_input(message: &Message, now: TimeMs, last: Option<&LastTaken>) -> Input {
    Input {
        data: message.data.clone(),
        device: message.device,
        version: message.project_version.clone(),
        nonce: message.task_nonce(),
        time_ms: now.0,
        last: last.map(|last| Last { data: last.data.clone(), time_ms: last.time_ms.0 }),
    }
}

/// The rules of a batch's projects.
#[derive(Debug, Default)]
pub(super) struct Judges {
    rules: BTreeMap<ProjectId, (Height, Arc<Rules>)>,
    fuel_per_second: u64,
    lasts: BTreeMap<(ProjectId, Address), Option<LastTaken>>,
}

impl Judges {
    /// Reads everything that the messages of a batch need, each thing once. Costs nothing where no project has rules.
    pub fn ask<V: History>(view: &V, ledger: &Ledger, messages: &[Message]) -> Result<Self, V::Error> {
        let mut judges = Self::default();
        if !ledger.projects.have_rules() {
            return Ok(judges);
        }
        let height = ledger.head.height.next();
        let projects: BTreeSet<ProjectId> = messages.iter().map(|message| message.project_id).collect();
        let known = &ledger.projects;
        let of = |id| Some((known.rules_from(id, height)?, Arc::clone(known.rules_at(id, height)?)));
        judges.rules = projects.into_iter().filter_map(|id| Some((id, of(id)?))).collect();
        judges.fuel_per_second = ledger.projects.params().rules_fuel_per_second();
        let needs = |(_, rules): &(Height, Arc<Rules>)| rules.needs_last() || rules.needs_reached();
        let wanted = messages.iter().filter(|message| judges.rules.get(&message.project_id).is_some_and(needs));
        let wanted: BTreeSet<_> = wanted.map(|message| (message.project_id, message.device)).collect();
        if !wanted.is_empty() {
            let wanted: Vec<_> = wanted.into_iter().collect();
            // What is forgotten is not there, whether or not this node's disk has it still.
            let kept = ledger.head.horizon.sequence;
            let lasts = view.lasts(&wanted)?.into_iter().map(|last| last.filter(|last| last.sequence >= kept));
            judges.lasts = wanted.into_iter().zip(lasts).collect();
        }
        Ok(judges)
    }

    /// What a project's rules make of a message; nothing where it has none.
    pub fn judge(&self, message: &Message, now: TimeMs, state: &mut RulesState) -> Option<Result<Accepted, Rejection>> {
        let (_, rules) = self.rules.get(&message.project_id)?;
        if !state.fuel.has_any(now, self.fuel_per_second) {
            return Some(Err(Rejection::Fuel));
        }
        let last = self.lasts.get(&(message.project_id, message.device)).and_then(Option::as_ref);
        let judgement = rules.judge(&rules_input(message, now, last));
        state.fuel.spend(judgement.fuel);
        Some(match judgement.result {
            Ok(accepted) => Ok(accepted),
            Err(refusal) => {
                state.refuse(&refusal);
                Err(Rejection::Rules(Box::new(refusal)))
            }
        })
    }

    /// The rules of a project that say what belongs together.
    pub fn packing(&self, project: ProjectId) -> Option<Arc<Rules>> {
        self.rules.get(&project).map(|(_, rules)| rules).filter(|rules| rules.packs()).cloned()
    }

    /// The latest window that the device of a message has been in, since its project's rules hold.
    pub fn reached(&self, message: &Message) -> Option<i64> {
        let (from, _) = self.rules.get(&message.project_id)?;
        let reached = self.lasts.get(&(message.project_id, message.device))?.as_ref()?.reached?;
        (reached.rules_from == *from).then_some(reached.window)
    }

    /// The record of a window that a device has been in.
    pub fn in_window(&self, project: ProjectId, window: i64) -> Option<Reached> {
        let (rules_from, _) = self.rules.get(&project)?;
        Some(Reached { rules_from: *rules_from, window })
    }

    /// Whether a project has rules in this batch.
    pub fn has(&self, project: ProjectId) -> bool {
        self.rules.contains_key(&project)
    }

    /// Notes a device's newest message, where the rules look at it.
    pub fn note(&mut self, message: &Message, last: &LastTaken) -> bool {
        let Some(known) = self.lasts.get_mut(&(message.project_id, message.device)) else { return false };
        *known = Some(last.clone());
        true
    }
}
