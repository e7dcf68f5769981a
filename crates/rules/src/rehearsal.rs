//! Rules tried out without a network: messages in, and what each stage and each group makes of them.

use std::collections::BTreeMap;

use lockstep_types::{Address, Sequence};

use crate::engine::Rules;
use crate::group::{Defaults, Group, Joining, LATE, Packed, Seen, Together};
use crate::judge::{Accepted, Input, Last, Note, Refusal};

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

type Key = (String, Together);

/// A rehearsal. Time is that of the messages' batches.
pub struct Rehearsal<'a> {
    rules: &'a Rules,
    defaults: Defaults,
    /// By project version, too.
    open: BTreeMap<Key, Open>,
    reached: BTreeMap<Address, i64>,
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
        let together = self.rules.together(input.device, &accepted);
        let (sequence, key) = (Sequence(self.taken), (input.version.clone(), together));
        let seen = self.seen(&key, input.device);
        let late = self.rules.is_late(&accepted, &seen, now);
        if late {
            accepted.flags.push(LATE.into());
        }
        if let Some(reached) = key.1.reached(seen.reached) {
            self.reached.insert(input.device, reached);
        }
        self.pass_windows(&key, now);
        let (rules, defaults) = (self.rules, self.defaults);
        let open = self.open.entry(key.clone()).or_insert_with(|| Open {
            group: Group::begin(rules, defaults, &seen, late, now),
            cause: (late || seen.later_since_ms.is_some()).then_some(Cause::Window),
        });
        let bytes = input.data.len() as u64;
        let joining = Joining { accepted: &accepted, sequence, bytes, time_ms: now };
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
        let keys: Vec<Key> = self.open.keys().cloned().collect();
        keys.iter().filter_map(|key| self.make(key, Cause::End)).collect()
    }

    fn seen(&self, key: &Key, device: Address) -> Seen {
        let mut later = self.open.iter().filter(|(other, _)| is_of_family(key, other) && other.1.window > key.1.window);
        let ends = [later.next(), later.next_back()];
        Seen {
            is_open: self.open.contains_key(key),
            is_open_late: self.open.get(key).is_some_and(|open| open.group.is_late()),
            later_since_ms: ends.into_iter().flatten().map(|(_, open)| open.group.since_ms()).min(),
            reached: self.reached.get(&device).copied().filter(|_| key.1.is_of_device()),
        }
    }

    /// A message of a window passes the earlier ones of its group: they end when they have waited for what is late.
    fn pass_windows(&mut self, key: &Key, now: u64) {
        let is_before = |other: &Key| is_of_family(key, other) && other.1.window < key.1.window;
        for (_, open) in self.open.iter_mut().filter(|(other, _)| is_before(other)) {
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

    fn make(&mut self, key: &Key, cause: Cause) -> Option<Made> {
        let open = self.open.remove(key)?;
        Some(Made { together: key.1.clone(), packed: open.group.pack(self.rules), cause })
    }
}

/// Whether both are windows of one group.
fn is_of_family((version, one): &Key, (other_version, other): &Key) -> bool {
    let same = (version, one.device, &one.name) == (other_version, other.device, &other.name);
    same && one.window.is_some() && other.window.is_some()
}
