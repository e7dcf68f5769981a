//! Which of a batch's messages are permitted, as far as the state before the batch tells.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_types::task_v1::SignedKey;
use lockstep_types::{Address, Api, DevicePolicy, Evidence, Message, ProjectId, ProjectSettings, Sequence, keccak256};

use super::{History, Ledger, Rejection};
use crate::devices::{HighestNonce, Nonce, Standing};
use crate::effects::Effects;

/// What the state says about the devices and nonces of a batch.
#[derive(Debug, Default)]
pub(super) struct Permissions {
    chain: bool,
    standings: BTreeMap<(ProjectId, Address), Standing>,
    /// What was used, and is not forgotten.
    used: BTreeSet<Nonce>,
    /// The highest nonces that are not forgotten.
    highest: BTreeMap<(ProjectId, Address), HighestNonce>,
}

/// Envelopes are remembered beside the nonces of the API of 2025, under an address that no device has.
const ENVELOPES_DOMAIN: &[u8] = b"lockstep/envelopes/v1";

/// What a message is taken once by: its nonce, or the beginning of its envelope's hash.
fn nonce_of(message: &Message) -> Option<Nonce> {
    match &message.evidence {
        Evidence::Envelope { envelope, .. } => {
            let (holder, (first, _)) =
                (keccak256(&[ENVELOPES_DOMAIN, &message.device.0]), envelope.split_first_chunk::<8>()?);
            let holder = Address(*holder.last_chunk()?);
            Some((message.project_id, holder, u64::from_be_bytes(*first)))
        }
        _ => Some((message.project_id, message.device, message.task_nonce()?)),
    }
}

/// Whether the project asks who the device is. A message without a device has nobody to ask about.
fn asks_for_device(message: &Message, settings: &ProjectSettings) -> bool {
    message.api != Api::Unsigned && settings.policy() != DevicePolicy::Any
}

impl Permissions {
    /// Reads everything that the messages of a batch need, each thing once.
    pub fn ask<V: History>(view: &V, ledger: &Ledger, messages: &[Message]) -> Result<Self, V::Error> {
        let projects = &ledger.projects;
        let asks = |message: &&Message| {
            projects.settings(message.project_id).is_some_and(|settings| asks_for_device(message, settings))
        };
        let devices: BTreeSet<_> = messages.iter().filter(asks).map(|m| (m.project_id, m.device)).collect();
        let nonces: BTreeSet<_> = messages.iter().filter_map(nonce_of).collect();
        let mut asked = Self { chain: projects.params().chain.is_some(), ..Self::default() };
        if !devices.is_empty() {
            let devices: Vec<_> = devices.into_iter().collect();
            asked.standings = devices.iter().copied().zip(view.standings(&devices)?).collect();
        }
        if nonces.is_empty() {
            return Ok(asked);
        }
        // What is forgotten is not there, whether or not this node's disk has it still.
        let kept = ledger.head.horizon.sequence;
        let nonces: Vec<_> = nonces.into_iter().collect();
        let known = nonces.iter().copied().zip(view.nonces(&nonces)?);
        asked.used = known.filter(|(_, by)| by.is_some_and(|by| by >= kept)).map(|(nonce, _)| nonce).collect();
        let ascending = messages.iter().filter(|message| message.api == Api::TaskV1);
        let devices: BTreeSet<_> = ascending.map(|message| (message.project_id, message.device)).collect();
        let devices: Vec<_> = devices.into_iter().collect();
        let known = devices.iter().copied().zip(view.highest_nonces(&devices)?);
        let is_kept = |highest: &HighestNonce| highest.forgotten_with >= kept;
        asked.highest = known.filter_map(|(of, highest)| Some((of, highest.filter(is_kept)?))).collect();
        Ok(asked)
    }

    /// Whether the device may submit to the project.
    pub fn check_device(&self, message: &Message, settings: &ProjectSettings) -> Result<(), Rejection> {
        if !asks_for_device(message, settings) {
            return Ok(());
        }
        let standing = self.standings.get(&(message.project_id, message.device)).copied().unwrap_or_default();
        if standing.allows(settings.policy(), self.chain) { Ok(()) } else { Err(Rejection::Device) }
    }

    /// Whether what the device signed is what the project wants signed.
    pub fn check_signed(message: &Message, settings: &ProjectSettings) -> Result<(), Rejection> {
        match &message.evidence {
            Evidence::Task(task)
                if !task
                    .signed
                    .iter()
                    .map(|(name, _)| name.as_str())
                    .eq(settings.signed_keys.iter().map(SignedKey::as_str)) =>
            {
                Err(Rejection::SignedKeys)
            }
            _ => Ok(()),
        }
    }

    /// Whether the same content is a retry for as long as the first one is kept: the device's nonce says so, or its
    /// envelope, which is never the same for two readings.
    pub fn is_once(&self, message: &Message) -> bool {
        message.api == Api::TaskV1 || nonce_of(message).is_some_and(|nonce| self.used.contains(&nonce))
    }

    /// Uses up the nonce of the message that gets this sequence, where it has one. What follows in this batch is not in
    /// the store yet, so it is noted here too.
    pub fn use_nonce(
        &mut self,
        message: &Message,
        settings: &ProjectSettings,
        sequence: Sequence,
        effects: &mut Effects,
    ) -> Result<(), Rejection> {
        let Some(nonce @ (project, holder, number)) = nonce_of(message) else { return Ok(()) };
        let of_tasks = message.api == Api::TaskV1;
        let ascend = of_tasks && settings.strict_nonces;
        let before = self.highest.get(&(project, holder)).copied();
        let is_low = ascend && before.is_some_and(|highest| highest.nonce >= number);
        if is_low || self.used.contains(&nonce) {
            return Err(Rejection::Nonce);
        }
        // Where they ascend, the highest says it all.
        if !ascend {
            self.used.insert(nonce);
            effects.nonce(nonce, sequence);
        }
        if of_tasks {
            let forgotten_with = if ascend { HighestNonce::FOR_EVER } else { sequence };
            let highest = HighestNonce { forgotten_with, nonce: before.map_or(number, |b| b.nonce.max(number)) };
            self.highest.insert((project, holder), highest);
            effects.highest_nonce(project, holder, highest);
        }
        Ok(())
    }
}
