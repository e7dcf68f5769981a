//! Reading tasks by number for audits: two questions a page.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use lockstep_types::TaskNumber;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row};

use super::session::Session;
use crate::layout::Layout;
use crate::output::OutputError;
use crate::stored::{
    FoundMessage, FoundTask, PAGE_BYTES_MAX, Page, STRAY_ROWS_MAX, STRAYS_NAMED_MAX, StrayMark, Strays, put_together,
    whole_ms,
};
use crate::tables::{self, MessageRow};

/// What NULL, or a time that no Lockstep has written, is.
fn time_ms(at: Result<SystemTime, Error>) -> Option<i64> {
    let since = at.ok()?.duration_since(UNIX_EPOCH).ok()?;
    whole_ms(i128::try_from(since.as_micros()).ok()?)
}

fn found_task(row: &Row) -> FoundTask {
    FoundTask {
        number: row.get(0),
        id: row.get(1),
        project_id: row.get(2),
        time_ms: time_ms(row.try_get(3)),
        message_ids: row.get(4),
        signature: row.get(5),
        as_made: row.get(6),
    }
}

fn found_message(row: &Row) -> Result<FoundMessage, &'static str> {
    let columns = || -> Result<MessageRow, Error> {
        Ok(MessageRow {
            sequence: row.try_get(1)?,
            name: row.try_get(2)?,
            project_version: row.try_get(3)?,
            device: row.try_get(4)?,
            data: row.try_get(5)?,
        })
    };
    let row_of_ours = columns().map_err(|_| "a NULL in messages")?;
    let (project_id, time_ms) = (row.get(6), time_ms(row.try_get(7)));
    Ok(FoundMessage { row: row_of_ours, project_id, time_ms, as_made: row.get(8) })
}

impl Session {
    /// See [`crate::Output::stored`].
    pub(super) async fn stored(&self, first: TaskNumber, max: usize) -> Result<Page, OutputError> {
        let (first, max) = (tables::id_column(first.0), i64::try_from(max).unwrap_or(i64::MAX));
        let rows = self.wait(self.client.query(&self.statements.stored, &[&first, &max])).await?;
        let mut bytes = 0;
        let fits = |row: &&Row| {
            let has_room = bytes < PAGE_BYTES_MAX;
            bytes += u64::try_from(row.get::<_, i64>(7)).unwrap_or_default();
            has_room
        };
        let tasks: Vec<FoundTask> = rows.iter().take_while(fits).map(found_task).collect();
        let mut messages = self.stored_messages(&tasks).await?;
        let mut page = Page::default();
        for task in tasks {
            let of_task = task.id.as_ref().and_then(|id| messages.remove(id)).unwrap_or_default();
            match put_together(self.ours.layout, task, of_task) {
                Ok(task) => page.tasks.push(task),
                Err(damaged) => page.damaged.push(damaged),
            }
        }
        Ok(page)
    }

    /// Messages by the column of their task's id.
    async fn stored_messages(
        &self,
        tasks: &[FoundTask],
    ) -> Result<HashMap<Vec<u8>, Vec<Result<FoundMessage, &'static str>>>, OutputError> {
        let columns: Vec<&[u8]> = tasks.iter().filter_map(|task| task.id.as_deref()).collect();
        let texts: Vec<&str> = columns.iter().filter_map(|column| std::str::from_utf8(column).ok()).collect();
        let wanted: &(dyn ToSql + Sync) = match self.ours.layout {
            Layout::Apinode => &columns,
            Layout::Sprout => &texts,
        };
        let rows = self.wait(self.client.query(&self.statements.stored_messages, &[wanted])).await?;
        let mut found: HashMap<Vec<u8>, Vec<_>> = HashMap::new();
        for row in &rows {
            found.entry(row.get(0)).or_default().push(found_message(row));
        }
        Ok(found)
    }

    /// See [`crate::Output::strays`]. The first part also has tasks that nobody knows of.
    pub(super) async fn strays(&self, after: Option<&StrayMark>) -> Result<Strays, OutputError> {
        let mut strays = Strays::default();
        if after.is_none() {
            let before = tables::id_column(self.ours.owner.first_task_number.0) - 1;
            let named_max = i64::try_from(STRAYS_NAMED_MAX).unwrap_or(i64::MAX);
            let rows = self.wait(self.client.query(&self.statements.stray_tasks, &[&before, &named_max])).await?;
            for row in rows {
                strays.add(format!("row {} of tasks is behind the last task", row.get::<_, i64>(0)));
            }
        }
        let after = after.map_or(Ok(i64::MIN), |mark| mark.0.parse());
        let after = after.map_err(|_| OutputError::Retryable("a mark of another store".to_owned()))?;
        let max = i64::try_from(STRAY_ROWS_MAX).unwrap_or(i64::MAX);
        let row = self.wait(self.client.query_one(&self.statements.stray_messages, &[&after, &max])).await?;
        let (last, count): (Option<i64>, i64) = (row.get(0), row.get(1));
        for id in row.get::<_, Vec<i64>>(2) {
            strays.add(format!("row {id} of messages is of no task"));
        }
        strays.looked_at = u64::try_from(count).unwrap_or_default();
        strays.next = last.filter(|_| count >= max).map(|last| StrayMark(last.to_string()));
        Ok(strays)
    }
}
