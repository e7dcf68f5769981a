//! The one place where tasks of a node are started and awaited, and where it is said what the end of each means.
//!
//! | what ended | what follows |
//! | --- | --- |
//! | a part that ordering or durability hangs on ([`Supervisor::spawn`]) | the node stops, with an error |
//! | one beside ordering, as what feeds an output ([`Supervisor::spawn_restarted`]) | it begins again, after a pause |
//! | work that an operator asked for ([`crate::jobs`]) | it is told, and the next one may be begun |
//!
//! A panic is an end as any other. What it was and why is kept in [`Endings`], for the status of the node.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lockstep_consensus::runtime::inherit;
use parking_lot::Mutex;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::endings::{EndReason, Endings, Then};
use crate::error::NodeError;
use crate::limits::{RESTART_PAUSE_FIRST, RESTART_PAUSE_MAX, RESTART_STEADY};

// Where a panic ends the process no part can end without the others.
const _: () = assert!(cfg!(panic = "unwind"), "a node is built with panic = \"unwind\"");

/// Runs named parts, and knows of each what its end means: see the module's documentation.
pub(crate) struct Supervisor {
    parts: JoinSet<()>,
    names: HashMap<Id, String>,
    endings: Endings,
    stop: CancellationToken,
}

impl Supervisor {
    /// Takes note in `endings` of what ends while the node goes on.
    pub fn new(endings: Endings) -> Self {
        Self { parts: JoinSet::new(), names: HashMap::new(), endings, stop: CancellationToken::new() }
    }

    /// Cancelled when the parts must end.
    pub fn token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs a part that the node needs: it stops when the part ends before it was told to.
    pub fn spawn(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        self.spawn_named(name.to_owned(), part);
    }

    /// Runs a part that the node can do without for a while: when it ends, also by a panic, it begins again after a
    /// pause. `make` makes it, whatever it needs anew, and is told why the one before ended. It is called at once when
    /// that has ended; what it returns is awaited after the pause.
    pub fn spawn_restarted<F, P>(&mut self, name: impl Into<String>, make: F)
    where
        F: FnMut(Option<&EndReason>) -> P + Send + 'static,
        P: Future<Output = Result<(), NodeError>> + Send + 'static,
    {
        let name = name.into();
        let again = Restarted { name: name.clone(), make: Arc::new(Mutex::new(make)), endings: self.endings.clone() };
        self.spawn_named(name, again.run(self.stop.clone()));
    }

    /// As [`Supervisor::spawn_restarted`], for a part that begins again from what it began from.
    pub fn spawn_restarted_from<S, F, P>(&mut self, name: impl Into<String>, start: S, run: F)
    where
        S: Clone + Send + 'static,
        F: Fn(S, CancellationToken) -> P + Send + 'static,
        P: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        self.spawn_restarted(name, move |_| {
            let part = run(start.clone(), stop.clone());
            async move {
                part.await;
                Ok(())
            }
        });
    }

    fn spawn_named(&mut self, name: String, part: impl Future<Output = ()> + Send + 'static) {
        let task = self.parts.spawn(inherit(Box::pin(part)));
        self.names.insert(task.id(), name);
    }

    /// Waits until a part ends that the node needs, which none should.
    pub async fn ended(&mut self) -> NodeError {
        let (id, reason) = match self.parts.join_next_with_id().await {
            Some(Ok((id, ()))) => (id, EndReason::by_itself()),
            Some(Err(error)) => (error.id(), EndReason::join_error(error)),
            None => return std::future::pending().await,
        };
        let part = self.names.remove(&id).unwrap_or_else(|| "a task".to_owned());
        NodeError::Stopped { part, reason: reason.to_string() }
    }

    /// Tells all parts to end and waits for them, up to a limit.
    pub async fn stop(&mut self, limit: Duration) {
        self.stop.cancel();
        let all = async {
            while let Some(joined) = self.parts.join_next_with_id().await {
                let id = joined.map_or_else(|error: JoinError| error.id(), |(id, ())| id);
                self.names.remove(&id);
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            let late: Vec<&str> = self.names.values().map(String::as_str).collect();
            tracing::warn!(?late, "some parts did not end in time and were cut off");
            self.parts.shutdown().await;
        }
    }
}

/// Lets a panic of a task that a part has started go on in the part, so that it is not lost and ends that too.
pub(crate) fn carry_on_panic(error: JoinError) {
    if let Ok(payload) = error.try_into_panic() {
        std::panic::resume_unwind(payload);
    }
}

/// A part that begins again when it has ended.
struct Restarted<F> {
    name: String,
    make: Arc<Mutex<F>>,
    endings: Endings,
}

impl<F, P> Restarted<F>
where
    F: FnMut(Option<&EndReason>) -> P + Send + 'static,
    P: Future<Output = Result<(), NodeError>> + Send + 'static,
{
    async fn run(self, stop: CancellationToken) {
        let mut before: Option<(EndReason, Duration)> = None;
        loop {
            let pause = before.as_ref().map(|(_, pause)| *pause);
            let begun = Instant::now() + pause.unwrap_or_default();
            let reason = self.run_once(before.take(), stop.clone()).await;
            if stop.is_cancelled() {
                return;
            }
            self.endings.note(&self.name, &reason, Then::BeginsAgain);
            before = Some((reason, next_pause(pause, begun.elapsed())));
        }
    }

    /// Runs the part in a task of its own, so that whatever panics in it, its making and its dropping too, ends that task
    /// and nothing else.
    async fn run_once(&self, before: Option<(EndReason, Duration)>, stop: CancellationToken) -> EndReason {
        let make = self.make.clone();
        let whole = async move {
            let (reason, pause) = before.unzip();
            let part = (make.lock())(reason.as_ref());
            if let Some(pause) = pause
                && tokio::time::timeout(pause, stop.cancelled()).await.is_ok()
            {
                return Ok(());
            }
            part.await
        };
        // A set ends what is in it when it is dropped.
        let mut one = JoinSet::new();
        one.spawn(inherit(Box::pin(whole)));
        match one.join_next().await {
            Some(Ok(Err(error))) => EndReason::error(&error),
            Some(Err(error)) => EndReason::join_error(error),
            Some(Ok(Ok(()))) | None => EndReason::by_itself(),
        }
    }
}

/// How long a part rests that ran for `ran` after a rest of `last`: twice as long each time, within bounds.
fn next_pause(last: Option<Duration>, ran: Duration) -> Duration {
    match last {
        Some(last) if ran < RESTART_STEADY => (last * 2).min(RESTART_PAUSE_MAX),
        _ => RESTART_PAUSE_FIRST,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_begin_anew_after_a_steady_run() {
        let short = Duration::from_secs(1);
        let mut pauses = vec![next_pause(None, short)];
        for _ in 0..8 {
            pauses.push(next_pause(pauses.last().copied(), short));
        }
        assert_eq!(pauses[..3], [RESTART_PAUSE_FIRST, RESTART_PAUSE_FIRST * 2, RESTART_PAUSE_FIRST * 4]);
        assert_eq!(pauses[8], RESTART_PAUSE_MAX);
        assert_eq!(next_pause(Some(RESTART_PAUSE_MAX), RESTART_STEADY), RESTART_PAUSE_FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_the_node_needs_stops_it_and_is_named_also_when_it_panics() {
        for (panics, expected) in [
            (false, "the proposer has stopped: it ended by itself"),
            (true, "the proposer has stopped: it panicked: on purpose"),
        ] {
            let mut supervisor = Supervisor::new(Endings::default());
            let stop = supervisor.token();
            supervisor.spawn("the network", async move { stop.cancelled().await });
            supervisor.spawn("the proposer", async move { assert!(!panics, "on purpose") });
            assert_eq!(supervisor.ended().await.to_string(), expected);
            supervisor.stop(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_beside_ordering_begins_again_however_it_ends_and_the_others_go_on() {
        let endings = Endings::default();
        let mut supervisor = Supervisor::new(endings.clone());
        let (told, mut heard) = mpsc::unbounded_channel();
        let (stop, runs) = (supervisor.token(), AtomicU32::new(0));
        supervisor.spawn_restarted("the publisher of tasks", move |before: Option<&EndReason>| {
            let (run, stop) = (runs.fetch_add(1, Ordering::Relaxed), stop.clone());
            told.send((run, before.map(ToString::to_string), Instant::now())).unwrap();
            assert!(run != 1, "while it was made");
            async move {
                match run {
                    0 => panic!("while it ran"),
                    2 => return Err(NodeError::Config("its store cannot be opened".into())),
                    3 => return Ok(()),
                    _ => stop.cancelled().await,
                }
                Ok(())
            }
        });
        let stopped = supervisor.token();
        supervisor.spawn("the proposer", async move { stopped.cancelled().await });
        let mut seen = Vec::new();
        while seen.len() < 5 {
            tokio::select! {
                run = heard.recv() => seen.push(run.unwrap()),
                error = supervisor.ended() => panic!("the node stopped: {error}"),
            }
        }
        let reasons: Vec<_> = seen.iter().map(|(_, reason, _)| reason.as_deref()).collect();
        assert_eq!(
            reasons,
            [
                None,
                Some("it panicked: while it ran"),
                Some("it panicked: while it was made"),
                Some("its store cannot be opened"),
                Some("it ended by itself")
            ]
        );
        let told = endings.complaints();
        assert_eq!(told.len(), 1);
        assert!(told[0].contains("the publisher of tasks ended 4 times") && told[0].contains("by itself"), "{told:?}");
        let begun = Instant::now();
        supervisor.stop(Duration::from_secs(30)).await;
        assert!(begun.elapsed() < Duration::from_secs(1), "a part that rests ends at once when it is told to");
        assert_eq!(endings.complaints(), told, "an end that was asked for is none to tell");
    }
}
