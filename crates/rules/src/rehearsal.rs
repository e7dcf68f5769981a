//! Rules tried out without a network: messages in, and what each stage and each group makes of them.

use std::collections::BTreeMap;

use lockstep_types::{Address, Sequence};

use crate::group::{Closing, Defaults, Group, Packed, Together};
use crate::judge::{Accepted, Input, Last, Refusal, Rules};

/// A flag for what comes after its window's task was made.
pub const LATE: &str = "late";

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
    /// Tasks that were made before it, because their time had come.
    pub before: Vec<Made>,
    /// The task that was made with it.
    pub with: Option<Made>,
}

struct Open {
    group: Group,
    since_ms: u64,
    due: Option<(u64, Cause)>,
}

/// A rehearsal. Time is that of the messages' batches.
pub struct Rehearsal<'a> {
    rules: &'a Rules,
    defaults: Defaults,
    age_max_ms: u64,
    open: BTreeMap<Together, Open>,
    /// Of each group without its window: the last window of which a task was made.
    closed: BTreeMap<Together, i64>,
    lasts: BTreeMap<Address, Last>,
    taken: u64,
}

impl<'a> Rehearsal<'a> {
    /// Begins one. `age_max_ms` is the age at which a group becomes a task where the rules say nothing.
    pub fn new(rules: &'a Rules, defaults: Defaults, age_max_ms: u64) -> Self {
        let age_max_ms = rules.document().aggregate.age_ms.unwrap_or(age_max_ms);
        Self {
            rules,
            defaults,
            age_max_ms,
            open: BTreeMap::new(),
            closed: BTreeMap::new(),
            lasts: BTreeMap::new(),
            taken: 0,
        }
    }

    /// The next message. Its `last` is filled in.
    pub fn take(&mut self, mut input: Input) -> Outcome {
        let now = input.time_ms;
        let before = self.due(now);
        input.last = self.lasts.get(&input.device).cloned();
        let judgement = self.rules.judge(&input);
        let mut accepted = match judgement.result {
            Ok(accepted) => accepted,
            Err(refusal) => return Outcome { result: Err(refusal), fuel: judgement.fuel, before, with: None },
        };
        self.lasts.insert(input.device, Last { data: input.data.clone(), time_ms: now });
        self.taken += 1;
        let (sequence, key) = (Sequence(self.taken), self.rules.together(&input, &accepted));
        let family = Together { window: None, ..key.clone() };
        if key.window.is_some_and(|window| self.closed.get(&family).is_some_and(|closed| window <= *closed)) {
            accepted.flags.push(LATE.into());
        }
        self.end_windows(&key, now);
        let open =
            self.open.entry(key.clone()).or_insert_with(|| Open { group: Group::default(), since_ms: now, due: None });
        let closing = open.group.add(self.rules, self.defaults, (&input, &accepted), sequence);
        let with = match closing {
            Closing::Now => self.make(&key, if accepted.closes { Cause::Closed } else { Cause::Full }),
            Closing::After(hold) => {
                open.due.get_or_insert((now + hold, Cause::Closed));
                None
            }
            Closing::Open => None,
        };
        let mut before = before;
        before.extend(self.due(now));
        Outcome { result: Ok((sequence, accepted)), fuel: judgement.fuel, before, with }
    }

    /// Makes tasks of what is still open.
    pub fn finish(mut self) -> Vec<Made> {
        let keys: Vec<Together> = self.open.keys().cloned().collect();
        keys.iter().filter_map(|key| self.make(key, Cause::End)).collect()
    }

    /// A message of a window ends the earlier ones of its group, when they have waited for what is late.
    fn end_windows(&mut self, key: &Together, now: u64) {
        let Some(window) = key.window else { return };
        let hold = self.rules.sort().hold_ms;
        let earlier = |other: &Together| {
            (&other.device, &other.name) == (&key.device, &key.name) && other.window.is_some_and(|w| w < window)
        };
        for (_, open) in self.open.iter_mut().filter(|(other, _)| earlier(other)) {
            open.due.get_or_insert((now + hold, Cause::Window));
        }
    }

    /// Tasks whose time has come.
    fn due(&mut self, now: u64) -> Vec<Made> {
        // A window may be open for long: it ends with the next one.
        let ages = self.rules.document().aggregate.window_ms.is_none();
        let cause = |open: &Open| match open.due {
            Some((due, cause)) if due <= now => Some(cause),
            None if ages && open.since_ms + self.age_max_ms <= now => Some(Cause::Age),
            _ => None,
        };
        let due: Vec<_> = self.open.iter().filter_map(|(key, open)| Some((key.clone(), cause(open)?))).collect();
        due.iter().filter_map(|(key, cause)| self.make(key, *cause)).collect()
    }

    fn make(&mut self, key: &Together, cause: Cause) -> Option<Made> {
        let open = self.open.remove(key)?;
        if let Some(window) = key.window {
            let closed = self.closed.entry(Together { window: None, ..key.clone() }).or_insert(window);
            *closed = window.max(*closed);
        }
        Some(Made { together: key.clone(), packed: open.group.pack(self.rules), cause })
    }
}
