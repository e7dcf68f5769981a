//! The texts that devices and sequencers of W3bstream's apinode generation sign (vectors/apinode/README.md).

use std::fmt::Write as _;

use base64::Engine as _;

use crate::go_json::push_string;
use crate::hash::{Hash32, keccak256};
use crate::ids::{Address, ProjectId, TaskId};

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
