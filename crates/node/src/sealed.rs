//! Devices that show a token and encrypt: opens what they send with the server secret, and answers in kind. What costs
//! CPU runs on the verification threads.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use lockstep_api::{Accepted, MessageStates, ProverStates, Read, Sealed, SealedError, find_message};
use lockstep_consensus::StateStore;
use lockstep_identity::sprout::message_answer;
use lockstep_identity::{Did, Document, SproutRequest, Token};
use lockstep_ledger::{Device, History as _};
use lockstep_types::{Address, keccak256};

use crate::clock::now_ms;
use crate::documents::Documents;
use crate::ingress::Ingress;
use crate::proofs;
use crate::secrets::ServerSecrets;
use crate::verify::Verifier;

/// See the module's documentation.
pub(crate) struct Sealing {
    /// `None` where the node has no server secret.
    pub secrets: Option<Arc<ServerSecrets>>,
    pub ingress: Arc<Ingress>,
    pub state: StateStore,
    pub documents: Arc<Documents>,
    pub verifier: Verifier,
    pub read: Arc<dyn Read>,
    pub prover: Option<Arc<dyn ProverStates>>,
}

/// A device that is who it says, and the document that answers are encrypted by.
struct Caller {
    secrets: Arc<ServerSecrets>,
    device: Address,
    document: Document,
}

/// What was in an envelope.
struct Opened {
    token: Token,
    plaintext: Vec<u8>,
}

fn random() -> Result<impl rand_core::CryptoRng, SealedError> {
    use rand::SeedableRng as _;
    rand::rngs::StdRng::try_from_rng(&mut rand::rngs::SysRng)
        .map_err(|_| SealedError::Unavailable("the system gives no randomness".into()))
}

impl Sealing {
    fn secrets(&self) -> Result<Arc<ServerSecrets>, SealedError> {
        self.secrets.clone().ok_or(SealedError::NoSecret)
    }

    /// Does something that costs CPU on a verification thread.
    async fn aside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, SealedError> {
        let busy = || SealedError::Submit(lockstep_api::SubmitError::Busy { retry_after_ms: 1_000 });
        let done = self.verifier.aside(work).map_err(|_| busy())?;
        done.await.map_err(|_| SealedError::Submit(lockstep_api::SubmitError::Stopping))
    }

    async fn device(&self, device: Address) -> Result<Option<Device>, SealedError> {
        let known = proofs::look(&self.state, move |state| state.device(&device)).await;
        known.map_err(|e| SealedError::Unavailable(e.to_string()))
    }

    /// Its document, if it is registered and has one.
    async fn document(&self, device: &Address) -> Result<Option<Document>, SealedError> {
        let text = self.documents.document(device).await.map_err(|e| SealedError::Unavailable(e.to_string()))?;
        let Some(text) = text else { return Ok(None) };
        match Document::parse(text.as_bytes()) {
            Ok(document) if document.did.address() == *device => Ok(Some(document)),
            _ => Err(SealedError::Denied("the device's DID document is not one of its own".into())),
        }
    }

    /// Whose token it is. It must be one of this server's, of a device that is registered, and not revoked.
    async fn caller(&self, token: &Token) -> Result<Caller, SealedError> {
        let device = token.subject.address();
        let revoked = |known: &Device| token.issued_at_s.unwrap_or(0).saturating_mul(1_000) < known.tokens_from.0;
        match self.device(device).await? {
            Some(known) if revoked(&known) => Err(SealedError::Token("the token is revoked".into())),
            Some(known) if known.registered => {
                let document = self.document(&device).await?;
                let document = document.ok_or_else(|| SealedError::Denied("the device has no DID document".into()))?;
                Ok(Caller { secrets: self.secrets()?, device, document })
            }
            _ => Err(SealedError::Token("the token's device is not registered in this network".into())),
        }
    }

    async fn seal(&self, caller: Caller, text: String) -> Result<String, SealedError> {
        let sealed = self.aside(move || {
            caller
                .secrets
                .current()
                .encrypt_answer(&caller.document, &text, &mut random()?)
                .map_err(|e| SealedError::Unavailable(e.to_string()))
        });
        sealed.await?
    }

    async fn states_of(&self, device: Address, id: String) -> Result<String, SealedError> {
        let (message, task) = find_message(&*self.read, &id).await?.unzip();
        if message.as_ref().is_some_and(|message| message.device != Some(device)) {
            return Err(SealedError::Denied("the message is another device's".into()));
        }
        let task = task.flatten();
        let states = MessageStates::of(id, message.as_ref(), task.as_ref());
        let states = states.with_provers(self.prover.as_deref(), task.as_ref()).await;
        serde_json::to_string(&states).map_err(|e| SealedError::Unavailable(e.to_string()))
    }
}

fn open(secrets: &ServerSecrets, token: &str, envelope: &[u8]) -> Result<Opened, SealedError> {
    let token = secrets.verify_token(token).map_err(|e| SealedError::Token(e.to_string()))?;
    let opened = secrets.open(envelope).map_err(|e| SealedError::Unreadable(e.to_string()))?;
    if !opened.may_be_from(&token.subject) {
        return Err(SealedError::Token("the token is another device's than the message".into()));
    }
    Ok(Opened { token, plaintext: opened.plaintext })
}

#[async_trait]
impl Sealed for Sealing {
    fn did_document(&self) -> Option<Arc<str>> {
        Some(self.secrets.as_ref()?.document())
    }

    async fn issue_token(&self, device: Did) -> Result<String, SealedError> {
        let (secrets, address) = (self.secrets()?, device.address());
        let unknown = || SealedError::Denied(format!("{device} is not registered in this network with a DID document"));
        let known = self.device(address).await?.filter(|known| known.registered).ok_or_else(unknown)?;
        let document = self.document(&address).await?.ok_or_else(unknown)?;
        // A token of the second in which older ones were revoked would be taken for one of them.
        let now_s = (now_ms().0 / 1_000).max(known.tokens_from.0.div_ceil(1_000));
        let sealed = self.aside(move || {
            let token = secrets.current().issue_token(&device, now_s);
            secrets
                .current()
                .encrypt_answer(&document, &token, &mut random()?)
                .map_err(|e| SealedError::Unavailable(e.to_string()))
        });
        sealed.await?
    }

    async fn submit(&self, token: &str, envelope: Bytes) -> Result<String, SealedError> {
        let (secrets, token) = (self.secrets()?, token.to_owned());
        let hash = keccak256(&[&envelope]);
        let opened = self.aside(move || open(&secrets, &token, &envelope)).await??;
        let caller = self.caller(&opened.token).await?;
        let unreadable = |e: &dyn std::fmt::Display| SealedError::Unreadable(e.to_string());
        let request = SproutRequest::parse(&opened.plaintext).map_err(|e| unreadable(&e))?;
        request.check_limits(self.ingress.message_bytes_max()).map_err(|e| unreadable(&e))?;
        let Accepted { message_id, .. } = self.ingress.submit_opened(request, caller.device, hash).await?;
        self.seal(caller, message_answer(&message_id.to_string())).await
    }

    async fn states(&self, token: &str, message: &str) -> Result<String, SealedError> {
        let (secrets, token, id) = (self.secrets()?, token.to_owned(), message.to_owned());
        let token = self.aside(move || secrets.verify_token(&token)).await?;
        let caller = self.caller(&token.map_err(|e| SealedError::Token(e.to_string()))?).await?;
        let states = self.states_of(caller.device, id).await?;
        self.seal(caller, states).await
    }
}
