//! Tasks and their messages as columns, for statements that unnest them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_postgres::types::ToSql;

use crate::layout::Layout;
use crate::output::FinalTask;
use crate::tables::id_column;

/// See the module's documentation.
pub(super) struct Columns<'a> {
    message_id: Vec<i64>,
    message_at: Vec<SystemTime>,
    device: Vec<&'a [u8]>,
    message_project: Vec<i64>,
    version: Vec<&'a str>,
    message_task: Vec<&'a [u8]>,
    data: Vec<&'a [u8]>,
    message_name: Vec<&'a [u8]>,
    task_id: Vec<i64>,
    task_at: Vec<SystemTime>,
    task_name: Vec<&'a [u8]>,
    task_project: Vec<i64>,
    message_ids: Vec<String>,
    signature: Vec<&'a [u8]>,
}

fn time(task: &FinalTask) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(task.time_ms.0)
}

impl<'a> Columns<'a> {
    pub(super) fn of(tasks: &[&'a FinalTask], layout: Layout) -> Self {
        // By sequence over all tasks, so that rows lie in ascending order also where tasks interleave.
        let with_task = |task: &&'a FinalTask| {
            let task = *task;
            task.messages.iter().map(move |message| (task, message))
        };
        let mut messages: Vec<_> = tasks.iter().flat_map(with_task).collect();
        messages.sort_unstable_by_key(|(_, message)| message.sequence);
        Self {
            message_id: messages.iter().map(|(_, m)| id_column(m.sequence.0)).collect(),
            message_at: messages.iter().map(|(t, _)| time(t)).collect(),
            device: messages.iter().map(|(t, _)| &t.device.0[..]).collect(),
            message_project: messages.iter().map(|(t, _)| id_column(t.project_id.0)).collect(),
            version: messages.iter().map(|(t, _)| &t.project_version[..]).collect(),
            message_task: messages.iter().map(|(t, _)| &t.id.0[..]).collect(),
            data: messages.iter().map(|(_, m)| &m.data[..]).collect(),
            // One layout only has a column for it.
            message_name: match layout {
                Layout::Apinode => Vec::new(),
                Layout::Sprout => messages.iter().map(|(_, m)| &m.id.0[..]).collect(),
            },
            task_id: tasks.iter().map(|t| id_column(t.number.0)).collect(),
            task_at: tasks.iter().map(|t| time(t)).collect(),
            task_name: tasks.iter().map(|t| &t.id.0[..]).collect(),
            task_project: tasks.iter().map(|t| id_column(t.project_id.0)).collect(),
            message_ids: tasks.iter().map(|t| layout.message_ids(t)).collect(),
            signature: tasks.iter().map(|t| &t.signature.0[..]).collect(),
        }
    }

    /// The columns in the order of the statements' parameters: eight of messages, six of tasks.
    pub(super) fn values(&self) -> [&(dyn ToSql + Sync); 14] {
        [
            &self.message_id,
            &self.message_at,
            &self.device,
            &self.message_project,
            &self.version,
            &self.message_task,
            &self.data,
            &self.message_name,
            &self.task_id,
            &self.task_at,
            &self.task_name,
            &self.task_project,
            &self.message_ids,
            &self.signature,
        ]
    }
}
