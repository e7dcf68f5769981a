//! Long work that an operator asks for beside ordering, as a backup: on a thread of its own that gives way to everything
//! else, one at a time of each key. A job that panics has ended, with an error, and the next one may be begun.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::endings::{EndReason, Endings, Then};
use crate::priority::{BACKUP, give_way};

/// What a job tells of itself.
pub(crate) trait Progress: Clone + Send + 'static {
    /// Whether it has ended.
    fn has_ended(&self) -> bool;

    /// Notes that it has ended, and why it has not come to its end.
    fn end(&mut self, error: Option<String>);
}

/// Why a job was not begun.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    /// One of this key runs: wait for it.
    #[error("one is under way already: wait for it")]
    UnderWay,
    /// The system gives no thread.
    #[error("no thread can be started: {0}")]
    Thread(std::io::Error),
}

/// A job under way, as its work sees it. Clones are the same job.
pub(crate) struct Job<P> {
    progress: Arc<Mutex<P>>,
    stop: CancellationToken,
}

impl<P> Clone for Job<P> {
    fn clone(&self) -> Self {
        Self { progress: self.progress.clone(), stop: self.stop.clone() }
    }
}

impl<P> Job<P> {
    /// Notes how far it is.
    pub fn note(&self, change: impl FnOnce(&mut P)) {
        change(&mut self.progress.lock());
    }

    /// How far it is, to be noted by others.
    pub fn progress(&self) -> &Mutex<P> {
        &self.progress
    }

    /// Cancelled when it is to end.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }
}

/// Jobs of one kind: the newest of each key, of which there are few.
pub(crate) struct Jobs<K, P> {
    kind: &'static str,
    newest: Mutex<BTreeMap<K, Job<P>>>,
    endings: Endings,
    stop: CancellationToken,
}

impl<K: Ord, P: Progress> Jobs<K, P> {
    /// None yet. All are told to end when `stop` is cancelled, and those that panic are noted in `endings`.
    pub fn new(kind: &'static str, endings: Endings, stop: CancellationToken) -> Self {
        Self { kind, newest: Mutex::default(), endings, stop }
    }

    /// How far the newest one of a key is; `None` where there was none since the start.
    pub fn progress(&self, key: &K) -> Option<P> {
        self.newest.lock().get(key).map(|job| job.progress.lock().clone())
    }

    /// Tells the one of a key to end, where there is one.
    pub fn cancel(&self, key: &K) {
        if let Some(job) = self.newest.lock().get(key) {
            job.stop.cancel();
        }
    }

    /// Begins one, called `name` where it is told that it panicked. `work` does all of it.
    ///
    /// # Errors
    /// If one of this key runs, or there is no thread.
    pub fn start<E: fmt::Display>(
        &self,
        key: K,
        name: String,
        begun: P,
        work: impl FnOnce(&Job<P>) -> Result<(), E> + Send + 'static,
    ) -> Result<(), JobError> {
        let job = Job { progress: Arc::new(Mutex::new(begun)), stop: self.stop.child_token() };
        {
            let mut newest = self.newest.lock();
            if newest.get(&key).is_some_and(|job| !job.progress.lock().has_ended()) {
                return Err(JobError::UnderWay);
            }
            newest.insert(key, job.clone());
        }
        let (own, endings) = (job.clone(), self.endings.clone());
        let run = move || {
            give_way(BACKUP);
            let error = match catch_unwind(AssertUnwindSafe(|| work(&own))) {
                Ok(result) => result.err().map(|error| error.to_string()),
                Err(payload) => {
                    let reason = EndReason::panic(&*payload);
                    endings.note(&name, &reason, Then::NextMayBegin);
                    Some(reason.to_string())
                }
            };
            own.note(|progress| progress.end(error));
        };
        let spawned = std::thread::Builder::new().name(self.kind.to_owned()).spawn(run);
        spawned.map(drop).map_err(|error| {
            job.note(|progress| progress.end(Some(error.to_string())));
            JobError::Thread(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use super::*;

    #[derive(Debug, Clone, Default, PartialEq)]
    struct Count {
        done: u64,
        ended: bool,
        error: Option<String>,
    }

    impl Progress for Count {
        fn has_ended(&self) -> bool {
            self.ended
        }

        fn end(&mut self, error: Option<String>) {
            self.ended = true;
            self.error = error;
        }
    }

    fn start(
        jobs: &Jobs<u8, Count>,
        key: u8,
        work: impl FnOnce(&Job<Count>) -> Result<(), String> + Send + 'static,
    ) -> Result<(), JobError> {
        jobs.start(key, format!("the count of {key}"), Count::default(), work)
    }

    fn end(jobs: &Jobs<u8, Count>, key: u8) -> Count {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let progress = jobs.progress(&key).unwrap();
            if progress.ended {
                return progress;
            }
            assert!(Instant::now() < until, "it has not ended");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn jobs() -> (Jobs<u8, Count>, Endings, CancellationToken) {
        let (endings, stop) = (Endings::default(), CancellationToken::new());
        (Jobs::new("count", endings.clone(), stop.clone()), endings, stop)
    }

    #[test]
    fn one_of_each_key_runs_at_a_time_and_tells_how_it_ended() {
        let (jobs, endings, _) = jobs();
        assert_eq!(jobs.progress(&1), None);
        let (go, wait) = mpsc::channel::<()>();
        start(&jobs, 1, move |job| {
            wait.recv().unwrap();
            job.note(|count| count.done = 7);
            Ok(())
        })
        .unwrap();
        assert!(matches!(start(&jobs, 1, |_| Ok(())), Err(JobError::UnderWay)));
        start(&jobs, 2, |_| Err("no such thing".into())).unwrap();
        assert_eq!(end(&jobs, 2).error.as_deref(), Some("no such thing"));
        go.send(()).unwrap();
        assert_eq!(end(&jobs, 1), Count { done: 7, ended: true, error: None });
        assert_eq!(endings.complaints(), [""; 0], "an error is for whoever asked");
    }

    #[test]
    fn a_job_that_panics_has_ended_and_the_next_one_runs() {
        let (jobs, endings, _) = jobs();
        for times in ["once", "2 times"] {
            start(&jobs, 1, |job| {
                job.note(|_| panic!("on purpose"));
                Ok(())
            })
            .unwrap();
            assert_eq!(end(&jobs, 1).error.as_deref(), Some("it panicked: on purpose"));
            let told = endings.complaints();
            assert!(told.len() == 1 && told[0].starts_with(&format!("the count of 1 ended {times}")), "{told:?}");
        }
        start(&jobs, 1, |_| Ok(())).unwrap();
        assert_eq!(end(&jobs, 1).error, None);
    }

    #[test]
    fn a_job_ends_when_it_is_told_to_and_with_the_node() {
        let (jobs, _, stop) = jobs();
        let work = |job: &Job<Count>| {
            let until = Instant::now() + Duration::from_secs(20);
            while !job.stop().is_cancelled() {
                assert!(Instant::now() < until, "it was not told");
                std::thread::sleep(Duration::from_millis(5));
            }
            Err("it was told to stop".to_owned())
        };
        start(&jobs, 1, work).unwrap();
        start(&jobs, 2, work).unwrap();
        jobs.cancel(&1);
        assert_eq!(end(&jobs, 1).error.as_deref(), Some("it was told to stop"));
        assert!(!jobs.progress(&2).unwrap().ended);
        stop.cancel();
        assert_eq!(end(&jobs, 2).error.as_deref(), Some("it was told to stop"));
    }
}
