//! In the place of the engine, in a program that was built without it. There are no rules, so nothing is ever asked of
//! any: [`Rules`] has no value, and whoever would make one is told why not.

use crate::bundle::Bundle;
use crate::document::Document;
use crate::error::RulesError;
use crate::judge::{Input, Judgement, Note, Refusal};

/// Answers that this program reads no documents.
pub(crate) fn read_document(_text: &str) -> Result<Document, RulesError> {
    Err(RulesError::LeftOut)
}

/// Rules that can be applied, of which a program without the feature `engine` has none.
#[derive(Debug)]
pub enum Rules {}

impl Rules {
    /// Makes rules of a bundle, in a program with the feature `engine`.
    ///
    /// # Errors
    /// Always [`RulesError::LeftOut`].
    pub fn compile(_bundle: &Bundle) -> Result<Self, RulesError> {
        Err(RulesError::LeftOut)
    }

    /// The document.
    pub fn document(&self) -> &Document {
        match *self {}
    }

    /// Whether the device's last accepted message is looked at.
    pub fn needs_last(&self) -> bool {
        match *self {}
    }

    /// What these rules make of a message.
    pub fn judge(&self, _input: &Input) -> Judgement {
        match *self {}
    }

    /// The same, and what each stage did.
    pub fn explain(&self, _input: &Input) -> (Judgement, Vec<Note>) {
        match *self {}
    }

    /// What can be told of a message at once, and cheaply.
    pub fn glance(&self, _input: &Input) -> (Result<(), Refusal>, u64) {
        match *self {}
    }
}
