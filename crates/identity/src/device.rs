//! The encrypted conversation, from both sides: what a server and a device do with their keys.

use rand_core::CryptoRng;

use crate::did::{Did, KeyNumber, Kid};
use crate::document::{Document, Style};
use crate::envelope::{EnvelopeError, Opened, open, seal};
use crate::secret::{Party, PartySecret, ServerIdentity};

/// A device's keys under their names: for clients, load generators and tests.
#[derive(Debug)]
pub struct DeviceIdentity {
    party: Party,
}

impl DeviceIdentity {
    /// A device that stores its keys: they have the numbers 1 and 2.
    pub fn new(secret: PartySecret) -> Self {
        Self::with_numbers(secret, KeyNumber::DEVICE_MASTER, KeyNumber::DEVICE_KEY_AGREEMENT)
    }

    /// A device whose keys have other numbers.
    pub fn with_numbers(secret: PartySecret, master: KeyNumber, key_agreement: KeyNumber) -> Self {
        Self { party: Party::new(secret, (master, key_agreement)) }
    }

    /// The device's DID.
    pub fn did(&self) -> Did {
        self.party.did
    }

    /// The id of its master key.
    pub fn kid(&self) -> &Kid {
        &self.party.kid
    }

    /// The id of the key that answers are encrypted to.
    pub fn key_agreement_kid(&self) -> &Kid {
        &self.party.key_agreement_kid
    }

    /// The device's document, to the byte as the C SDK writes it.
    pub fn document(&self) -> String {
        self.party.document(Style::CSdk)
    }

    /// Encrypts a request to the server whose document is `server`.
    pub fn encrypt_request(
        &self,
        server: &Document,
        request: &str,
        random: &mut impl CryptoRng,
    ) -> Result<String, EnvelopeError> {
        seal(Some(&self.did()), &[server.recipient()], request, random)
    }

    /// Reads a server's answer.
    pub fn decrypt_answer(&self, text: &[u8]) -> Result<Opened, EnvelopeError> {
        open(&self.party.secret.key_agreement, self.key_agreement_kid(), text)
    }
}

impl ServerIdentity {
    /// Reads what a device encrypted to this server. It does not say which device that was: its token does.
    pub fn decrypt_request(&self, text: &[u8]) -> Result<Opened, EnvelopeError> {
        open(&self.party.secret.key_agreement, self.key_agreement_kid(), text)
    }

    /// Encrypts an answer to the device whose document is `device`.
    pub fn encrypt_answer(
        &self,
        device: &Document,
        answer: &str,
        random: &mut impl CryptoRng,
    ) -> Result<String, EnvelopeError> {
        seal(Some(&self.did()), &[device.recipient()], answer, random)
    }
}
