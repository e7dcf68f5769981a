//! Patterns whose cost has an end: only those are taken whose automaton can be made whole and is small. Then no text makes a
//! matcher slower than a few nanoseconds for each byte, which the length of a pattern says nothing of: `a[ab]{50}[^ab]` is
//! short, and its automaton has more states than there are atoms.

use regex_automata::dfa::{StartKind, dense};
use regex_automata::nfa::thompson;

use crate::limits::{PATTERN_BYTES_MAX, PATTERNS_BYTES_MAX, PATTERNS_MAX};

/// How many more patterns a bundle may have, and how large their automata may be together.
#[derive(Debug)]
pub(crate) struct Patterns {
    count: usize,
    bytes: usize,
}

impl Default for Patterns {
    fn default() -> Self {
        Self { count: PATTERNS_MAX, bytes: PATTERNS_BYTES_MAX }
    }
}

impl Patterns {
    /// Counts a pattern.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn take(&mut self, pattern: &str) -> Result<(), String> {
        self.count = self.count.checked_sub(1).ok_or_else(|| format!("there are more than {PATTERNS_MAX} patterns"))?;
        let wrong = |why: String| format!("the pattern {pattern:?} cannot be used: {why}");
        let config = dense::Config::new()
            .start_kind(StartKind::Unanchored)
            .dfa_size_limit(Some(self.bytes.min(PATTERN_BYTES_MAX)))
            .determinize_size_limit(Some(PATTERN_BYTES_MAX));
        let automaton = dense::Builder::new()
            .configure(config)
            .thompson(thompson::Config::new().nfa_size_limit(Some(PATTERN_BYTES_MAX)))
            .build(pattern)
            .map_err(|error| {
                let what = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
                wrong(format!("{what}; long repetitions of what can be many things make it too large"))
            })?;
        self.bytes = self.bytes.saturating_sub(automaton.memory_usage());
        Ok(())
    }
}

/// A pattern of JSON Schema (ECMA 262) or CEL (RE2) as it is read here: in both `\d` and `\w` are of ASCII.
pub(crate) fn with_ascii_classes(pattern: &str) -> String {
    let (mut out, mut within) = (String::with_capacity(pattern.len()), false);
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match (letters.next(), within) {
                (Some('d'), true) => out.push_str("0-9"),
                (Some('d'), false) => out.push_str("[0-9]"),
                (Some('w'), true) => out.push_str("A-Za-z0-9_"),
                (Some('w'), false) => out.push_str("[A-Za-z0-9_]"),
                (Some('D'), false) => out.push_str("[^0-9]"),
                (Some('W'), false) => out.push_str("[^A-Za-z0-9_]"),
                (next, _) => {
                    out.push('\\');
                    out.extend(next);
                }
            },
            '[' => {
                within = true;
                out.push(letter);
            }
            ']' => {
                within = false;
                out.push(letter);
            }
            _ => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(pattern: &str) -> Result<usize, String> {
        let mut patterns = Patterns::default();
        patterns.take(pattern).map(|()| PATTERNS_BYTES_MAX - patterns.bytes)
    }

    #[test]
    fn what_people_write_is_taken() {
        for pattern in [
            r"^[a-z][a-z0-9-]{0,31}$",
            r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?Z$",
            r"^[\w.-]{1,64}@[\w.-]{1,64}$",
            r"^(0x)?[0-9a-fA-F]{40}$",
            r"^((25[0-5]|2[0-4]\d|1?\d?\d)(\.|$)){4}$",
            r"^.{1,32}$",
            r"^\S+$",
            r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
            r"^\+?[1-9]\d{1,14}$",
            r"ok|solar|mains",
            r"^\p{L}+$",
            "(?i)firmware",
        ] {
            let size = size(&with_ascii_classes(pattern)).unwrap();
            println!("{pattern}: {size} bytes");
        }
        assert_eq!(with_ascii_classes(r"[\w.]\\d\D"), r"[A-Za-z0-9_.]\\d[^0-9]");
    }

    #[test]
    fn what_has_too_many_states_is_refused() {
        for pattern in ["a[ab]{2500}[^ab]", "a[ab]{50}[^ab]", "((a{100}){100}){100}", "(a"] {
            assert!(size(pattern).is_err(), "{pattern}");
        }
    }
}
