//! The chain and the store side by side.

use std::collections::VecDeque;

use lockstep_outputs::{
    Damaged, FinalTask, Output, OutputError, Page, Place, SourceError, TaskSigner, TaskSource, UnsignedTask,
};
use lockstep_types::{ProjectId, TaskNumber};
use parking_lot::Mutex;

use super::findings::{FindingKind, Refused, differences};
use super::{AuditError, AuditProgress, Places};
use crate::config::OutputConfig;
use crate::gaps::{self, Range};
use crate::store_calls::StoreCalls;

/// Tasks of one page of a store, and of one read of the chain.
const PAGE_TASKS: usize = 4_096;
/// Payload bytes of one read of the chain (one task, or part, may exceed it).
const READ_BYTES_MAX: usize = 8 << 20;
/// Places of one page, for stores that are walked by them.
const PAGE_PLACES: usize = 1_024;
/// Refused tasks that are known; of more it is not known why they are missing.
const REFUSED_MAX: usize = 65_536;

/// What a walk works with.
pub(super) struct WalkParts<'a> {
    pub config: &'a OutputConfig,
    pub output: &'a dyn Output,
    pub source: &'a dyn TaskSource,
    pub signer: &'a TaskSigner,
    pub places: &'a dyn Places,
    pub calls: StoreCalls,
    pub progress: &'a Mutex<AuditProgress>,
}

/// A task that the store lacks.
type Lacking = (TaskNumber, ProjectId);

/// See the module's documentation.
pub(super) struct Walk<'a> {
    parts: WalkParts<'a>,
    refused: Refused,
    /// Tasks of the chain that were read and not looked at yet.
    ahead: VecDeque<UnsignedTask>,
}

impl<'a> Walk<'a> {
    pub fn new(parts: WalkParts<'a>) -> Self {
        Self { parts, refused: Refused::default(), ahead: VecDeque::new() }
    }

    fn note(&self, change: impl FnOnce(&mut AuditProgress)) {
        change(&mut self.parts.progress.lock());
    }

    fn call<T, F: Future<Output = Result<T, OutputError>>>(&self, call: impl Fn() -> F) -> Result<T, OutputError> {
        self.parts.calls.call(call)
    }

    /// Audits from task `first` to what was final, and in the store, when it began.
    pub fn run(mut self, first: TaskNumber, newest: Option<TaskNumber>) -> Result<(), AuditError> {
        let last = self.last_stored(first)?;
        let end = newest.min(last).filter(|end| *end >= first);
        let unpublished =
            newest.map_or(0, |newest| (newest.0 + 1).saturating_sub(last.map_or(first, TaskNumber::next).max(first).0));
        self.note(|progress| {
            progress.range = end.map(|end| (first, end));
            progress.unpublished = unpublished;
        });
        if let Some(end) = end {
            self.refused = self.refused()?;
            let kept = self.begin_of_chain(first, end)?;
            self.compare(kept, end)?;
        }
        self.look_for_strays()
    }

    /// The first task that this node keeps, so that nothing below is read from the store.
    fn begin_of_chain(&mut self, first: TaskNumber, end: TaskNumber) -> Result<TaskNumber, AuditError> {
        if let Some(task) = self.next_of_chain(first, end)? {
            self.ahead.push_front(task);
            return Ok(first);
        }
        let kept = self.ahead.front().map_or(end.next(), |task| task.number).min(end.next());
        self.note_not_kept(kept.0 - first.0);
        Ok(kept)
    }

    fn note_not_kept(&self, count: u64) {
        self.note(|progress| {
            progress.not_kept += count;
            progress.tasks_done += count;
        });
    }

    /// The last task that the store has, or that was recorded as there.
    fn last_stored(&self, first: TaskNumber) -> Result<Option<TaskNumber>, AuditError> {
        let output = self.parts.output;
        if output.keeps_cursor() {
            return Ok(self.call(|| output.last())?);
        }
        let (mut next, mut last) = (first, None);
        loop {
            let places = self.places(next)?;
            let end = places.iter().map(|place| place.last).max();
            if end <= last || end < Some(next) {
                break;
            }
            last = end;
            next = end.map_or(next, TaskNumber::next);
        }
        if last.is_none() {
            let reason = "no receipts are known of this output, and such a store cannot say what it has";
            return Err(AuditError::Said(reason.into()));
        }
        Ok(last)
    }

    fn places(&self, first: TaskNumber) -> Result<Vec<Place>, AuditError> {
        if self.parts.output.keeps_cursor() {
            return Ok(Vec::new());
        }
        self.parts.places.places(&self.parts.config.name, first, PAGE_PLACES).map_err(AuditError::Said)
    }

    fn refused(&self) -> Result<Refused, AuditError> {
        let (mut refused, mut after) = (Refused::default(), None);
        let Some(aside) = self.parts.output.aside() else { return Ok(refused) };
        let halts = self.parts.output.layout().halts();
        while refused.tasks.len() + refused.halts.len() < REFUSED_MAX {
            let found = self.call(|| aside.refused(after))?.tasks;
            let Some(last) = found.last().map(|task| task.number) else { break };
            after = Some(last);
            for task in found {
                if halts {
                    refused.halts.push((task.project_id, task.number));
                } else {
                    refused.tasks.insert(task.number);
                }
            }
        }
        Ok(refused)
    }

    fn compare(&mut self, first: TaskNumber, end: TaskNumber) -> Result<(), AuditError> {
        let mut next = first;
        while next <= end {
            let places = self.places(next)?;
            let page = match self.call(|| self.parts.output.stored(next, PAGE_TASKS, &places)) {
                Ok(page) => page,
                Err(OutputError::Foreign(reason)) => {
                    self.note(|progress| progress.findings.add_damaged(&Damaged::at(next, &reason)));
                    let reason = format!("the store cannot be read beyond task {next}: {reason}");
                    return Err(AuditError::Said(reason));
                }
                Err(error) => return Err(error.into()),
            };
            let last = page.last().map_or(end, |last| last.min(end)).max(next);
            self.compare_page(next, last, page)?;
            next = last.next();
        }
        Ok(())
    }

    /// Compares the numbers of a page of the store with the chain.
    fn compare_page(&mut self, first: TaskNumber, last: TaskNumber, page: Page) -> Result<(), AuditError> {
        let mut stored = self.in_order(page.tasks, (first, last));
        let damaged = page.damaged;
        let is_damaged = |number: TaskNumber| damaged.iter().any(|d| (d.first..=d.last).contains(&number));
        let mut unsaid = damaged.iter().filter(|damaged| damaged.first <= last).peekable();
        let (mut next, mut lacking): (TaskNumber, Vec<Lacking>) = (first, Vec::new());
        while next <= last {
            while let Some(damaged) = unsaid.next_if(|damaged| damaged.first <= next) {
                self.note(|progress| progress.findings.add_damaged(damaged));
            }
            let Some(task) = self.next_of_chain(next, last)? else {
                // It is no longer kept: what was read ahead, or the end, says up to where.
                let kept = self.ahead.front().map_or(last.next(), |task| task.number).min(last.next());
                self.note_not_kept(kept.0 - next.0);
                while stored.front().is_some_and(|task| task.number < kept) {
                    stored.pop_front();
                }
                next = kept;
                continue;
            };
            let (number, project) = (task.number, task.project_id);
            let config = &self.parts.config;
            let is_ours = config.projects.as_ref().is_none_or(|projects| projects.contains(&project))
                && task.is_for(&config.name);
            let found = stored.pop_front_if(|found| found.number == number);
            match found {
                Some(found) if is_ours => self.judge(&found, task),
                Some(_) => {
                    let what = format!("it is of project {project}, and not for this output");
                    self.note(|progress| progress.findings.add(FindingKind::Surplus, Some((number, number)), what));
                }
                None if is_damaged(number) => {}
                None if is_ours => lacking.push((number, project)),
                None => self.note(|progress| progress.others += 1),
            }
            if lacking.len() >= PAGE_TASKS {
                self.explain(std::mem::take(&mut lacking))?;
            }
            self.note(|progress| progress.tasks_done += 1);
            next = number.next();
        }
        self.note(|progress| unsaid.for_each(|damaged| progress.findings.add_damaged(damaged)));
        self.explain(lacking)
    }

    /// The tasks of a page, those left out that do not ascend.
    fn in_order(&self, tasks: Vec<FinalTask>, (first, last): Range) -> VecDeque<FinalTask> {
        let mut kept: VecDeque<FinalTask> = VecDeque::with_capacity(tasks.len());
        for task in tasks {
            let number = task.number;
            if number < first || kept.back().is_some_and(|before| before.number >= number) {
                let what = "it comes behind a task with a greater number";
                self.note(|progress| progress.findings.add(FindingKind::OutOfOrder, Some((number, number)), what));
            } else if number <= last {
                kept.push_back(task);
            }
        }
        kept
    }

    /// The chain's task of a number; `None` where it is no longer kept.
    fn next_of_chain(&mut self, next: TaskNumber, last: TaskNumber) -> Result<Option<UnsignedTask>, AuditError> {
        while self.ahead.front().is_some_and(|task| task.number < next) {
            self.ahead.pop_front();
        }
        let mut from = next;
        while self.ahead.is_empty() && from <= last {
            match self.read_chain(from) {
                Ok(tasks) if tasks.is_empty() => {
                    return Err(AuditError::Said(format!("task {from} is final, but not there")));
                }
                Ok(tasks) => self.ahead.extend(tasks),
                Err(SourceError::Forgotten(until)) if until >= from => from = until.next(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.ahead.pop_front_if(|task| task.number == next))
    }

    fn read_chain(&self, from: TaskNumber) -> Result<Vec<UnsignedTask>, SourceError> {
        let (source, before) = (self.parts.source, from.0.checked_sub(1).map(TaskNumber));
        let reading = async {
            match self.parts.output.part_bytes() {
                Some(bytes) => source.parts_after(before, PAGE_TASKS, READ_BYTES_MAX, bytes).await,
                None => source.tasks_after(before, PAGE_TASKS, READ_BYTES_MAX).await,
            }
        };
        let stop = &self.parts.calls.stop;
        self.parts.calls.runtime.block_on(async {
            tokio::select! {
                biased;
                () = stop.cancelled() => Err(SourceError::Unavailable("it was told to stop".into())),
                tasks = reading => tasks,
            }
        })
    }

    fn judge(&self, found: &FinalTask, task: UnsignedTask) {
        let layout = self.parts.output.layout();
        let expected = self.parts.signer.sign(task, layout);
        let fields = differences(found, &expected, layout);
        self.note(|progress| match fields.is_empty() {
            true => progress.good += 1,
            false => {
                let tasks = Some((found.number, found.number));
                progress.findings.add(FindingKind::Different, tasks, fields.join(", "));
            }
        });
    }

    /// Says why tasks, which ascend, are not in the store.
    fn explain(&self, lacking: Vec<Lacking>) -> Result<(), AuditError> {
        let (Some((first, _)), Some((last, _))) = (lacking.first(), lacking.last()) else { return Ok(()) };
        let (output, first, last) = (self.parts.output, *first, *last);
        let gaps = self.call(|| gaps::look(output, first, last))?.gaps;
        let mut missing = Vec::new();
        self.note(|progress| {
            for (number, project) in lacking {
                if self.refused.explains(number, project) {
                    progress.refused += 1;
                } else if gaps.iter().any(|(first, last)| (*first..=*last).contains(&number)) {
                    progress.skipped += 1;
                } else {
                    missing.push(number);
                }
            }
        });
        self.look_again(&missing)
    }

    /// Looks once more for tasks whose absence nothing explains: they may have been filled in since the first look.
    fn look_again(&self, missing: &[TaskNumber]) -> Result<(), AuditError> {
        let mut rest = missing;
        while let Some(first) = rest.first().copied() {
            let places = self.places(first)?;
            let page = self.call(|| self.parts.output.stored(first, PAGE_TASKS, &places))?;
            let looked_at = page.last().map_or(rest.len(), |last| rest.partition_point(|number| *number <= last));
            let (now, later) = rest.split_at(looked_at.max(1));
            for number in now {
                match page.tasks.iter().find(|task| task.number == *number) {
                    Some(found) => {
                        let task = self.read_chain(*number)?.into_iter().find(|task| task.number == *number);
                        task.into_iter().for_each(|task| self.judge(found, task));
                    }
                    None => self.note(|progress| {
                        progress.findings.add(FindingKind::Missing, Some((*number, *number)), "");
                    }),
                }
            }
            rest = later;
        }
        Ok(())
    }

    fn look_for_strays(&self) -> Result<(), AuditError> {
        let mut after = None;
        loop {
            let strays = self.call(|| self.parts.output.strays(after.as_ref()))?;
            self.note(|progress| {
                progress.rows_done += strays.looked_at;
                let unnamed = strays.count.saturating_sub(strays.named.len() as u64);
                strays.named.iter().for_each(|what| progress.findings.add(FindingKind::Stray, None, what.clone()));
                progress.findings.add_unlisted(FindingKind::Stray, unnamed);
            });
            after = strays.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }
}
