//! Whether one content has as many places as it may have, by the clock of those who submitted it and whatever the time of
//! batches is.

use std::collections::HashMap;
use std::time::Duration;

use lockstep_types::genesis::RETRY_MARGIN_MS;
use lockstep_types::{ContentId, Sequence};

use super::{At, Call, Promise, Told, Violations};

/// Batch time may have gone on by so much less than the time of those who submit: clocks are off by some seconds, and where
/// they were ahead it waits, or goes slowly.
const BATCH_TIME_BEHIND_MAX: Duration = Duration::from_secs(10);

/// Most places that calls at these times may have, where all within a window from the one that made a place have that
/// one. None may have been told that it has none.
pub(super) fn places_max(mut invoked: Vec<At>, window_ms: u64) -> usize {
    invoked.sort_unstable();
    let (mut count, mut next) = (0, At::ZERO);
    for at in invoked {
        if count == 0 || at >= next {
            count += 1;
            next = at.saturating_add(Duration::from_millis(window_ms));
        }
    }
    count
}

/// Looks for calls that were told an old place although they came long after its window: a reading that was lost. `window_ms`
/// says in which windows contents are repeats, where they have an end.
pub(super) fn check_lost(calls: &[Call], window_ms: impl Fn(&ContentId) -> Option<u64>, violations: &mut Violations) {
    // When each place was told first: it was made before.
    let mut told_first: HashMap<(ContentId, Sequence), At> = HashMap::new();
    let told = |call: &Call| match call.told {
        Told::Ordered { sequence, .. } => Some(((call.content, sequence), call.answered?)),
        _ => None,
    };
    for (place, answered) in calls.iter().filter_map(told) {
        let first = told_first.entry(place).or_insert(answered);
        *first = (*first).min(answered);
    }
    for call in calls {
        let Some((place, _)) = told(call) else { continue };
        let Some(window_ms) = window_ms(&call.content) else { continue };
        let made = told_first[&place];
        let is_repeat_until = made
            .saturating_add(Duration::from_millis(window_ms.saturating_add(RETRY_MARGIN_MS)))
            .saturating_add(BATCH_TIME_BEHIND_MAX);
        if call.invoked > is_repeat_until {
            let text = format!(
                "what was submitted at {:?} is a new reading, and was told place {}, of {made:?} at the latest",
                call.invoked, place.1
            );
            violations.add(Promise::Once, text);
        }
    }
}
