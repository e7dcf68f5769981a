//! What every store of tables must do, in either layout: one suite for all of them.

use std::ops::RangeInclusive;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use lockstep_outputs::publisher::State;
use lockstep_outputs::{Adopted, Adoption, FinalMessage, FinalTask, Layout, Output, OutputError, Owner};
use lockstep_types::{Epoch, MessageId, NetworkId, Sequence, TaskId, TaskNumber};

pub use crate::refusals::*;
pub use crate::stored::*;
use crate::support::{FIRST, Feed, Node, number, owner, signer, tasks as plain_tasks, unsigned};

/// An empty store, and ways around its adapter.
#[async_trait]
pub trait Store: Send + Sync {
    /// Which readers its tables are for; `None` where it has no tables.
    fn layout(&self) -> Option<Layout> {
        None
    }

    /// A new adapter, as another node or a restarted one has it.
    fn open(&self, owner: Owner) -> Arc<dyn Output>;

    /// Makes tasks as the store gets them.
    fn tasks(&self) -> fn(RangeInclusive<u64>) -> Vec<FinalTask> {
        plain_tasks
    }

    /// Everything that is in the tables and the cursor, as text.
    async fn rows(&self) -> Vec<String>;

    /// Lets a write go on until it has written some rows, and breaks it down when it comes to this task.
    async fn break_down_at(&self, task: u64, writing: BoxFuture<'static, Result<(), OutputError>>) -> OutputError;

    /// Payloads of a task, as the contract's reader gets them, with the reader's own SQL.
    async fn read_as_w3bstream(&self, task: &FinalTask, project_id: i64) -> Vec<Vec<u8>>;

    /// Puts rows into the messages table that Lockstep has not written.
    async fn write_as_another(&self);
}

/// An empty store of tables.
#[async_trait]
pub trait Tables: Store {
    /// An adapter of the other layout on the same tables.
    fn open_other_layout(&self) -> Arc<dyn Output>;

    /// Keeps writers out for as long as the value lives; they give up after half a second.
    async fn hold(&self) -> Box<dyn std::any::Any + Send>;

    /// The statements refuse this task's rows, with an error of the server's own. `None`: the store has no such errors.
    async fn refuse_rows_of(&self, task: u64) -> Option<()>;

    /// Makes of it what it was before it remembered what was skipped and refused.
    async fn forget_gaps(&self);

    /// Does something to the rows behind the adapter's back.
    async fn alter(&self, sql: &str);

    /// Rows of this task are fine again.
    async fn accept_rows(&self);
}

/// A task as it is read back: not every layout keeps its messages' ids.
pub fn stored(store: &dyn Store, mut task: FinalTask) -> FinalTask {
    if store.layout() == Some(Layout::Apinode) {
        task.messages.iter_mut().for_each(|message| message.id = MessageId::ZERO);
    }
    task
}

pub async fn the_same_tasks_again_change_nothing_and_give_an_equal_receipt(store: &dyn Store) {
    let tasks = store.tasks();
    let output = store.open(owner());
    assert_eq!(output.last().await.unwrap(), None);
    let batch = tasks(FIRST..=20);
    let receipt = output.publish(&batch, None).await.unwrap();
    assert_eq!((receipt.last, receipt.last_id), (batch[15].number, batch[15].id));
    let before = store.rows().await;
    assert_eq!(output.publish(&batch, None).await.unwrap(), receipt);
    assert_eq!(store.rows().await, before);
    output.publish(&tasks(21..=22), number(20)).await.unwrap();
    assert_eq!(output.publish(&batch, None).await.unwrap(), receipt);
    assert_eq!(output.last().await.unwrap(), number(22));
    for task in batch {
        assert_eq!(output.read(&task.id).await.unwrap(), Some(stored(store, task)));
    }
    assert_eq!(output.read(&TaskId([0; 32])).await.unwrap(), None);
}

pub async fn a_restarted_adapter_goes_on_where_the_store_is(store: &dyn Store) {
    let tasks = store.tasks();
    store.open(owner()).publish(&tasks(FIRST..=9), None).await.unwrap();
    let restarted = store.open(owner());
    assert_eq!(restarted.last().await.unwrap(), number(9));
    restarted.publish(&tasks(10..=10), number(9)).await.unwrap();
    assert_eq!(store.open(owner()).last().await.unwrap(), number(10));
}

pub async fn a_write_that_breaks_down_half_way_leaves_nothing(store: &dyn Store) {
    let tasks = store.tasks();
    let output = store.open(owner());
    output.publish(&tasks(FIRST..=9), None).await.unwrap();
    let before = store.rows().await;
    let writer = Arc::clone(&output);
    store.break_down_at(30, Box::pin(async move { writer.publish(&tasks(10..=30), number(9)).await.map(drop) })).await;
    assert_eq!(store.rows().await, before);
    assert_eq!(output.last().await.unwrap(), number(9));
    output.publish(&tasks(10..=30), number(9)).await.unwrap();
    assert_eq!(output.last().await.unwrap(), number(30));
}

pub async fn what_never_comes_is_skipped_once_and_only_from_where_the_store_is(store: &dyn Store) {
    let tasks = store.tasks();
    let output = store.open(owner());
    output.skip(number(9).unwrap(), None).await.unwrap();
    assert_eq!(output.last().await.unwrap(), number(9));
    output.publish(&tasks(10..=12), number(9)).await.unwrap();
    let before = store.rows().await;
    let moved = OutputError::Moved { actual_last: number(12) };
    assert_eq!(store.open(owner()).skip(number(20).unwrap(), number(9)).await, Err(moved));
    // Late, or a second time.
    store.open(owner()).skip(number(9).unwrap(), None).await.unwrap();
    assert_eq!(store.rows().await, before);
    let foreign = Owner { network: NetworkId([0xee; 32]), ..owner() };
    assert!(matches!(store.open(foreign).skip(number(20).unwrap(), number(12)).await, Err(OutputError::Foreign(_))));
    output.skip(number(20).unwrap(), number(12)).await.unwrap();
    output.publish(&tasks(21..=21), number(20)).await.unwrap();
}

/// A store with tasks from the first to 9 and from 21 to 22; those between were skipped.
async fn with_gap(store: &dyn Store) -> Arc<dyn Output> {
    let tasks = store.tasks();
    let output = store.open(owner());
    output.publish(&tasks(FIRST..=9), None).await.unwrap();
    output.skip(TaskNumber(20), number(9)).await.unwrap();
    output.publish(&tasks(21..=22), number(20)).await.unwrap();
    output
}

/// Rows beside tasks and messages: the owner's, and in tables that of the gap.
fn rows_with_gap(store: &dyn Store) -> usize {
    1 + usize::from(store.layout().is_some())
}

pub async fn gap(output: &Arc<dyn Output>, first: u64, last: u64) -> Option<(u64, u64)> {
    let gap = output.first_gap(TaskNumber(first), TaskNumber(last)).await.unwrap();
    gap.map(|(first, last)| (first.0, last.0))
}

pub async fn what_was_skipped_is_filled_in_once_and_the_cursor_stays(store: &dyn Store) {
    let tasks = store.tasks();
    let output = with_gap(store).await;
    for (first, last, expected) in [
        (FIRST, 22, Some((10, 20))),
        (FIRST, 15, Some((10, 15))),
        (12, 13, Some((12, 13))),
        (FIRST, 9, None),
        (FIRST, 8, None),
        (21, 22, None),
        (21, 25, None),
        (9, 8, None),
    ] {
        assert_eq!(gap(&output, first, last).await, expected, "{first} to {last}");
    }
    output.fill(&tasks(12..=14)).await.unwrap();
    assert_eq!((gap(&output, FIRST, 22).await, gap(&output, 12, 22).await), (Some((10, 11)), Some((15, 20))));
    let before = store.rows().await;
    store.open(owner()).fill(&tasks(12..=14)).await.unwrap();
    assert_eq!(store.rows().await, before);
    // What is there and what is not, mixed; then by several at a time.
    output.fill(&tasks(9..=15)).await.unwrap();
    let fillers: Vec<_> = (0..3).map(|_| store.open(owner())).collect();
    let filling = fillers.into_iter().map(|filler| tokio::spawn(async move { filler.fill(&tasks(FIRST..=22)).await }));
    for filler in filling.collect::<Vec<_>>() {
        filler.await.unwrap().unwrap();
    }
    assert_eq!((gap(&output, FIRST, 22).await, output.last().await), (None, Ok(number(22))));
    for task in tasks(FIRST..=22) {
        assert_eq!(output.read(&task.id).await.unwrap(), Some(stored(store, task)));
    }
    assert_eq!(store.rows().await.len(), rows_with_gap(store) + 3 * (22 - FIRST as usize + 1));
    output.publish(&tasks(23..=23), number(22)).await.unwrap();
}

pub async fn what_does_not_belong_below_the_cursor_is_not_filled_in(store: &dyn Store) {
    let tasks = store.tasks();
    let output = with_gap(store).await;
    let before = store.rows().await;
    let moved = OutputError::Moved { actual_last: number(22) };
    assert_eq!(output.fill(&tasks(23..=24)).await, Err(moved.clone()));
    assert_eq!(output.fill(&tasks(20..=23)).await, Err(moved));
    for bad in [vec![], [tasks(12..=12), tasks(10..=10)].concat()] {
        assert!(matches!(output.fill(&bad).await, Err(OutputError::Refused { .. })));
    }
    // Of another history: one of its numbers is taken.
    let mut forked = tasks(8..=12);
    forked[0].id = TaskId([0xee; 32]);
    assert!(matches!(output.fill(&forked).await, Err(OutputError::Foreign(_))));
    for other in [Owner { epoch: Epoch(3), ..owner() }, Owner { network: NetworkId([1; 32]), ..owner() }] {
        let other = store.open(other);
        assert!(matches!(other.fill(&tasks(10..=12)).await, Err(OutputError::Foreign(_))));
        assert!(matches!(other.first_gap(TaskNumber(10), TaskNumber(12)).await, Err(OutputError::Foreign(_))));
    }
    assert_eq!(store.rows().await, before);
    let newer = Owner { first_task_number: TaskNumber(30), ..owner() };
    assert!(matches!(store.open(newer).fill(&tasks(29..=30)).await, Err(OutputError::Refused { .. })));
}

pub async fn filling_in_that_breaks_down_half_way_leaves_whole_tasks_and_is_done_again(store: &dyn Store) {
    let tasks = store.tasks();
    let output = with_gap(store).await;
    let filler = Arc::clone(&output);
    store.break_down_at(15, Box::pin(async move { filler.fill(&tasks(10..=20)).await })).await;
    for task in tasks(10..=20) {
        let found = output.read(&task.id).await.unwrap();
        assert!(found.is_none() || found == Some(stored(store, task)));
    }
    output.fill(&tasks(10..=20)).await.unwrap();
    assert_eq!(gap(&output, FIRST, 22).await, None);
    assert_eq!(store.rows().await.len(), rows_with_gap(store) + 3 * (22 - FIRST as usize + 1));
}

pub async fn a_deposed_leaders_late_write_changes_nothing(store: &dyn Store) {
    let tasks = store.tasks();
    let (old, new) = (store.open(owner()), store.open(owner()));
    old.publish(&tasks(FIRST..=9), None).await.unwrap();
    let receipt = new.publish(&tasks(10..=12), number(9)).await.unwrap();
    let before = store.rows().await;
    let moved = OutputError::Moved { actual_last: number(12) };
    assert_eq!(old.publish(&tasks(10..=14), number(9)).await, Err(moved.clone()));
    assert_eq!(old.publish(&tasks(30..=31), number(29)).await, Err(moved));
    assert_eq!(old.publish(&tasks(10..=12), number(9)).await, Ok(receipt));
    let mut forked = tasks(10..=12);
    forked[1].id = TaskId([0xee; 32]);
    assert!(matches!(old.publish(&forked, number(9)).await, Err(OutputError::Foreign(_))));
    assert_eq!(store.rows().await, before);
}

pub async fn writers_at_the_same_time_write_each_task_once(store: &dyn Store) {
    let tasks = store.tasks();
    let writers: Vec<_> = (0..3).map(|_| store.open(owner())).collect();
    let writing = writers.into_iter().map(|output| {
        tokio::spawn(async move {
            loop {
                let last = output.last().await.unwrap();
                let next = owner().next(last).0;
                if next > 60 {
                    return;
                }
                match output.publish(&tasks(next..=(next + 2).min(60)), last).await {
                    Ok(_) | Err(OutputError::Moved { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        })
    });
    for writer in writing.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let output = store.open(owner());
    for task in tasks(FIRST..=60) {
        assert_eq!(output.read(&task.id).await.unwrap(), Some(stored(store, task)));
    }
    assert_eq!(store.rows().await.len(), 1 + 3 * (60 - FIRST as usize + 1));
}

pub async fn another_networks_or_epochs_store_is_refused(store: &dyn Store) {
    let tasks = store.tasks();
    store.open(owner()).publish(&tasks(FIRST..=9), None).await.unwrap();
    let before = store.rows().await;
    let others = [Owner { epoch: Epoch(3), ..owner() }, Owner { network: NetworkId([1; 32]), ..owner() }];
    for other in others {
        let output = store.open(other);
        assert!(matches!(output.last().await, Err(OutputError::Foreign(_))));
        assert!(matches!(output.publish(&tasks(10..=10), number(9)).await, Err(OutputError::Foreign(_))));
        assert!(matches!(output.publish(&tasks(FIRST..=9), None).await, Err(OutputError::Foreign(_))));
    }
    assert_eq!(store.rows().await, before);
}

pub async fn a_store_of_an_earlier_epoch_is_taken_over_when_told_and_not_ahead_of_it(store: &dyn Store) {
    let tasks = store.tasks();
    let (old, new) = (owner(), Owner { epoch: Epoch(4), ..owner() });
    let (old_writer, output) = (store.open(old), store.open(new));
    old_writer.publish(&tasks(FIRST..=9), None).await.unwrap();
    let before = store.rows().await;
    let ends = |third: u64, fourth: u64| Adoption {
        first_tasks: vec![(Epoch(1), TaskNumber(FIRST)), (Epoch(3), TaskNumber(third)), (Epoch(4), TaskNumber(fourth))],
        accept_ahead: false,
    };
    let other = Owner { network: NetworkId([1; 32]), ..new };
    assert!(matches!(store.open(other).adopt(&ends(10, 10)).await, Err(OutputError::Foreign(_))));
    for ahead in [ends(8, 20), ends(20, 8)] {
        let (first, last) = (TaskNumber(8), TaskNumber(9));
        assert_eq!(output.adopt(&ahead).await, Err(OutputError::Ahead { last, first }));
    }
    assert_eq!(store.rows().await, before);
    // As far as the restored history goes, or less: nothing is lost, and the old writer is out.
    let adopted = output.adopt(&ends(10, 20)).await.unwrap();
    assert_eq!(adopted, Adopted { from: old.epoch, last: number(9), foreign: None });
    assert!(matches!(old_writer.publish(&tasks(10..=10), number(9)).await, Err(OutputError::Foreign(_))));
    output.publish(&tasks(10..=12), number(9)).await.unwrap();
    // A second time there is nothing to do, however far it has come since.
    assert_eq!(output.adopt(&ends(10, 10)).await.unwrap().from, new.epoch);
    assert!(matches!(old_writer.adopt(&ends(10, 10)).await, Err(OutputError::Foreign(_))));
    // Ahead, and told to take it: its rows stay, and it goes on behind them.
    let newest = Owner { epoch: Epoch(5), ..new };
    let newest = store.open(newest);
    let told = Adoption { first_tasks: vec![(Epoch(5), TaskNumber(11))], accept_ahead: true };
    let rows = store.rows().await.len();
    assert_eq!(newest.adopt(&told).await.unwrap().foreign, Some((TaskNumber(11), TaskNumber(12))));
    assert_eq!((store.rows().await.len(), newest.last().await), (rows, Ok(number(12))));
    newest.publish(&tasks(13..=13), number(12)).await.unwrap();
}

pub async fn three_nodes_can_set_up_at_once(store: &dyn Store) {
    let nodes = [store.open(owner()), store.open(owner()), store.open(owner())];
    let starting: Vec<_> = nodes.into_iter().map(|n| tokio::spawn(async move { n.last().await })).collect();
    for node in starting {
        assert_eq!(node.await.unwrap(), Ok(None));
    }
}

pub async fn readers_get_payloads_in_signed_order(store: &dyn Store) {
    let tasks = store.tasks();
    let output = store.open(owner());
    output.publish(&tasks(FIRST..=40), None).await.unwrap();
    for task in tasks(FIRST..=40) {
        let expected: Vec<Vec<u8>> = task.messages.iter().map(|m| m.data.to_vec()).collect();
        assert_eq!(store.read_as_w3bstream(&task, 7).await, expected);
    }
    assert!(store.read_as_w3bstream(&tasks(FIRST..=FIRST)[0], 8).await.is_empty());
}

pub async fn payloads_may_hold_any_bytes(store: &dyn Store) {
    let tasks = store.tasks();
    let output = store.open(owner());
    let mut task = tasks(FIRST..=FIRST);
    task[0].project_version = "'\"\\ ;--\u{1F321}\n\t".to_owned();
    let every: Vec<u8> = (0..=255).collect();
    let payloads = [Bytes::new(), Bytes::from(every), Bytes::from(vec![0; 1 << 20]), Bytes::from_static(b"\\x00")];
    task[0].messages = (1..)
        .zip(payloads)
        .map(|(n, data)| FinalMessage { sequence: Sequence(n), id: MessageId([n as u8; 32]), data })
        .collect::<Vec<_>>();
    output.publish(&task, None).await.unwrap();
    assert_eq!(output.read(&task[0].id).await.unwrap(), Some(stored(store, task[0].clone())));
}

pub async fn what_cannot_be_stored_is_refused_and_changes_nothing(store: &dyn Store) {
    let tasks = store.tasks();
    let output = store.open(owner());
    assert_eq!(output.last().await, Ok(None));
    let before = store.rows().await;
    let mut batch = tasks(FIRST..=9);
    batch[2].project_version = "a\0b".to_owned();
    let refused = output.publish(&batch, None).await;
    assert!(matches!(refused, Err(OutputError::Refused { task, .. }) if task == batch[2].number));
    assert!(matches!(output.publish(&[], None).await, Err(OutputError::Refused { .. })));
    assert_eq!(store.rows().await, before);
    output.publish(&batch[..2], None).await.unwrap();
}

pub async fn a_large_call_is_whole(store: &dyn Store) {
    let tasks = store.tasks();
    let output = store.open(owner());
    let batch = tasks(FIRST..=FIRST + 9_999);
    let receipt = output.publish(&batch, None).await.unwrap();
    assert_eq!(output.publish(&batch, None).await, Ok(receipt.clone()));
    assert_eq!(output.last().await, Ok(Some(receipt.last)));
    assert_eq!(store.rows().await.len(), 1 + 30_000);
    assert_eq!(output.read(&batch[9_000].id).await.unwrap(), Some(stored(store, batch[9_000].clone())));
}

pub async fn tables_that_another_program_fills_are_not_adopted(store: &dyn Store) {
    store.write_as_another().await;
    for _ in 0..2 {
        let result = store.open(owner()).last().await;
        assert!(matches!(result, Err(OutputError::Foreign(_))), "{result:?}");
    }
}

pub async fn a_store_of_the_other_readers_is_refused_and_not_touched(store: &dyn Tables) {
    let tasks = store.tasks();
    store.open(owner()).publish(&tasks(FIRST..=9), None).await.unwrap();
    let before = store.rows().await;
    let other = store.open_other_layout();
    let result = other.last().await;
    assert!(matches!(&result, Err(OutputError::Foreign(reason)) if reason.contains("layout")), "{result:?}");
    assert!(matches!(other.publish(&tasks(10..=10), number(9)).await, Err(OutputError::Foreign(_))));
    assert_eq!(store.rows().await, before);
}

pub async fn what_is_for_others_is_passed_over_and_no_gap(store: &dyn Store) {
    let tasks = store.tasks();
    let output = store.open(owner());
    output.publish(&[tasks(6..=6), tasks(9..=9)].concat(), None).await.unwrap();
    output.pass(TaskNumber(20), number(9)).await.unwrap();
    output.skip(TaskNumber(30), number(20)).await.unwrap();
    assert_eq!((output.last().await.unwrap(), gap(&output, FIRST, 30).await), (number(30), Some((21, 30))));
    // Late, or a second time.
    let before = store.rows().await;
    output.pass(TaskNumber(20), number(9)).await.unwrap();
    assert_eq!(store.rows().await, before);
    // Of those that were found again only some are for this store.
    output.fill(&[tasks(22..=22), tasks(25..=25)].concat()).await.unwrap();
    output.complete(TaskNumber(21), TaskNumber(26)).await.unwrap();
    assert_eq!(gap(&output, FIRST, 30).await, Some((27, 30)));
    output.complete(TaskNumber(29), TaskNumber(29)).await.unwrap();
    assert_eq!((gap(&output, FIRST, 28).await, gap(&output, 29, 30).await), (Some((27, 28)), Some((30, 30))));
}

pub async fn a_store_of_before_still_knows_its_gaps(store: &dyn Tables) {
    let tasks = store.tasks();
    drop(with_gap(store).await);
    store.forget_gaps().await;
    let output = store.open(owner());
    assert_eq!((gap(&output, FIRST, 22).await, gap(&output, 21, 22).await), (Some((10, 20)), None));
    output.publish(&tasks(23..=24), number(22)).await.unwrap();
    output.fill(&tasks(10..=20)).await.unwrap();
    assert_eq!((gap(&output, FIRST, 24).await, refused_numbers(&output).await), (None, vec![]));
}

/// All tasks up to `newest` are there, signed for the readers of the layout, each once.
pub async fn assert_all(store: &dyn Store, newest: u64) {
    let output = store.open(owner());
    for n in FIRST..=newest {
        let expected = stored(store, signer().sign(unsigned(n), store.layout().unwrap_or_default()));
        assert_eq!(output.read(&expected.id).await.unwrap(), Some(expected));
    }
    assert_eq!(store.rows().await.len() as u64, 1 + 3 * (newest - FIRST + 1));
}

pub async fn a_store_that_is_away_for_a_while_gets_everything_once(store: &dyn Tables) {
    let feed = Feed::new();
    let node = Node::start(&feed, store.open(owner()), true, None);
    feed.finalize(20);
    node.wait_for("the first tasks", |s| s.last_published == number(20)).await;
    let held = store.hold().await;
    feed.finalize(60);
    let status = node.wait_for("the failure is visible", |s| s.state == State::Retrying).await;
    assert!(status.last_error.is_some() && status.lag == 40);
    drop(held);
    node.wait_for("all tasks", |s| s.last_published == number(60) && s.last_error.is_none()).await;
    node.stop().await;
    assert_all(store, 60).await;
}

pub async fn a_slow_store_gets_everything_once(store: &dyn Tables) {
    let feed = Feed::new();
    let node = Node::start(&feed, store.open(owner()), true, None);
    let mut newest = FIRST;
    feed.finalize(newest);
    node.wait_for("the first task", |s| s.last_published == number(FIRST)).await;
    for _ in 0..5 {
        let held = store.hold().await;
        newest += 7;
        feed.finalize(newest);
        // Shorter than writers wait: a call is only slow.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        drop(held);
        let status = node.wait_for("the tasks", |s| s.last_published == number(newest)).await;
        assert_eq!(status.last_error, None);
    }
    node.stop().await;
    assert_all(store, newest).await;
}

/// Runs `$claim`s, each on a store that `$new` makes.
#[macro_export]
macro_rules! conformance_suite {
    (@in $module:ident; $new:expr; $($claim:ident),* $(,)?) => {
        $(
            let began = std::time::Instant::now();
            $crate::$module::$claim(&$new).await;
            println!("{} ({:?})", stringify!($claim), began.elapsed());
        )*
    };
    ($new:expr) => {
        $crate::conformance_suite!($new;
            the_same_tasks_again_change_nothing_and_give_an_equal_receipt,
            a_restarted_adapter_goes_on_where_the_store_is,
            a_write_that_breaks_down_half_way_leaves_nothing,
            a_deposed_leaders_late_write_changes_nothing,
            what_never_comes_is_skipped_once_and_only_from_where_the_store_is,
            what_was_skipped_is_filled_in_once_and_the_cursor_stays,
            what_does_not_belong_below_the_cursor_is_not_filled_in,
            filling_in_that_breaks_down_half_way_leaves_whole_tasks_and_is_done_again,
            writers_at_the_same_time_write_each_task_once,
            another_networks_or_epochs_store_is_refused,
            a_store_of_an_earlier_epoch_is_taken_over_when_told_and_not_ahead_of_it,
            three_nodes_can_set_up_at_once,
            readers_get_payloads_in_signed_order,
            payloads_may_hold_any_bytes,
            what_cannot_be_stored_is_refused_and_changes_nothing,
            a_large_call_is_whole,
            tables_that_another_program_fills_are_not_adopted,
            a_store_of_the_other_readers_is_refused_and_not_touched,
            what_is_for_others_is_passed_over_and_no_gap,
            a_store_of_before_still_knows_its_gaps,
            a_refused_task_is_set_aside_once_and_the_cursor_moves_behind_it,
            a_refused_task_that_fits_now_is_filled_in_and_forgotten,
            a_refused_task_halts_its_project_until_it_is_resumed_in_order,
            resuming_that_breaks_down_half_way_leaves_nothing,
            what_the_server_itself_refuses_is_named,
            what_is_stored_is_walked_by_number_with_what_was_filled_in,
            every_change_of_a_row_is_named_with_its_task,
            rows_of_no_task_are_strays,
            a_store_that_is_away_for_a_while_gets_everything_once,
            a_slow_store_gets_everything_once,
            what_is_refused_is_tried_again_when_asked,
        );
    };
    ($new:expr; $($claim:ident),* $(,)?) => {
        $crate::conformance_suite!(@in conformance; $new; $($claim),*);
    };
}
