//! Whether a message was ordered, asked of the nodes.

use hyper::StatusCode;
use lockstep_types::{Height, MessageId, Sequence, TaskId};
use serde::Deserialize;
use tokio::time::Instant;

use crate::client::Client;
use crate::error::ClientError;
use crate::node::Request;
use crate::outcome::Failure;
use crate::prepared::{Prepared, Way};
use crate::receipt::Receipt;

/// What the nodes say.
pub(crate) enum LookUp {
    /// It has its position.
    Found(Receipt),
    /// A node has confirmed that it was never ordered: see [`Client::look_up`].
    Absent,
    /// No node could tell; the text says why.
    Unclear(String),
}

#[derive(Deserialize)]
struct Known {
    sequence: Option<Sequence>,
    height: Option<Height>,
    task_id: Option<TaskId>,
}

impl Client {
    /// Asks the nodes one after another by the message's content id, which is its name when it was ordered for the first
    /// time. Only a confirmed answer counts: a node that gives one has waited until a new entry of the log was applied
    /// there, so that all that was ordered before is there too.
    pub(crate) async fn look_up(&self, prepared: &Prepared, until: Instant) -> LookUp {
        let (first, nodes) = (self.preferred(), self.nodes());
        let mut last = "no node could tell".to_owned();
        for place in (0..nodes).map(|step| (first + step) % nodes) {
            let path = format!("/api/messages/{}?confirmed=1", prepared.content_id);
            let found = match self.attempt(place, &Request::get(path), until).await {
                Ok(answer) => serde_json::from_slice::<Known>(&answer.body).map_err(|e| e.to_string()),
                Err(Failure::Refused(error)) if is_not_found(&error) => return LookUp::Absent,
                Err(Failure::Refused(error)) => Err(error.to_string()),
                Err(Failure::Passing(setback)) => Err(setback.text),
            };
            match found {
                Ok(Known { sequence: Some(sequence), height, task_id }) => {
                    let found = Receipt {
                        sequence: Some(sequence),
                        height,
                        // This API has another name for the task.
                        task_id: task_id.filter(|_| prepared.way != Way::Task),
                        duplicate: Some(true),
                        url: self.url(place).to_owned(),
                        ..Receipt::message(MessageId(prepared.content_id.0))
                    };
                    return LookUp::Found(found);
                }
                Ok(_) => return LookUp::Unclear("the message still waits for its position".to_owned()),
                Err(reason) => last = reason,
            }
        }
        LookUp::Unclear(last)
    }
}

fn is_not_found(error: &ClientError) -> bool {
    let ClientError::Refused { status, code, .. } = error else { return false };
    // What is not a node's own answer says nothing about the message.
    *status == StatusCode::NOT_FOUND.as_u16() && code == "not_found"
}
