//! The texts that devices and sequencers of W3bstream's two generations sign: apinode (vectors/apinode/README.md) and
//! sprout, whose sequencers sign bytes.

use std::fmt::Write as _;

use base64::Engine as _;

use crate::go_json::push_string;
use crate::hash::{Hash32, keccak256};
use crate::ids::{Address, ProjectId, TaskId, TaskNumber};

/// The text a device signs: always this form, whatever the request looked like.
pub fn message_text(project_id: ProjectId, project_version: &str, data: &str) -> String {
    let mut out = String::with_capacity(data.len() + project_version.len() + 96);
    let _ = write!(out, "{{\"projectID\":{project_id},\"projectVersion\":");
    push_string(&mut out, project_version);
    out.push_str(",\"data\":");
    push_string(&mut out, data);
    out.push('}');
    out
}

/// keccak256 of [`message_text`].
pub fn message_digest(project_id: ProjectId, project_version: &str, data: &str) -> Hash32 {
    keccak256(&[message_text(project_id, project_version, data).as_bytes()])
}

/// The text a sequencer signs for a task.
pub fn task_text<'a>(
    id: &TaskId,
    project_id: ProjectId,
    project_version: &str,
    device: &Address,
    payloads: impl IntoIterator<Item = &'a [u8]>,
) -> String {
    let mut out = String::with_capacity(512);
    let _ = write!(out, "{{\"id\":\"{id}\",\"projectID\":{project_id},\"projectVersion\":");
    push_string(&mut out, project_version);
    let _ = write!(out, ",\"deviceID\":\"{device}\",\"payloads\":[");
    for (i, payload) in payloads.into_iter().enumerate() {
        out.push_str(if i == 0 { "\"" } else { ",\"" });
        base64::engine::general_purpose::STANDARD.encode_string(payload, &mut out);
        out.push('"');
    }
    out.push_str("]}");
    out
}

/// keccak256 of [`task_text`].
pub fn task_digest<'a>(
    id: &TaskId,
    project_id: ProjectId,
    project_version: &str,
    device: &Address,
    payloads: impl IntoIterator<Item = &'a [u8]>,
) -> Hash32 {
    keccak256(&[task_text(id, project_id, project_version, device, payloads).as_bytes()])
}

/// The name of a device in the sprout generation: its DID, or `""` where a message has none (zeros).
pub fn client_id(device: &Address) -> String {
    if *device == Address::ZERO { String::new() } else { format!("did:io:{device}") }
}

/// The bytes a sequencer of the sprout generation signs for a task: its number and project (8 bytes each, big endian),
/// the client's id, and keccak256 of all payloads, concatenated.
pub fn sprout_task_bytes<'a>(
    number: TaskNumber,
    project_id: ProjectId,
    client_id: &str,
    payloads: impl IntoIterator<Item = &'a [u8]>,
) -> Vec<u8> {
    let payloads: Vec<&[u8]> = payloads.into_iter().collect();
    let mut out = Vec::with_capacity(8 + 8 + client_id.len() + 32);
    out.extend_from_slice(&number.0.to_be_bytes());
    out.extend_from_slice(&project_id.0.to_be_bytes());
    out.extend_from_slice(client_id.as_bytes());
    out.extend_from_slice(&keccak256(&payloads));
    out
}

/// keccak256 of [`sprout_task_bytes`].
pub fn sprout_task_digest<'a>(
    number: TaskNumber,
    project_id: ProjectId,
    client_id: &str,
    payloads: impl IntoIterator<Item = &'a [u8]>,
) -> Hash32 {
    keccak256(&[&sprout_task_bytes(number, project_id, client_id, payloads)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::SigningKey;

    #[test]
    fn a_sprout_task_is_signed_as_its_readers_check_it() {
        let payloads = || [&b"{\"a\":1}"[..], b"xyz"];
        let (number, project, client) = (TaskNumber(42), ProjectId(7), "did:io:0xabc");
        let bytes = "000000000000002a00000000000000076469643a696f3a30786162631666bdb3685b2de50b0155ccc87a1fac27ead92580f0536bd95fc2cc5dcfcb88";
        assert_eq!(hex::encode(sprout_task_bytes(number, project, client, payloads())), bytes);
        let digest = sprout_task_digest(number, project, client, payloads());
        assert_eq!(hex::encode(digest), "9b9324e1e8ead66764f95c61947e7a51f2e49d02558910c80a7c2788928f414f");
        // A public development key.
        let key = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
        let signature = SigningKey::from_hex(key).unwrap().sign(&digest);
        let text = "0x8e40705656484922a04ed595bb07169cc2e7086ae011f37e5edcb1a1aaf2ac9052cd5dd8212cc81941dd8ceeed8f50ded2494e92d0067f969b46a548967774f200";
        assert_eq!(signature.to_string(), text);
    }

    #[test]
    fn a_device_is_named_by_its_did_and_nobody_by_nothing() {
        assert_eq!(client_id(&Address::ZERO), "");
        assert_eq!(client_id(&Address([0xab; 20])), format!("did:io:0x{}", "ab".repeat(20)));
    }
}
