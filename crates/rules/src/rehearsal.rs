//! Rules tried out without a network: messages in, and what each stage and each group makes of them.

use std::collections::BTreeMap;

use lockstep_types::{Address, Sequence};

use crate::group::{Defaults, Group, Joining, LATE, Packed, Reached, Seen, Together};
use crate::judge::{Accepted, Input, Last, Refusal, Rules};
use crate::notes::Note;

/// Why a group became a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It has as many messages or bytes as it may.
    Full,
    /// The rules close it with a message.
    Closed,
    /// A later window has begun.
    Window,
    /// It is as old as it may be.
    Age,
    /// The rehearsal is over.
    End,
}

/// A task that comes out.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    /// What its messages share.
    pub together: Together,
    /// Its messages and payload.
    pub packed: Packed,
    /// Why it became one.
    pub cause: Cause,
}

/// What became of one message.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Its place among those that were taken, from 1, and what is known of it; or why it was not taken.
    pub result: Result<(Sequence, Accepted), Refusal>,
    /// Fuel that it took.
    pub fuel: u64,
    /// What each stage did.
    pub notes: Vec<Note>,
    /// Tasks that were made before it, because their time had come.
    pub before: Vec<Made>,
    /// The task that was made with it.
    pub with: Option<Made>,
}

struct Open {
    group: Group,
    /// Why it waits for its end, where more than its age makes it one.
    cause: Option<Cause>,
}

/// A rehearsal. Time is that of the messages' batches.
pub struct Rehearsal<'a> {
    rules: &'a Rules,
    defaults: Defaults,
    open: BTreeMap<Together, Open>,
    reached: BTreeMap<Address, Reached>,
    lasts: BTreeMap<Address, Last>,
    taken: u64,
}

impl<'a> Rehearsal<'a> {
    /// Begins one.
    pub fn new(rules: &'a Rules, defaults: Defaults) -> Self {
        Self { rules, defaults, open: BTreeMap::new(), reached: BTreeMap::new(), lasts: BTreeMap::new(), taken: 0 }
    }

    /// The next message. Its `last` is filled in.
    pub fn take(&mut self, mut input: Input) -> Outcome {
        let now = input.time_ms;
        let mut before = self.due(now);
        input.last = self.lasts.get(&input.device).cloned();
        let (judgement, notes) = self.rules.explain(&input);
        let mut accepted = match judgement.result {
            Ok(accepted) => accepted,
            Err(refusal) => return Outcome { result: Err(refusal), fuel: judgement.fuel, notes, before, with: None },
        };
        self.lasts.insert(input.device, Last { data: input.data.clone(), time_ms: now });
        self.taken += 1;
        let (sequence, key) = (Sequence(self.taken), self.rules.together(input.device, &accepted));
        let seen = self.seen(&key, input.device);
        let late = self.rules.is_late(&accepted, &seen, now);
        if late {
            accepted.flags.push(LATE.into());
        }
        if let Some(reached) = self.rules.reached(&accepted, seen.reached) {
            self.reached.insert(input.device, reached);
        }
        self.pass_windows(&key, now);
        let (rules, defaults) = (self.rules, self.defaults);
        let open = self.open.entry(key.clone()).or_insert_with(|| Open {
            group: Group::begin(rules, defaults, &seen, late, now),
            cause: (late || seen.later_since_ms.is_some()).then_some(Cause::Window),
        });
        let (nonce, bytes) = (input.nonce, input.data.len() as u64);
        let joining = Joining { accepted: &accepted, sequence, nonce, bytes, time_ms: now };
        let is_complete = open.group.add(rules, defaults, &joining);
        if accepted.closes {
            open.cause.get_or_insert(Cause::Closed);
        }
        let cause = open.cause.filter(|_| open.group.due_ms() <= now).unwrap_or(Cause::Full);
        let with = if is_complete { self.make(&key, cause) } else { None };
        before.extend(self.due(now));
        Outcome { result: Ok((sequence, accepted)), fuel: judgement.fuel, notes, before, with }
    }

    /// Makes tasks of what is still open.
    pub fn finish(mut self) -> Vec<Made> {
        let keys: Vec<Together> = self.open.keys().cloned().collect();
        keys.iter().filter_map(|key| self.make(key, Cause::End)).collect()
    }

    fn seen(&self, key: &Together, device: Address) -> Seen {
        let mut later = self.open.iter().filter(|(other, _)| is_of_family(key, other) && other.window > key.window);
        let ends = [later.next(), later.next_back()];
        Seen {
            is_open: self.open.contains_key(key),
            later_since_ms: ends.into_iter().flatten().map(|(_, open)| open.group.since_ms()).min(),
            reached: self.reached.get(&device).copied(),
        }
    }

    /// A message of a window passes the earlier ones of its group: they end when they have waited for what is late.
    fn pass_windows(&mut self, key: &Together, now: u64) {
        for (_, open) in self.open.iter_mut().filter(|(other, _)| is_of_family(key, other) && other.window < key.window)
        {
            open.group.pass(self.rules, now);
            open.cause.get_or_insert(Cause::Window);
        }
    }

    /// Tasks whose time has come.
    fn due(&mut self, now: u64) -> Vec<Made> {
        let due = self.open.iter().filter(|(_, open)| open.group.due_ms() <= now);
        let due: Vec<_> = due.map(|(key, open)| (key.clone(), open.cause.unwrap_or(Cause::Age))).collect();
        due.iter().filter_map(|(key, cause)| self.make(key, *cause)).collect()
    }

    fn make(&mut self, key: &Together, cause: Cause) -> Option<Made> {
        let open = self.open.remove(key)?;
        Some(Made { together: key.clone(), packed: open.group.pack(self.rules), cause })
    }
}

/// Whether both are windows of one group.
fn is_of_family(one: &Together, other: &Together) -> bool {
    (one.device, &one.name) == (other.device, &other.name) && one.window.is_some() && other.window.is_some()
}
