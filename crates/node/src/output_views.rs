//! Where outputs are, as the status and the metrics show it. Some of it is read from the store, which may not answer;
//! the status does, with what was last known.

use std::sync::Arc;

use lockstep_api::views::{GapView, OutputView};
use lockstep_consensus::{StateStore, runtime};
use lockstep_outputs::publisher::State;
use lockstep_types::{Height, OutputName, TaskNumber};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::limits::STATUS_READ_MAX;
use crate::output_desk::STILL_NAMED;
use crate::proofs;
use crate::publish::RunningOutput;
use crate::tracker::Tracker;

/// What the store says of one output.
#[derive(Debug, Clone, Default)]
struct Stored {
    /// The last batch of which it has every task.
    height: Height,
    /// Tasks that were forgotten before it had them.
    gaps: Vec<(TaskNumber, TaskNumber)>,
}

/// What is asked of the store: an output, and the first task that it lacks or how far it is at least.
struct Question {
    output: OutputName,
    height: Result<Height, TaskNumber>,
}

/// See the module's documentation.
pub(crate) struct OutputViews {
    outputs: Arc<[RunningOutput]>,
    state: StateStore,
    tracker: Arc<Tracker>,
    first_task: TaskNumber,
    stored: watch::Sender<Vec<Stored>>,
    /// Held while the store is asked: by one at a time.
    turn: Arc<Semaphore>,
}

impl OutputViews {
    pub fn new(
        outputs: Arc<[RunningOutput]>,
        state: StateStore,
        tracker: Arc<Tracker>,
        first_task: TaskNumber,
    ) -> Self {
        let stored = watch::Sender::new(vec![Stored::default(); outputs.len()]);
        Self { outputs, state, tracker, first_task, stored, turn: Arc::new(Semaphore::new(1)) }
    }

    /// All outputs, in the order of the configuration. Waits for the store for [`STATUS_READ_MAX`] at most.
    pub async fn get(&self) -> Vec<OutputView> {
        if !self.outputs.is_empty() {
            self.ask().await;
        }
        let (stored, final_height) = (self.stored.borrow().clone(), self.final_height());
        let states = self.tracker.output_states().borrow().clone();
        let shown = |(output, stored): (&RunningOutput, Stored)| match output.switch.is_removed(&states) {
            true => removed(output, final_height),
            false => view(output, stored, final_height),
        };
        self.outputs.iter().zip(stored).map(shown).collect()
    }

    fn final_height(&self) -> Height {
        self.tracker.head().borrow().as_ref().map_or(Height(0), |head| head.final_height)
    }

    async fn ask(&self) {
        let mut stored = self.stored.subscribe();
        if let Ok(turn) = self.turn.clone().try_acquire_owned() {
            let questions: Vec<_> = self.outputs.iter().map(|output| self.question(output)).collect();
            let (state, told) = (self.state.clone(), self.stored.clone());
            let ask = move || {
                told.send_replace(questions.iter().map(|question| question.answer(&state)).collect());
                drop(turn);
            };
            // Goes on also where nobody waits for it any more.
            runtime::spawn(proofs::short(self.state.blocking(), ask));
        }
        // Told by this one, or by one that is under way.
        let _ = timeout(STATUS_READ_MAX, stored.changed()).await;
    }

    fn question(&self, output: &RunningOutput) -> Question {
        let newest = *self.tracker.newest_task().borrow();
        let published = output.handle.status().last_published;
        let published = published.max(self.tracker.progress().get(&output.name).copied());
        let missing = published.map_or(self.first_task, TaskNumber::next);
        let height = if published >= newest { Ok(self.final_height()) } else { Err(missing) };
        Question { output: output.name.clone(), height }
    }
}

impl Question {
    fn answer(&self, state: &StateStore) -> Stored {
        let before = |missing| {
            // The batch of the first task that is missing is not whole.
            let batch = state.batch_of_task(missing).ok().flatten();
            batch.map_or(Height(0), |batch| Height(batch.header.height.0.saturating_sub(1)))
        };
        let gaps = state.gaps(&self.output).unwrap_or_default();
        Stored {
            height: self.height.unwrap_or_else(before),
            gaps: gaps.iter().map(|gap| (gap.first, gap.last)).collect(),
        }
    }
}

/// An output that belongs to the network no longer.
fn removed(output: &RunningOutput, height: Height) -> OutputView {
    let (name, error) = (output.name.to_string(), Some(STILL_NAMED.to_owned()));
    OutputView { name, height, lag: 0, error, gaps: vec![], refused: 0, paused: false, removed: true }
}

fn view(output: &RunningOutput, stored: Stored, final_height: Height) -> OutputView {
    let status = output.handle.status();
    // What its store was found to lack, and where that was not looked at yet, what the log and the publisher say.
    let missing = output.missing.borrow().with(stored.gaps.into_iter().chain(status.newest_gap));
    OutputView {
        name: output.name.to_string(),
        height: stored.height,
        lag: final_height.0.saturating_sub(stored.height.0),
        error: status.last_error,
        gaps: missing.into_iter().map(|(first, last)| GapView { first, last }).collect(),
        refused: status.refused_count,
        paused: status.state == State::Paused,
        removed: false,
    }
}
