//! What ended in a node that goes on, how often and why: for its status, its metrics and its log.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::JoinError;

use crate::error::NodeError;
use crate::limits::ENDING_REASON_CHARS_MAX;
use crate::metrics;

/// Why something ended. Short, and meant for strangers too: the status of a node can be read by anyone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndReason(String);

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl EndReason {
    fn new(text: &str) -> Self {
        let line = text.lines().next().unwrap_or_default();
        Self(line.chars().filter(|c| !c.is_control()).take(ENDING_REASON_CHARS_MAX).collect())
    }

    /// It returned although nobody had told it to.
    pub fn by_itself() -> Self {
        Self::new("it ended by itself")
    }

    /// It returned an error.
    pub fn error(error: &NodeError) -> Self {
        Self::new(&error.to_string())
    }

    /// It panicked. What a panic says out of the source code is told, and nothing that it may quote: that stands in the
    /// log only, where the panic itself is written.
    pub fn panic(payload: &(dyn Any + Send)) -> Self {
        let said = match (payload.downcast_ref::<&'static str>(), payload.downcast_ref::<String>()) {
            (Some(text), _) => (*text).to_owned(),
            (None, Some(text)) => without_quotes(text),
            (None, None) => String::new(),
        };
        if said.is_empty() { Self::new("it panicked") } else { Self::new(&format!("it panicked: {said}")) }
    }

    /// Its task did not return.
    pub fn join_error(error: JoinError) -> Self {
        match error.try_into_panic() {
            Ok(payload) => Self::panic(&*payload),
            Err(_) => Self::new("it was cut off"),
        }
    }
}

/// The words of a message that was put together, up to the first behind which, or in which, there may be what it is about.
fn without_quotes(text: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for word in text.split_whitespace() {
        if word.contains(['/', '@', '=', '"', '\\']) {
            break;
        }
        match word.split_once(':') {
            // A path of the source code, as in `Result::unwrap()`.
            Some((_, rest)) if rest.starts_with(':') => kept.push(word),
            Some((before, _)) => {
                kept.push(before);
                break;
            }
            None => kept.push(word),
        }
    }
    kept.join(" ")
}

/// What follows when something has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// It begins again by itself.
    BeginsAgain,
    /// It is over, and another one of its kind may be begun.
    NextMayBegin,
}

#[derive(Debug, Clone)]
struct Ended {
    count: u64,
    reason: EndReason,
    then: Then,
}

/// Endings since the node started, by the name of what ended: parts of a node and of its outputs, so there are few.
/// Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Endings(Arc<Mutex<BTreeMap<String, Ended>>>);

impl Endings {
    /// Takes note of an ending, and has it logged and counted.
    pub fn note(&self, name: &str, reason: &EndReason, then: Then) {
        metrics::part_ended(name);
        match then {
            Then::BeginsAgain => tracing::error!(part = name, %reason, "a part of the node ended: it begins again"),
            Then::NextMayBegin => tracing::error!(part = name, %reason, "a part of the node ended"),
        }
        let mut ended = self.0.lock();
        let count = ended.get(name).map_or(0, |ended| ended.count) + 1;
        ended.insert(name.to_owned(), Ended { count, reason: reason.clone(), then });
    }

    /// A sentence about each that ended, for the operator.
    pub fn complaints(&self) -> Vec<String> {
        let sentence = |(name, ended): (&String, &Ended)| {
            let times = if ended.count == 1 { "once".to_owned() } else { format!("{} times", ended.count) };
            let then = match ended.then {
                Then::BeginsAgain => "it begins again by itself",
                Then::NextMayBegin => "another one may be begun",
            };
            format!("{name} ended {times} since this node started, the last time because {}; {then}", ended.reason)
        };
        self.0.lock().iter().map(sentence).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panic_of(work: impl FnOnce() + std::panic::UnwindSafe) -> String {
        let payload = std::panic::catch_unwind(work).unwrap_err();
        EndReason::panic(&*payload).to_string()
    }

    #[test]
    fn a_panic_is_told_without_what_it_quotes_and_in_bounded_length() {
        let (nothing, secret) = (Vec::<u8>::new(), "postgres://user:topsecret@host".to_owned());
        let unwrapped = || std::hint::black_box(Err::<(), _>("topsecret".to_owned())).unwrap();
        let cases = [
            (panic_of(|| panic!("on purpose: as a test")), "it panicked: on purpose: as a test"),
            (panic_of(unwrapped), "it panicked: called `Result::unwrap()` on an `Err` value"),
            (panic_of(move || assert_eq!(nothing[std::hint::black_box(3)], 0)), "it panicked: index out of bounds"),
            (panic_of(move || panic!("cannot reach {secret} now")), "it panicked: cannot reach"),
            (panic_of(|| std::panic::panic_any(7)), "it panicked"),
        ];
        for (told, expected) in cases {
            assert_eq!(told, expected);
        }
        let long = panic_of(|| panic!("{}", "word ".repeat(1_000)));
        assert_eq!(long.chars().count(), ENDING_REASON_CHARS_MAX);
        assert_eq!(EndReason::new("one\ntwo"), EndReason::new("one"));
    }

    #[test]
    fn each_that_ended_is_told_once_with_how_often_and_the_last_reason() {
        let endings = Endings::default();
        assert_eq!(endings.complaints(), [""; 0]);
        endings.note("the publisher of a", &EndReason::new("it panicked: first"), Then::BeginsAgain);
        endings.note("the publisher of a", &EndReason::new("it panicked: second"), Then::BeginsAgain);
        endings.note("a copy", &EndReason::by_itself(), Then::NextMayBegin);
        assert_eq!(
            endings.complaints(),
            [
                "a copy ended once since this node started, the last time because it ended by itself; another one may be begun",
                "the publisher of a ended 2 times since this node started, the last time because it panicked: second; it begins again by itself",
            ]
        );
    }
}
