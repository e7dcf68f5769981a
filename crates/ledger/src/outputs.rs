//! What the network wants of its outputs: that one is fed, is held up, or belongs to it no longer.

use std::collections::BTreeMap;

use lockstep_types::{DecodeError, OutputName};

/// Outputs that can be held up at a time.
pub const PAUSED_OUTPUTS_MAX: usize = 256;
/// Removed outputs that are remembered. None is forgotten to make room: a report on it that is still on its way, or a
/// node that still names it, would bring it back. So beyond this no more are removed until one was added anew.
pub const REMOVED_OUTPUTS_MAX: usize = 1_024;

/// What the network wants of one of its outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum OutputState {
    /// Whoever's turn it is feeds it.
    #[default]
    Running,
    /// Nobody feeds it until it is let go on. What it lacks is kept for it.
    Paused,
    /// It belongs to the network no longer: nobody feeds it, and nothing is kept for it or known of it, until it is added
    /// anew.
    Removed,
}

/// Why the state of an output stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutputRefusal {
    /// There is no place for another one that is held up.
    #[error("{PAUSED_OUTPUTS_MAX} outputs are held up already: let one go on first")]
    TooManyPaused,
    /// There is no place to remember another removed one.
    #[error(
        "{REMOVED_OUTPUTS_MAX} removed outputs are remembered already: first let one go on that no node's config.toml names any more (`lockstep outputs resume`), so that it is forgotten"
    )]
    TooManyRemoved,
    /// It is not in the network, so it cannot be held up.
    #[error("it was removed from the network: `lockstep outputs resume` adds it anew")]
    Removed,
}

impl OutputState {
    /// The number that stands for it in the log and in the state.
    pub fn number(self) -> u8 {
        match self {
            Self::Running => 1,
            Self::Paused => 2,
            Self::Removed => 3,
        }
    }

    /// The state with this number.
    pub fn from_number(number: u32) -> Result<Self, DecodeError> {
        match number {
            1 => Ok(Self::Running),
            2 => Ok(Self::Paused),
            3 => Ok(Self::Removed),
            _ => Err(DecodeError::malformed("state of an output", format!("{number}"))),
        }
    }

    /// Reads a stored record.
    pub fn decode(record: &[u8]) -> Result<Self, DecodeError> {
        match record {
            [number] => Self::from_number((*number).into()),
            _ => Err(DecodeError::malformed("state of an output", "not one byte")),
        }
    }
}

/// The states of the network's outputs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutputStates {
    /// Those that do not run.
    held: BTreeMap<OutputName, OutputState>,
}

impl OutputStates {
    /// The state of an output. One that nothing was said of runs.
    pub fn of(&self, output: &OutputName) -> OutputState {
        self.held.get(output).copied().unwrap_or_default()
    }

    /// Whether it was removed, and not added anew since.
    pub fn is_removed(&self, output: &OutputName) -> bool {
        self.of(output) == OutputState::Removed
    }

    /// Outputs that do not run, by their names.
    pub fn held(&self) -> impl Iterator<Item = (&OutputName, OutputState)> {
        self.held.iter().map(|(name, state)| (name, *state))
    }

    fn count(&self, of: OutputState) -> usize {
        self.held.values().filter(|state| **state == of).count()
    }

    /// Whether an output may get a state.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, output: &OutputName, state: OutputState) -> Result<(), OutputRefusal> {
        let before = self.of(output);
        match state {
            _ if state == before => Ok(()),
            OutputState::Running => Ok(()),
            OutputState::Paused if before == OutputState::Removed => Err(OutputRefusal::Removed),
            OutputState::Paused if self.count(state) >= PAUSED_OUTPUTS_MAX => Err(OutputRefusal::TooManyPaused),
            OutputState::Removed if self.count(state) >= REMOVED_OUTPUTS_MAX => Err(OutputRefusal::TooManyRemoved),
            OutputState::Paused | OutputState::Removed => Ok(()),
        }
    }

    /// Gives an output a state, where it may have it. Returns whether that is another one than before.
    pub fn set(&mut self, output: &OutputName, state: OutputState) -> bool {
        if self.of(output) == state || self.check(output, state).is_err() {
            return false;
        }
        match state {
            OutputState::Running => drop(self.held.remove(output)),
            OutputState::Paused | OutputState::Removed => drop(self.held.insert(output.clone(), state)),
        }
        true
    }
}

impl FromIterator<(OutputName, OutputState)> for OutputStates {
    /// As they were stored.
    fn from_iter<T: IntoIterator<Item = (OutputName, OutputState)>>(states: T) -> Self {
        let held = states.into_iter().filter(|(_, state)| *state != OutputState::Running);
        Self { held: held.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::OutputState::{Paused, Removed, Running};
    use super::*;

    #[test]
    fn every_way_from_one_state_to_another_is_open_but_from_removed_to_paused() {
        let name: OutputName = "db".parse().unwrap();
        for (before, after, expected) in [
            (Running, Running, Running),
            (Running, Paused, Paused),
            (Running, Removed, Removed),
            (Paused, Running, Running),
            (Paused, Paused, Paused),
            (Paused, Removed, Removed),
            (Removed, Running, Running),
            (Removed, Paused, Removed),
            (Removed, Removed, Removed),
        ] {
            let mut states: OutputStates = [(name.clone(), before)].into_iter().collect();
            assert_eq!(states.check(&name, after).is_ok(), expected == after, "{before:?} {after:?}");
            assert_eq!(states.set(&name, after), before != expected, "{before:?} {after:?}");
            assert_eq!(states.of(&name), expected, "{before:?} {after:?}");
            assert_eq!(OutputState::decode(&[expected.number()]).unwrap(), expected);
        }
        for record in [&[][..], &[0], &[4], &[1, 1]] {
            assert!(OutputState::decode(record).is_err());
        }
    }

    #[test]
    fn what_is_remembered_has_a_bound_and_a_place_comes_free_when_one_is_added_anew() {
        let (mut states, name) =
            (OutputStates::default(), |n: usize| -> OutputName { format!("o{n}").parse().unwrap() });
        for (state, max, refusal) in [
            (Paused, PAUSED_OUTPUTS_MAX, OutputRefusal::TooManyPaused),
            (Removed, REMOVED_OUTPUTS_MAX, OutputRefusal::TooManyRemoved),
        ] {
            for n in 0..max {
                assert!(states.set(&name(n), state));
            }
            assert_eq!(states.check(&name(max), state), Err(refusal));
            assert!(!states.set(&name(max), state));
            assert_eq!((states.of(&name(max)), states.count(state)), (Running, max));
            assert!(states.set(&name(0), Running) && states.set(&name(max), state));
        }
    }
}
