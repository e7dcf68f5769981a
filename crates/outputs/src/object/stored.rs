//! Reading tasks by number for audits: links, their blobs, and what was filled in between them.

use futures::{StreamExt as _, stream};
use lockstep_types::TaskNumber;

use super::chain::{COMPLETE, FILLED, INDEX, REQUESTS_MAX};
use super::entry::{BlobAt, Complete, Filled, Kind, Link, name_of, number_of};
use super::{ObjectOutput, Range};
use crate::output::{FinalTask, OutputError};
use crate::stored::{Damaged, PAGE_BYTES_MAX, Page, StrayMark, Strays};

/// What a run of links says.
#[derive(Default)]
struct Walked {
    blobs: Vec<(Link, BlobAt)>,
    skipped: Vec<Range>,
    damaged: Vec<Damaged>,
    /// The last number that a link says something about.
    reached: Option<TaskNumber>,
    tasks: u64,
    bytes: u64,
}

impl Walked {
    fn is_full(&self, max: usize) -> bool {
        self.bytes >= PAGE_BYTES_MAX || self.tasks >= max as u64
    }

    fn reach(&mut self, last: TaskNumber) {
        self.reached = self.reached.max(Some(last));
    }

    /// Takes a link that follows, for the numbers from `first` on.
    fn add(&mut self, name: &str, link: Link, first: TaskNumber) {
        let expected = self.reached.map_or(first, TaskNumber::next);
        if number_of(name) != Some(link.first) {
            let reason = format!("index/{name} is not what its name says");
            return self.damaged.push(Damaged::at(expected, reason));
        }
        if link.first > expected {
            let (first, last) = (expected, TaskNumber(link.first.0 - 1));
            self.damaged.push(Damaged { first, last, reason: "no link leads to them".into() });
        }
        if self.reached.is_some() && link.first < expected && link.kind != Kind::Epoch {
            return self.damaged.push(Damaged::at(link.first, format!("index/{name} is no link of the chain")));
        }
        if link.kind == Kind::Epoch || link.last < first {
            return;
        }
        self.reach(link.last);
        match link.kind.clone() {
            Kind::Tasks(at) => {
                self.bytes += at.bytes;
                self.tasks += link.last.0 + 1 - link.first.0.max(first.0);
                self.blobs.push((link, at));
            }
            Kind::Skipped => self.skipped.push((link.first.max(first), link.last)),
            Kind::Passed | Kind::Epoch => {}
        }
    }
}

/// What is not there, or not ours, at these numbers; an error where the store did not answer.
fn damage(error: OutputError, (first, last): Range) -> Result<Damaged, OutputError> {
    match error {
        OutputError::Foreign(reason) => Ok(Damaged { first, last, reason }),
        error => Err(error),
    }
}

impl ObjectOutput {
    /// See [`crate::Output::stored`].
    pub(super) async fn walk(&self, first: TaskNumber, max: usize) -> Result<Page, OutputError> {
        let tip = self.tip(true).await?;
        tip.cursor.check_owner(&self.ours())?;
        let Some(last) = tip.cursor.last else { return Ok(Page::default()) };
        let mut next = first.max(self.owner.first_task_number);
        while next <= last {
            let walked = self.links_from(next, last, max).await?;
            let Some(reached) = walked.reached else {
                return Ok(Page { tasks: Vec::new(), damaged: walked.damaged });
            };
            let page = self.page_of(walked, (next, reached), max).await?;
            if page.last().is_some() {
                return Ok(page);
            }
            next = reached.next();
        }
        Ok(Page::default())
    }

    async fn links_from(&self, first: TaskNumber, last: TaskNumber, max: usize) -> Result<Walked, OutputError> {
        let mut walked = Walked::default();
        let (mut next, mut seen) = (first, None);
        loop {
            let (names, more) = self.chain.link_names(next, last).await?;
            // The name before may have been looked at already.
            let names: Vec<String> = names.into_iter().filter(|name| Some(name) > seen.as_ref()).collect();
            seen = names.last().cloned().or(seen);
            let asking = stream::iter(names.clone()).map(|name| async move { self.chain.link_at(&name).await });
            let mut found = asking.buffered(REQUESTS_MAX);
            for (place, name) in names.iter().enumerate() {
                match found.next().await {
                    Some(Ok(Some(link))) => walked.add(name, link, first),
                    Some(Ok(None)) | None => {}
                    Some(Err(error)) => {
                        let behind = names.get(place + 1).and_then(|name| number_of(name));
                        let at = number_of(name).unwrap_or(first).max(first);
                        let end = behind.map_or(at, |behind| TaskNumber(behind.0.saturating_sub(1)).max(at));
                        walked.damaged.push(damage(error, (at, end))?);
                        walked.reach(end);
                    }
                }
                if walked.is_full(max) {
                    return Ok(walked);
                }
            }
            match walked.reached {
                Some(reached) if more && reached < last && reached.next() > next => next = reached.next(),
                _ => return Ok(walked),
            }
        }
    }

    async fn page_of(&self, walked: Walked, range: Range, max: usize) -> Result<Page, OutputError> {
        let (first, last) = range;
        let mut page = Page { tasks: Vec::new(), damaged: walked.damaged };
        let read = |(link, at): (Link, BlobAt)| async move {
            let found = self.linked(&link, &at).await;
            (link, found)
        };
        let mut reading = stream::iter(walked.blobs).map(read).buffered(REQUESTS_MAX);
        while let Some((link, found)) = reading.next().await {
            match found {
                Ok(tasks) => {
                    let (from, to) = (link.first.max(first), link.last);
                    page.tasks.extend(tasks.into_iter().filter(|task| (from..=to).contains(&task.number)));
                }
                Err(error) => page.damaged.push(damage(error, (link.first.max(first), link.last))?),
            }
        }
        let mut end = last;
        match self.chain.filled_at_most(first, last, max).await {
            Ok((filled, cut)) => {
                end = end.min(cut);
                end = end.min(self.add_filled(&mut page, filled, &walked.skipped).await?);
            }
            Err(error) => page.damaged.push(damage(error, (first, first))?),
        }
        page.tasks.sort_by_key(|task| task.number);
        if let Some(beyond) = page.tasks.get(max) {
            end = end.min(TaskNumber(beyond.number.0 - 1));
        }
        page.tasks.retain(|task| task.number <= end);
        page.damaged.retain(|damaged| damaged.first <= end);
        page.damaged.iter_mut().for_each(|damaged| damaged.last = damaged.last.min(end));
        page.damaged.sort_by_key(|damaged| damaged.first);
        Ok(page)
    }

    /// The tasks of a link. Its entry by height has to lead to the same.
    async fn linked(&self, link: &Link, at: &BlobAt) -> Result<Vec<FinalTask>, OutputError> {
        let tasks = self.chain.tasks(at).await?;
        let foreign = |reason: String| Err(OutputError::Foreign(reason));
        if link.network != self.owner.network {
            return foreign(format!("index/{} is of another network", name_of(link.first)));
        }
        // Before the first one there may be tasks that are not for this store.
        let Some(begin) = tasks.first().map(|task| task.number).filter(|begin| *begin >= link.first) else {
            return foreign(format!("{} has other tasks", at.blob));
        };
        let name = format!("heights/{:020}/{}", at.height.0, name_of(begin));
        let Some(entry) = self.chain.height_entry(at.height, begin).await? else {
            return foreign(format!("{name} is missing"));
        };
        // A part that was cut elsewhere may stand there: of the same tasks.
        let same = match &entry.kind {
            Kind::Tasks(other) if other == at => true,
            Kind::Tasks(other) => {
                let others = self.chain.tasks(other).await?;
                let first = |tasks: &[FinalTask]| tasks.first().map(|task| (task.number, task.id));
                first(&others) == first(&tasks)
            }
            _ => false,
        };
        if same && entry.first == begin { Ok(tasks) } else { foreign(format!("{name} leads to other tasks")) }
    }

    /// Adds what was filled in, and says up to which number that was looked at.
    async fn add_filled(
        &self,
        page: &mut Page,
        filled: Vec<(TaskNumber, Filled)>,
        skipped: &[Range],
    ) -> Result<TaskNumber, OutputError> {
        let mut bytes = 0;
        let mut blob: Option<(BlobAt, Result<Vec<FinalTask>, Damaged>)> = None;
        for (number, Filled { number: said, id, at, .. }) in filled {
            if said != number {
                let reason = format!("filled/{} is not what its name says", name_of(number));
                page.damaged.push(Damaged::at(number, reason));
                continue;
            }
            if !skipped.iter().any(|(first, last)| (*first..=*last).contains(&number)) {
                let reason = format!("filled/{} is of a task that was not skipped", name_of(number));
                page.damaged.push(Damaged::at(number, reason));
                continue;
            }
            if blob.as_ref().is_none_or(|(known, _)| *known != at) {
                if bytes >= PAGE_BYTES_MAX {
                    return Ok(TaskNumber(number.0 - 1));
                }
                bytes += at.bytes;
                let found = match self.chain.tasks(&at).await {
                    Ok(tasks) => Ok(tasks),
                    Err(error) => Err(damage(error, (number, number))?),
                };
                blob = Some((at, found));
            }
            match blob.as_ref().map(|(_, found)| found) {
                Some(Ok(tasks)) => match tasks.iter().find(|task| task.number == number && task.id == id) {
                    Some(task) => page.tasks.push(task.clone()),
                    None => page.damaged.push(Damaged::at(number, "the blob that was filled in has no such task")),
                },
                Some(Err(damaged)) => page.damaged.push(Damaged::at(number, damaged.reason.clone())),
                None => {}
            }
        }
        Ok(TaskNumber(u64::MAX))
    }

    /// See [`crate::Output::strays`]. Blobs that nothing leads to are none: a writer that was too late leaves them.
    pub(super) async fn stray_names(&self, after: Option<&StrayMark>) -> Result<Strays, OutputError> {
        let last = self.tip(true).await?.cursor.last;
        let (directory, name) = match after.and_then(|mark| mark.0.split_once('/')) {
            Some((directory, name)) if directory == FILLED => (FILLED, Some(name)),
            Some((directory, name)) if directory == COMPLETE => (COMPLETE, Some(name)),
            Some((_, name)) => (INDEX, Some(name)),
            None => (INDEX, None),
        };
        let name = name.filter(|name| !name.is_empty());
        let (names, more) = self.chain.all_names(directory, name).await?;
        let mut strays = Strays { looked_at: names.len() as u64, ..Strays::default() };
        for name in &names {
            let is_known = directory != COMPLETE || Complete::range_of(name).is_some();
            let is_ours = number_of(name).is_some_and(|number| {
                number >= self.owner.first_task_number && (directory == INDEX || Some(number) <= last)
            });
            let is_ours = is_known && is_ours;
            if !is_ours {
                strays.add(format!("{directory}/{name} is of no task"));
            }
        }
        let behind = names.last().filter(|_| more).map(|name| format!("{directory}/{name}"));
        let next = match directory {
            INDEX => Some(format!("{FILLED}/")),
            FILLED => Some(format!("{COMPLETE}/")),
            _ => None,
        };
        strays.next = behind.or(next).map(StrayMark);
        Ok(strays)
    }
}
