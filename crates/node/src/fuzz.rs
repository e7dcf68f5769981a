//! What the fuzz targets call: the readers of bytes of this crate, with what must hold of what they take. Not for anybody
//! else.

use bytes::Bytes;
use lockstep_ledger::Command;
use lockstep_types::conflict::Conflict;
use lockstep_types::genesis::AGE_MS_MAX;
use lockstep_types::{Approval, BatchHeader, Epochs, Genesis, NodeId, SignedOrder, proto};
use prost::Message as _;

use crate::admin::AdminRequest;
use crate::backup::BackupManifest;
use crate::devices::SecretCurve;
use crate::limits::BUNDLE_MESSAGES_MAX;
use crate::{Config, bundle, conflicts, control, secrets};

/// A bundle of a member, or gossip.
pub fn bundle(bytes: Bytes) -> bool {
    let Ok(received) = bundle::decode(bytes) else { return false };
    assert!(received.len() <= BUNDLE_MESSAGES_MAX);
    assert!(received.iter().all(|(_, age_ms)| *age_ms <= AGE_MS_MAX));
    let (messages, ages_ms) = received.iter().map(|(message, age_ms)| (message.to_proto(), age_ms)).unzip();
    let wire = proto::Bundle { version: 1, messages, ages_ms };
    assert_eq!(bundle::decode(wire.encode_to_vec().into()).as_ref(), Ok(&received));
    for (message, _) in received {
        let (id, cost) = (message.content_id(), message.cost_bytes());
        assert!(cost >= message.to_proto().encoded_len().saturating_sub(message.data.len()));
        if let Ok(verified) = message.verify(|_| true) {
            assert_eq!(verified.content_id(), id);
        }
    }
    true
}

/// A request of a member on the control channel.
pub fn control_request(bytes: Bytes) -> bool {
    use proto::control_request::Kind;
    let Ok(proto::ControlRequest { kind: Some(kind) }) = control::decode(bytes) else { return false };
    match kind {
        Kind::Conflict(conflict) => Conflict::from_proto(conflict).is_ok_and(|conflict| {
            assert_eq!(Conflict::from_proto(conflict.to_proto()).as_ref(), Ok(&conflict));
            true
        }),
        Kind::Order(order) => SignedOrder::from_proto(order).is_ok(),
        Kind::Approval(approval) => Approval::from_proto(approval).is_ok(),
        Kind::Progress(report) => Command::progress(report).is_ok_and(|command| Command::decode(command).is_ok()),
        Kind::OutputChange(change) => Command::output_from_proto(&change).is_ok_and(|(output, state)| {
            assert_eq!(Command::output_to_proto(&output, state), change);
            true
        }),
        Kind::Certify(_) | Kind::Marks(_) | Kind::Clock(_) | Kind::Attest(_) | Kind::Outputs(_) => true,
        Kind::Barrier(_) => true,
    }
}

/// A member's answer on the control channel.
pub fn control_answer(bytes: Bytes) -> bool {
    use proto::control_response::Kind;
    match control::decode_answer(bytes) {
        Ok(proto::ControlResponse { kind: Some(Kind::Certify(answer)) }) => answer.header.is_none_or(|header| {
            BatchHeader::from_proto(header).is_ok_and(|header| {
                assert_eq!(BatchHeader::from_proto(header.to_proto()).map(|again| again.hash()), Ok(header.hash()));
                true
            })
        }),
        Ok(answer) => answer.kind.is_some(),
        Err(_) => false,
    }
}

/// A request to join, or the answer to one.
pub fn join(bytes: Bytes) -> bool {
    let asked = proto::JoinRequest::decode(bytes.clone()).ok().and_then(|request| request.member);
    let asked = asked.is_some_and(|member| lockstep_types::members::member_from_proto(member).is_ok());
    let answered = crate::join::read_join_answer(bytes).is_ok_and(|answer| {
        assert_eq!(answer.genesis.to_text().and_then(|text| Genesis::parse(&text)).ok(), Some(answer.genesis));
        true
    });
    asked || answered
}

/// The text of a file of a home, of a backup's manifest, or of a request on the administration socket.
pub fn text(text: &str) -> bool {
    let config = Config::parse(text).is_ok_and(|config| {
        assert!(config.to_text().is_ok_and(|again| Config::parse(&again).is_ok()));
        true
    });
    let manifest = BackupManifest::parse(text, &"a fuzzed backup").is_ok();
    let request = serde_json::from_str::<AdminRequest>(text).is_ok();
    let conflict = conflicts::decode(text).is_ok();
    let secret = secrets::parse_secret(text, SecretCurve::default()).is_ok();
    let book = serde_json::from_str::<Vec<(NodeId, Vec<String>)>>(text).is_ok();
    config || manifest || request || conflict || secret || book
}

/// A list of epochs, for a network with this genesis.
pub fn epochs(text: &str, genesis: &Genesis) -> bool {
    Epochs::parse(text, genesis).is_ok_and(|epochs| {
        let again = epochs.to_text().and_then(|text| Epochs::parse(&text, genesis));
        assert_eq!(again.ok().as_ref(), Some(&epochs));
        true
    })
}
