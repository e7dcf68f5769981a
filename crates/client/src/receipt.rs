//! What a device is told of its message.

use lockstep_types::{Height, MessageId, Sequence, TaskId};
use serde::{Deserialize, Serialize};

use crate::client::Submitted;

/// A message is ordered: it is on the disks of a majority of voters. Each device API tells another part of the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The message's name; `None` from `POST /v1/task`, which tells only the task.
    #[serde(rename = "messageID")]
    pub message_id: Option<MessageId>,
    /// Its task; `None` while its group is open, and for an encrypted message. From `POST /v1/task`, the name that this
    /// API gives the task.
    #[serde(rename = "taskID")]
    pub task_id: Option<TaskId>,
    /// Its place in the order, where the API tells it.
    pub sequence: Option<Sequence>,
    /// Its batch, where the API tells it.
    pub height: Option<Height>,
    /// Whether it had this position before, where the API tells it.
    pub duplicate: Option<bool>,
    /// The node that answered.
    pub url: String,
    /// How often the message was sent, this time included; 0 where it was found to be ordered already.
    pub attempts: u32,
}

impl Receipt {
    pub(crate) fn message(id: MessageId) -> Self {
        let (task_id, sequence, height, duplicate) = (None, None, None, None);
        Self { message_id: Some(id), task_id, sequence, height, duplicate, url: String::new(), attempts: 0 }
    }

    pub(crate) fn task(id: TaskId) -> Self {
        let (message_id, sequence, height, duplicate) = (None, None, None, None);
        Self { message_id, task_id: Some(id), sequence, height, duplicate, url: String::new(), attempts: 0 }
    }
}

impl From<Submitted> for Receipt {
    fn from(submitted: Submitted) -> Self {
        let Submitted { message_id, task_id, sequence, height, duplicate, url, attempts } = submitted;
        let (sequence, height, duplicate) = (Some(sequence), Some(height), Some(duplicate));
        Self { message_id: Some(message_id), task_id, sequence, height, duplicate, url, attempts }
    }
}
