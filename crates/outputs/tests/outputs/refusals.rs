//! Tasks that a store refuses: the part of the suite about them.

use std::sync::Arc;

use lockstep_outputs::{FinalTask, Layout, Output, OutputError, Owner, RefusedTask};
use lockstep_types::{Epoch, NetworkId, ProjectId, TaskNumber};

use crate::conformance::{Tables, assert_all, gap};
use crate::support::{FIRST, Feed, Node, eventually, number, owner, tasks};

fn refused(task: &FinalTask) -> RefusedTask {
    let reason = "a test".to_owned();
    RefusedTask { number: task.number, id: Some(task.id), project_id: task.project_id, reason }
}

pub async fn refused_numbers(output: &Arc<dyn Output>) -> Vec<u64> {
    let refusals = output.aside().unwrap().refused(None).await.unwrap();
    assert_eq!(refusals.count as usize, refusals.tasks.len());
    refusals.tasks.iter().map(|task| task.number.0).collect()
}

pub async fn a_refused_task_is_set_aside_once_and_the_cursor_moves_behind_it(store: &dyn Tables) {
    let (old, output) = (store.open(owner()), store.open(owner()));
    output.publish(&tasks(FIRST..=9), None).await.unwrap();
    old.last().await.unwrap();
    let task = refused(&tasks(10..=10)[0]);
    let aside = output.aside().unwrap();
    aside.refuse(&task, number(9)).await.unwrap();
    assert_eq!(output.last().await, Ok(number(10)));
    assert_eq!(aside.refused(None).await.unwrap().tasks, std::slice::from_ref(&task));
    assert_eq!(aside.refused(number(10)).await.unwrap().tasks, []);
    // A deposed leader's late word, the same and another.
    let before = store.rows().await;
    let late = old.aside().unwrap();
    late.refuse(&task, number(9)).await.unwrap();
    let moved = OutputError::Moved { actual_last: number(10) };
    assert_eq!(late.refuse(&refused(&tasks(11..=11)[0]), number(9)).await, Err(moved.clone()));
    assert_eq!(old.publish(&tasks(10..=12), number(9)).await, Err(moved.clone()));
    assert_eq!(old.publish(&tasks(10..=10), number(9)).await, Err(moved));
    for other in [Owner { epoch: Epoch(3), ..owner() }, Owner { network: NetworkId([1; 32]), ..owner() }] {
        let other = store.open(other);
        let aside = other.aside().unwrap();
        assert!(matches!(aside.refuse(&task, number(10)).await, Err(OutputError::Foreign(_))));
        assert!(matches!(aside.refused(None).await, Err(OutputError::Foreign(_))));
    }
    assert_eq!(store.rows().await, before);
    assert_eq!(gap(&output, FIRST, 10).await, None);
}

/// Tasks of which every third is of project 8.
fn mixed(numbers: std::ops::RangeInclusive<u64>) -> Vec<FinalTask> {
    let of = |mut task: FinalTask| {
        task.project_id = if task.number.0.is_multiple_of(3) { ProjectId(8) } else { ProjectId(7) };
        task
    };
    tasks(numbers).into_iter().map(of).collect()
}

async fn present(output: &Arc<dyn Output>, numbers: std::ops::RangeInclusive<u64>) -> Vec<u64> {
    let mut out = Vec::new();
    for task in mixed(numbers) {
        if output.read(&task.id).await.unwrap().is_some() {
            out.push(task.number.0);
        }
    }
    out
}

pub async fn a_refused_task_that_fits_now_is_filled_in_and_forgotten(store: &dyn Tables) {
    if store.layout().is_some_and(Layout::halts) {
        return;
    }
    let output = store.open(owner());
    output.publish(&mixed(FIRST..=9), None).await.unwrap();
    output.aside().unwrap().refuse(&refused(&mixed(10..=10)[0]), number(9)).await.unwrap();
    output.publish(&mixed(11..=20), number(10)).await.unwrap();
    assert_eq!(present(&output, 9..=12).await, [9, 11, 12]);
    for _ in 0..2 {
        output.fill(&mixed(10..=10)).await.unwrap();
        assert_eq!((refused_numbers(&output).await, present(&output, 9..=12).await.len()), (vec![], 4));
    }
    assert_eq!(output.last().await, Ok(number(20)));
}

pub async fn a_refused_task_halts_its_project_until_it_is_resumed_in_order(store: &dyn Tables) {
    if !store.layout().is_some_and(Layout::halts) {
        return;
    }
    // One that goes by what it saw at first.
    let (old, output) = (store.open(owner()), store.open(owner()));
    old.publish(&mixed(FIRST..=9), None).await.unwrap();
    let (aside, halt) = (output.aside().unwrap(), refused(&mixed(10..=10)[0]));
    aside.refuse(&halt, number(9)).await.unwrap();
    let receipt = old.publish(&mixed(11..=20), number(10)).await.unwrap();
    assert_eq!(receipt.last, TaskNumber(20));
    assert_eq!(present(&output, 10..=20).await, [12, 15, 18]);
    // Another one of the same project waits like the others; one of another project halts that. 21 is for others.
    aside.refuse(&refused(&mixed(22..=22)[0]), number(20)).await.unwrap();
    aside.refuse(&refused(&mixed(24..=24)[0]), number(22)).await.unwrap();
    output.publish(&mixed(25..=30), number(24)).await.unwrap();
    assert_eq!((refused_numbers(&output).await, present(&output, 20..=30).await), (vec![10, 24], vec![]));
    assert!(matches!(output.fill(&mixed(10..=10)).await, Err(OutputError::Refused { .. })));
    // Resumed in two steps, of which the second is late once.
    let of_seven = |numbers| mixed(numbers).into_iter().filter(|t| t.project_id.0 == 7).collect::<Vec<_>>();
    let at = |number: u64| RefusedTask { number: TaskNumber(number), id: None, ..halt.clone() };
    let moved = Err(OutputError::Moved { actual_last: number(30) });
    assert_eq!(aside.resume(TaskNumber(11), &of_seven(11..=15), &at(16)).await, moved);
    aside.resume(TaskNumber(10), &of_seven(10..=15), &at(16)).await.unwrap();
    assert_eq!(aside.resume(TaskNumber(10), &of_seven(10..=15), &at(16)).await, moved);
    assert_eq!(present(&output, 10..=30).await, [10, 11, 12, 13, 14, 15, 18]);
    assert_eq!(aside.lift(ProjectId(7), TaskNumber(30)).await, moved);
    assert_eq!(aside.resume(TaskNumber(16), &of_seven(16..=31), &at(32)).await, moved);
    aside.resume(TaskNumber(16), &of_seven(16..=30), &at(31)).await.unwrap();
    old.publish(&mixed(31..=31), number(30)).await.unwrap();
    assert_eq!(aside.lift(ProjectId(7), TaskNumber(30)).await, Err(OutputError::Moved { actual_last: number(31) }));
    aside.resume(TaskNumber(31), &of_seven(31..=31), &at(32)).await.unwrap();
    aside.lift(ProjectId(7), TaskNumber(31)).await.unwrap();
    // Who still believes that it halts must not leave its tasks out.
    old.publish(&mixed(32..=33), number(31)).await.unwrap();
    let expected: Vec<u64> = (10..=33).filter(|n| n % 3 != 0 || *n < 21).collect();
    assert_eq!((refused_numbers(&output).await, present(&output, 10..=33).await), (vec![24], expected));
}

pub async fn resuming_that_breaks_down_half_way_leaves_nothing(store: &dyn Tables) {
    if !store.layout().is_some_and(Layout::halts) {
        return;
    }
    let output = store.open(owner());
    output.publish(&tasks(FIRST..=9), None).await.unwrap();
    let halt = refused(&tasks(10..=10)[0]);
    output.aside().unwrap().refuse(&halt, number(9)).await.unwrap();
    output.publish(&tasks(11..=20), number(10)).await.unwrap();
    let before = store.rows().await;
    let to = RefusedTask { number: TaskNumber(21), id: None, ..halt };
    let resume = async |output: Arc<dyn Output>, to: RefusedTask| {
        output.aside().unwrap().resume(TaskNumber(10), &tasks(10..=20), &to).await
    };
    store.break_down_at(15, Box::pin(resume(Arc::clone(&output), to.clone()))).await;
    assert_eq!(store.rows().await, before);
    resume(Arc::clone(&output), to).await.unwrap();
    output.aside().unwrap().lift(ProjectId(7), TaskNumber(20)).await.unwrap();
    assert_eq!(present(&output, FIRST..=20).await, (FIRST..=20).collect::<Vec<_>>());
}

pub async fn what_the_server_itself_refuses_is_named(store: &dyn Tables) {
    let output = store.open(owner());
    output.publish(&tasks(FIRST..=9), None).await.unwrap();
    if store.refuse_rows_of(15).await.is_none() {
        return;
    }
    let result = output.publish(&tasks(10..=20), number(9)).await;
    assert!(matches!(result, Err(OutputError::Refused { task: TaskNumber(15), .. })), "{result:?}");
    // Those before it may have been written by the call.
    output.publish(&tasks(10..=14), number(9)).await.unwrap();
    output.aside().unwrap().refuse(&refused(&tasks(15..=15)[0]), number(14)).await.unwrap();
    output.publish(&tasks(16..=20), number(15)).await.unwrap();
    let aside = output.aside().unwrap();
    let to = RefusedTask { number: TaskNumber(21), id: None, ..refused(&tasks(15..=15)[0]) };
    let retried = async || match store.layout().is_some_and(Layout::halts) {
        true => aside.resume(TaskNumber(15), &tasks(15..=20), &to).await,
        false => output.fill(&tasks(15..=15)).await,
    };
    let again = retried().await;
    assert!(matches!(again, Err(OutputError::Refused { task: TaskNumber(15), .. })), "{again:?}");
    store.accept_rows().await;
    retried().await.unwrap();
    assert_eq!(present(&output, FIRST..=20).await, (FIRST..=20).collect::<Vec<_>>());
}

pub async fn what_is_refused_is_tried_again_when_asked(store: &dyn Tables) {
    let output = store.open(owner());
    output.last().await.unwrap();
    if store.refuse_rows_of(15).await.is_none() {
        return;
    }
    let feed = Feed::new();
    let node = Node::start(&feed, output.clone(), true, None);
    feed.finalize(2_000);
    let status = node.wait_for("it goes on behind the task", |s| s.last_published == number(2_000)).await;
    assert_eq!((status.refused_count, status.refused[0].0, status.last_error), (1, TaskNumber(15), None));
    assert_eq!(present(&output, 14..=17).await.len(), if store.layout().is_some_and(Layout::halts) { 1 } else { 3 });
    assert!(node.handle.retry());
    eventually("it was tried and refused again", || async { (feed.asked_from(14) > 0).then_some(()) }).await;
    store.accept_rows().await;
    feed.finalize(2_100);
    assert!(node.handle.retry());
    node.wait_for("nothing is refused", |s| s.refused_count == 0 && s.last_published == number(2_100)).await;
    node.stop().await;
    assert_all(store, 2_100).await;
}
