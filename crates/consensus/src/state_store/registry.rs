//! Reads of what the state keeps of projects: their records, their rules and what these took and refused, and how far a
//! chain was read.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_ledger::{ChainCursor, Project, RulesState, compile_rules};
use lockstep_rules::Rules;
use lockstep_store::{Pair, Table, keys};
use lockstep_types::{DecodeError, Hash32, ProjectId, Sequence};

use super::{ReadError, StateStore, number};

impl StateStore {
    /// Projects that differ from the genesis.
    pub fn projects(&self) -> Result<BTreeMap<ProjectId, Project>, ReadError> {
        let pair = |(key, value): Pair| Ok((ProjectId(number(&key[1..])?), Project::decode(value)?));
        self.load(Table::Index, keys::PROJECT)?.into_iter().map(pair).collect()
    }

    /// Rules of projects, by the hash of their bundle.
    ///
    /// # Errors
    /// Also where this program cannot use what others could.
    pub fn rules(&self) -> Result<BTreeMap<Hash32, Arc<Rules>>, ReadError> {
        let compiled = |(_, bundle): Pair| compile_rules(&bundle).map_err(ReadError::Rules);
        self.load(Table::Index, keys::RULES)?.into_iter().map(compiled).collect()
    }

    /// What rules took and refused, by project.
    pub fn rules_states(&self) -> Result<BTreeMap<ProjectId, RulesState>, ReadError> {
        let pair = |(key, value): Pair| Ok((ProjectId(number(&key[1..])?), RulesState::decode(value)?));
        self.load(Table::Index, keys::RULES_STATE)?.into_iter().map(pair).collect()
    }

    /// What a project's rules took and refused; `None` where it never had any.
    pub fn rules_state(&self, project: ProjectId) -> Result<Option<RulesState>, ReadError> {
        let record = self.storage().get(Table::Index, &keys::rules_state(project))?;
        Ok(record.map(RulesState::decode).transpose()?)
    }

    /// Words with which rules marked a message.
    pub fn flags(&self, sequence: Sequence) -> Result<Vec<String>, ReadError> {
        let Some(words) = self.storage().get(Table::Index, &keys::flags(sequence))? else { return Ok(Vec::new()) };
        let words = std::str::from_utf8(&words).map_err(|e| DecodeError::malformed("flags", e))?;
        Ok(words.split(' ').map(str::to_owned).collect())
    }

    /// How far the chain was read.
    pub fn chain(&self) -> Result<Option<ChainCursor>, ReadError> {
        Ok(self.storage().get(Table::Index, keys::CHAIN)?.map(ChainCursor::decode).transpose()?)
    }
}
