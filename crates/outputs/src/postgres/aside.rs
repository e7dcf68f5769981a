//! Refused tasks in PostgreSQL. See [`super::statements`] for why a halt that comes or goes is never missed.

use async_trait::async_trait;
use lockstep_types::{ProjectId, TaskNumber};
use tokio_postgres::types::ToSql;

use super::columns::Columns;
use super::session::{CallError, Session};
use super::{PostgresOutput, REFUSALS_ATTEMPTS_MAX, unsteady};
use crate::aside::{REFUSED_PER_ANSWER_MAX, Refusals, RefusedTask, SetAside};
use crate::output::{FinalTask, OutputError};
use crate::tables;

impl Session {
    /// `false`: the cursor is elsewhere.
    async fn refuse(&mut self, task: &RefusedTask, expected_last: Option<TaskNumber>) -> Result<bool, OutputError> {
        let network = tables::network_column(&self.ours.owner.network);
        let epoch = tables::epoch_column(self.ours.owner.epoch);
        let expected = expected_last.map(|last| tables::id_column(last.0));
        let (number, project) = (tables::id_column(task.number.0), tables::id_column(task.project_id.0));
        let (id, reason) = (task.id.as_ref().map(|id| &id.0[..]), task.reason_column());
        let values: [&(dyn ToSql + Sync); 8] =
            [&network, &epoch, &expected, &self.refusals, &number, &id, &project, &reason];
        let moved = self.wait(self.client.query_opt(&self.statements.refuse, &values)).await?.is_some();
        if moved {
            // The row had the number that we knew, and now has the next.
            self.refusals += 1;
        }
        Ok(moved)
    }

    async fn refused(&self, after: Option<TaskNumber>) -> Result<Refusals, OutputError> {
        let after = after.map(|number| tables::id_column(number.0));
        let limit = i64::try_from(REFUSED_PER_ANSWER_MAX).unwrap_or(i64::MAX);
        let count: i64 = self.wait(self.client.query_one(&self.statements.refused_count, &[])).await?.get(0);
        let rows = self.wait(self.client.query(&self.statements.refused, &[&after, &limit])).await?;
        let row = |row: &tokio_postgres::Row| tables::refused_row((row.get(0), row.get(1)), row.get(2), row.get(3));
        let tasks = rows.iter().map(row).collect::<Result<_, _>>()?;
        Ok(Refusals { count: u64::try_from(count).unwrap_or(0), tasks })
    }

    /// `false`: the project does not halt there, or the cursor is not there yet.
    async fn resume(&self, from: TaskNumber, tasks: &[FinalTask], to: &RefusedTask) -> Result<bool, CallError> {
        let references: Vec<&FinalTask> = tasks.iter().collect();
        let columns = Columns::of(&references, self.ours.layout);
        let network = tables::network_column(&self.ours.owner.network);
        let epoch = tables::epoch_column(self.ours.owner.epoch);
        let [project, from, number] = [to.project_id.0, from.0, to.number.0].map(tables::id_column);
        let (id, reason) = (to.id.as_ref().map(|id| &id.0[..]), to.reason_column());
        let mut values: Vec<&(dyn ToSql + Sync)> = vec![&network, &epoch, &project, &from, &number, &id, &reason];
        values.extend(columns.values());
        Ok(self.call(self.client.query_opt(&self.statements.resume, &values)).await?.is_some())
    }

    async fn lift(&self, project_id: ProjectId, last: TaskNumber) -> Result<bool, OutputError> {
        let network = tables::network_column(&self.ours.owner.network);
        let epoch = tables::epoch_column(self.ours.owner.epoch);
        let [project, last] = [project_id.0, last.0].map(tables::id_column);
        let values: [&(dyn ToSql + Sync); 4] = [&network, &epoch, &project, &last];
        Ok(self.wait(self.client.execute(&self.statements.lift, &values)).await? == 1)
    }
}

impl PostgresOutput {
    async fn resume_at_once(&self, from: TaskNumber, tasks: &[FinalTask], to: &RefusedTask) -> Result<(), CallError> {
        let mut slot = self.session.lock().await;
        let mut session = self.session(&mut slot).await?;
        let resumed = session.resume(from, tasks, to).await?;
        let cursor = session.cursor().await?;
        *slot = Some(session);
        cursor.check_owner(&self.ours)?;
        if resumed { Ok(()) } else { Err(OutputError::Moved { actual_last: cursor.last }.into()) }
    }

    /// The server does not say which task has the value that does not fit (`reason`): gives them to it one by one. The
    /// halt moves with them.
    async fn resume_singly(
        &self,
        mut from: TaskNumber,
        tasks: &[FinalTask],
        to: &RefusedTask,
        reason: String,
    ) -> Result<(), OutputError> {
        for task in tasks {
            let behind = RefusedTask { number: task.number.next(), id: None, ..to.clone() };
            match self.resume_at_once(from, std::slice::from_ref(task), &behind).await {
                Ok(()) => from = behind.number,
                Err(CallError::Value(_)) => return Err(OutputError::Refused { task: task.number, reason }),
                Err(CallError::Output(error)) => return Err(error),
            }
        }
        Ok(self.resume_at_once(from, &[], to).await?)
    }
}

#[async_trait]
impl SetAside for PostgresOutput {
    async fn refuse(&self, task: &RefusedTask, expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        let mut slot = self.session.lock().await;
        let mut session = self.session(&mut slot).await?;
        for _ in 0..REFUSALS_ATTEMPTS_MAX {
            if session.refuse(task, expected_last).await? {
                *slot = Some(session);
                return Ok(());
            }
            let before = session.refusals;
            let may = session.cursor().await?.may_skip(&self.ours, task.number, expected_last);
            if may == Ok(true) && session.refusals != before {
                continue;
            }
            *slot = Some(session);
            return if may? { Err(unsteady()) } else { Ok(()) };
        }
        Err(unsteady())
    }

    async fn refused(&self, after: Option<TaskNumber>) -> Result<Refusals, OutputError> {
        let mut slot = self.session.lock().await;
        let mut session = self.session(&mut slot).await?;
        session.cursor().await?.check_owner(&self.ours)?;
        let refusals = session.refused(after).await?;
        *slot = Some(session);
        Ok(refusals)
    }

    async fn resume(&self, from: TaskNumber, tasks: &[FinalTask], to: &RefusedTask) -> Result<(), OutputError> {
        tables::check_resume(from, tasks, to, &self.ours)?;
        match self.resume_at_once(from, tasks, to).await {
            Ok(()) => Ok(()),
            Err(CallError::Output(error)) => Err(error),
            Err(CallError::Value(reason)) => self.resume_singly(from, tasks, to, reason).await,
        }
    }

    async fn lift(&self, project_id: ProjectId, last: TaskNumber) -> Result<(), OutputError> {
        let mut slot = self.session.lock().await;
        let mut session = self.session(&mut slot).await?;
        let lifted = session.lift(project_id, last).await?;
        let cursor = session.cursor().await?;
        *slot = Some(session);
        cursor.check_owner(&self.ours)?;
        if lifted { Ok(()) } else { Err(OutputError::Moved { actual_last: cursor.last }) }
    }
}
