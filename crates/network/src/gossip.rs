//! Gossip: anonymous messages, told apart by the hash of their content, passed on after the consumer's verdict.
//!
//! Members are explicit peers of each other: no mesh to be elected into, no score that silences anyone. Messages carry
//! no author, because the evidence within each counts, and connections prove who passed it on.

use std::time::Duration;

use bytes::Bytes;
use libp2p::PeerId;
use libp2p::gossipsub::{
    Behaviour, ConfigBuilder, IdentTopic, Message, MessageAcceptance, MessageAuthenticity, MessageId, ValidationMode,
    Version,
};
use lockstep_types::{NodeId, keccak256};
use tokio::sync::mpsc;

use crate::hello::Identity;
use crate::limits::{GOSSIP_INBOX_MAX, GOSSIP_PEER_QUEUE_MAX, VERDICTS_MAX};
use crate::metrics;

/// Room for the protobuf around a message.
const ENVELOPE_BYTES: usize = 1024;
/// A verdict must come within this many heartbeats of a second; the memory of messages grows with it.
const HISTORY_HEARTBEATS: usize = 3;
/// How long a message to one peer may wait in that peer's queue.
const QUEUE_AGE_MAX: Duration = Duration::from_secs(2);
/// How long a content's hash is remembered, so that a duplicate is not delivered again.
const DUPLICATE_MEMORY: Duration = Duration::from_secs(60);

/// Received messages, in the order of their arrival. Dropping it makes the node ignore all gossip.
#[derive(Debug)]
pub struct GossipInbox {
    messages: mpsc::Receiver<GossipMessage>,
}

impl GossipInbox {
    /// The next message; `None` when the network has stopped. Cancel safe.
    pub async fn next(&mut self) -> Option<GossipMessage> {
        self.messages.recv().await
    }
}

/// Fills a [`GossipInbox`] that no swarm fills.
#[derive(Debug, Clone)]
pub struct GossipFeed {
    inbox: mpsc::Sender<GossipMessage>,
    verdicts: mpsc::Sender<Verdict>,
}

impl GossipFeed {
    /// An inbox, and what fills it.
    pub fn new() -> (Self, GossipInbox) {
        let (inbox, messages) = mpsc::channel(GOSSIP_INBOX_MAX);
        // Nobody asks what became of a message.
        let verdicts = mpsc::channel(1).0;
        (Self { inbox, verdicts }, GossipInbox { messages })
    }

    /// Delivers a message that a member passed on; without room it is lost.
    pub fn deliver(&self, from: NodeId, bytes: Bytes) {
        let ticket = GossipTicket { of: None, verdicts: self.verdicts.clone() };
        let _ = self.inbox.try_send(GossipMessage { from: Some(from), bytes, ticket });
    }
}

/// One message, delivered once in a minute however many members pass it on.
#[derive(Debug)]
pub struct GossipMessage {
    /// The member that passed it on, which need not be the one that published it. `None` where it has just left.
    pub from: Option<NodeId>,
    /// The content, unchecked.
    pub bytes: Bytes,
    /// Through it the consumer says what becomes of the message.
    pub ticket: GossipTicket,
}

/// Decides within about two seconds whether a message goes on to others. Dropped without a word, it does not.
#[derive(Debug)]
pub struct GossipTicket {
    of: Option<(MessageId, PeerId)>,
    verdicts: mpsc::Sender<Verdict>,
}

#[derive(Debug)]
pub(crate) struct Verdict {
    pub message: MessageId,
    pub from: PeerId,
    pub acceptance: MessageAcceptance,
}

impl GossipTicket {
    /// The content is valid: pass it on.
    pub fn accept(mut self) {
        self.decide(MessageAcceptance::Accept);
    }

    /// Not passed on, nobody's fault: already known, or no time to check it.
    pub fn ignore(mut self) {
        metrics::ignored("ignored");
        self.decide(MessageAcceptance::Ignore);
    }

    /// Not passed on, and it should not have been sent.
    pub fn reject(mut self) {
        metrics::ignored("rejected");
        self.decide(MessageAcceptance::Reject);
    }

    fn decide(&mut self, acceptance: MessageAcceptance) {
        let Some((message, from)) = self.of.take() else { return };
        if self.verdicts.try_send(Verdict { message, from, acceptance }).is_err() {
            metrics::ignored("verdict_lost");
        }
    }
}

impl Drop for GossipTicket {
    fn drop(&mut self) {
        self.decide(MessageAcceptance::Ignore);
    }
}

/// The swarm's side of the inbox.
#[derive(Debug)]
pub(crate) struct Deliveries {
    inbox: mpsc::Sender<GossipMessage>,
    verdicts: mpsc::Sender<Verdict>,
    bytes_max: u64,
}

/// Makes an inbox, the swarm's side of it, and where verdicts come out.
pub(crate) fn inbox(bytes_max: u64) -> (GossipInbox, Deliveries, mpsc::Receiver<Verdict>) {
    let (inbox, messages) = mpsc::channel(GOSSIP_INBOX_MAX);
    let (verdicts, decided) = mpsc::channel(VERDICTS_MAX);
    (GossipInbox { messages }, Deliveries { inbox, verdicts, bytes_max }, decided)
}

impl Deliveries {
    /// Hands a message to the consumer, or says what to do with it where that is not possible. Never waits.
    pub fn deliver(&self, id: MessageId, source: PeerId, from: Option<NodeId>, data: Vec<u8>) -> Option<Verdict> {
        let refuse = |reason, acceptance| {
            metrics::ignored(reason);
            Some(Verdict { message: id.clone(), from: source, acceptance })
        };
        if data.len() as u64 > self.bytes_max {
            return refuse("too_large", MessageAcceptance::Reject);
        }
        let Ok(place) = self.inbox.try_reserve() else {
            return refuse("inbox_full", MessageAcceptance::Ignore);
        };
        let ticket = GossipTicket { of: Some((id, source)), verdicts: self.verdicts.clone() };
        place.send(GossipMessage { from, bytes: data.into(), ticket });
        metrics::received();
        None
    }
}

pub(crate) fn topic(identity: &Identity) -> IdentTopic {
    IdentTopic::new(identity.gossip_protocol())
}

pub(crate) fn behaviour(identity: &Identity, bytes_max: u64, members: &[PeerId]) -> Result<Behaviour, String> {
    let config = ConfigBuilder::default()
        .protocol_id(identity.gossip_protocol(), Version::V1_1)
        .validation_mode(ValidationMode::Anonymous)
        .message_id_fn(|message: &Message| MessageId::from(keccak256(&[&message.data]).to_vec()))
        .validate_messages()
        .max_transmit_size(bytes_max as usize + ENVELOPE_BYTES)
        .flood_publish(true)
        .history_length(HISTORY_HEARTBEATS)
        .history_gossip(1)
        .duplicate_cache_time(DUPLICATE_MEMORY)
        .connection_handler_queue_len(GOSSIP_PEER_QUEUE_MAX)
        .publish_queue_duration(QUEUE_AGE_MAX)
        .forward_queue_duration(QUEUE_AGE_MAX)
        .build()
        .map_err(|error| error.to_string())?;
    let mut gossip = Behaviour::new(MessageAuthenticity::Anonymous, config)?;
    gossip.subscribe(&topic(identity)).map_err(|error| error.to_string())?;
    for peer in members {
        gossip.add_explicit_peer(peer);
    }
    Ok(gossip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_inbox_ignores_and_an_unjudged_message_is_ignored() {
        let (mut inbox, deliveries, mut verdicts) = inbox(10);
        let deliver =
            |bytes: &[u8]| deliveries.deliver(MessageId::new(bytes), PeerId::random(), Some(NodeId(1)), bytes.to_vec());
        for i in 0..GOSSIP_INBOX_MAX {
            assert!(deliver(&i.to_be_bytes()).is_none());
        }
        assert!(deliver(b"one more").is_some_and(|v| matches!(v.acceptance, MessageAcceptance::Ignore)));
        assert!(deliver(b"much too large").is_some_and(|v| matches!(v.acceptance, MessageAcceptance::Reject)));
        drop(inbox.messages.try_recv().unwrap());
        assert!(matches!(verdicts.try_recv().unwrap().acceptance, MessageAcceptance::Ignore));
        inbox.messages.try_recv().unwrap().ticket.accept();
        assert!(matches!(verdicts.try_recv().unwrap().acceptance, MessageAcceptance::Accept));
        assert!(verdicts.try_recv().is_err(), "one verdict a message");
    }
}
