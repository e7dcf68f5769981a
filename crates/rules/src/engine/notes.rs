//! Collects what each stage did with a message, for whoever tries rules out.

use crate::judge::{Accepted, Note, Stage};

/// Notes, where somebody wants them: nothing is put into words elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    list: Option<Vec<Note>>,
    spent: u64,
}

impl Notes {
    pub fn wanted() -> Self {
        Self { list: Some(Vec::new()), spent: 0 }
    }

    /// Notes what a stage did, if anything, after which so much fuel was spent in all.
    pub fn add(&mut self, stage: Stage, spent: u64, did: impl FnOnce() -> String) {
        if let Some(list) = &mut self.list {
            let did = did();
            if !did.is_empty() {
                list.push(Note { stage, did, fuel: spent.saturating_sub(self.spent) });
                self.spent = spent;
            }
        }
    }

    pub fn into_list(self) -> Vec<Note> {
        self.list.unwrap_or_default()
    }
}

/// What the last stage found out about a message.
pub(crate) fn aggregated<'a>(accepted: &Accepted, names: impl Iterator<Item = &'a String>) -> String {
    let mut parts = Vec::new();
    parts.extend(accepted.time_ms.map(|time| format!("time {time}")));
    parts.extend(accepted.window.map(|window| format!("window {window}")));
    parts.extend(accepted.group.as_ref().map(|group| format!("group {group:?}")));
    parts.extend(names.zip(&accepted.values).map(|(name, value)| format!("{name} {value}")));
    parts.extend(accepted.closes.then(|| "closes its group".to_owned()));
    parts.join(", ")
}
