//! The text by which provers are told of a task.

use lockstep_types::{ProjectId, TaskId};
use serde::{Deserialize, Serialize};

use crate::limits::ANNOUNCEMENT_BYTES_MAX;

/// Topic of announcements.
pub(crate) const TOPIC: &str = "w3bstream-task";

/// A task of which provers are told. On the wire it is `{"ProjectID":7,"TaskID":"0x<64 lower-case hex>"}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    /// Its project.
    pub project: ProjectId,
    /// Its id.
    pub task: TaskId,
}

/// The text's members in their order, with the names that the readers' JSON has.
#[derive(Serialize, Deserialize)]
struct Text<'a> {
    #[serde(rename = "ProjectID")]
    project_id: u64,
    #[serde(rename = "TaskID", borrow)]
    task_id: std::borrow::Cow<'a, str>,
}

impl Announcement {
    /// What is sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        format!(r#"{{"ProjectID":{},"TaskID":"{}"}}"#, self.project, self.task).into_bytes()
    }

    /// Reads what another peer sent; `None` where it is no announcement. Members that are not known are left aside, as
    /// the readers do.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > ANNOUNCEMENT_BYTES_MAX {
            return None;
        }
        let text: Text<'_> = serde_json::from_slice(bytes).ok()?;
        Some(Self { project: ProjectId(text.project_id), task: text.task_id.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_that_of_the_reference_and_reads_back() {
        let mut id = [0; 32];
        id[0] = 0xAB;
        let announcement = Announcement { project: ProjectId(7), task: TaskId(id) };
        let text = format!(r#"{{"ProjectID":7,"TaskID":"0xab{}"}}"#, "0".repeat(62));
        assert_eq!(String::from_utf8(announcement.to_bytes()).unwrap(), text);
        assert_eq!(Announcement::from_bytes(text.as_bytes()), Some(announcement));
    }

    #[test]
    fn what_is_no_announcement_is_told() {
        let text = |id: &str| format!(r#"{{"ProjectID":7,"TaskID":"{id}"}}"#);
        assert_eq!(Announcement::from_bytes(b"hello"), None);
        assert_eq!(Announcement::from_bytes(text("0x12").as_bytes()), None);
        assert_eq!(Announcement::from_bytes(br#"{"ProjectID":-1}"#), None);
        let long = format!("{}{}", text(&format!("0x{}", "0".repeat(64))), " ".repeat(ANNOUNCEMENT_BYTES_MAX));
        assert_eq!(Announcement::from_bytes(long.as_bytes()), None);
    }
}
