//! Which of a batch's messages are permitted, as far as the state before the batch tells.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_types::task_v1::SignedKey;
use lockstep_types::{Address, Api, DevicePolicy, Evidence, Message, ProjectId, ProjectSettings, keccak256};

use super::{History, Rejection};
use crate::devices::{Nonce, NonceState, Standing};
use crate::projects::Projects;

/// What the state says about the devices and nonces of a batch.
#[derive(Debug, Default)]
pub(super) struct Permissions {
    chain: bool,
    standings: BTreeMap<(ProjectId, Address), Standing>,
    nonces: BTreeMap<Nonce, NonceState>,
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
    pub fn ask<V: History>(view: &V, projects: &Projects, messages: &[Message]) -> Result<Self, V::Error> {
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
        if !nonces.is_empty() {
            let nonces: Vec<_> = nonces.into_iter().collect();
            asked.nonces = nonces.iter().copied().zip(view.nonces(&nonces)?).collect();
        }
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

    /// Whether the same content is a retry however late it comes: the device's nonce says so, or its envelope, which is
    /// never the same for two readings.
    pub fn is_once(&self, message: &Message) -> bool {
        let is_used = |nonce| self.nonces.get(&nonce).is_some_and(|state| state.used);
        message.api == Api::TaskV1 || nonce_of(message).is_some_and(is_used)
    }

    /// Uses up a message's nonce, where it has one: which to write down, and which lower one need not be kept.
    pub fn use_nonce(
        &mut self,
        message: &Message,
        settings: &ProjectSettings,
    ) -> Result<Option<(Nonce, Option<u64>)>, Rejection> {
        let Some(nonce) = nonce_of(message) else { return Ok(None) };
        let state = self.nonces.get(&nonce).copied().unwrap_or_default();
        let strict = settings.strict_nonces && message.api == Api::TaskV1;
        let stale = strict && state.highest.is_some_and(|highest| highest >= nonce.2);
        if state.used || stale {
            return Err(Rejection::Nonce);
        }
        // What follows in this batch is not in the store yet.
        let of_device = (nonce.0, nonce.1, 0)..=(nonce.0, nonce.1, u64::MAX);
        for (_, other) in self.nonces.range_mut(of_device) {
            other.highest = other.highest.max(Some(nonce.2));
        }
        if let Some(own) = self.nonces.get_mut(&nonce) {
            own.used = true;
        }
        Ok(Some((nonce, state.highest.filter(|_| strict))))
    }
}
