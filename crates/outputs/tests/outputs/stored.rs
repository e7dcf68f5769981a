//! What a store gives back by number, and what it names that is not ours: the part of the suite that audits rely on.

use std::collections::BTreeSet;
use std::sync::Arc;

use lockstep_outputs::{FinalTask, Layout, Output, OutputError, Owner, Page, Place, StrayMark};
use lockstep_types::{Epoch, TaskNumber};

use crate::conformance::{Store, Tables, stored};
use crate::support::{FIRST, number, owner};

/// Everything that a store holds from `first` on, in pages of at most `max` tasks.
pub async fn walk(output: &Arc<dyn Output>, first: u64, max: usize, places: &[Place]) -> Page {
    let (mut all, mut next) = (Page::default(), TaskNumber(first));
    loop {
        let page = output.stored(next, max, places).await.unwrap();
        assert!(page.tasks.len() <= max, "{} tasks", page.tasks.len());
        assert!(page.tasks.is_sorted_by(|a, b| a.number < b.number));
        assert!(page.tasks.first().is_none_or(|task| task.number >= next));
        let Some(last) = page.last() else { return all };
        assert!(last >= next, "{last} after {next}");
        next = last.next();
        all.tasks.extend(page.tasks);
        all.damaged.extend(page.damaged);
    }
}

/// What a store names as strays, in all of its parts.
pub async fn strays(output: &Arc<dyn Output>) -> Vec<String> {
    let (mut named, mut after): (Vec<String>, Option<StrayMark>) = (Vec::new(), None);
    loop {
        let found = output.strays(after.as_ref()).await.unwrap();
        assert_eq!(found.count as usize, found.named.len());
        named.extend(found.named);
        after = found.next;
        if after.is_none() {
            return named;
        }
    }
}

pub async fn what_is_stored_is_walked_by_number_with_what_was_filled_in(store: &dyn Store) {
    let tasks = store.tasks();
    let output = store.open(owner());
    assert_eq!(walk(&output, 0, 8, &[]).await, Page::default());
    output.publish(&tasks(FIRST..=9), None).await.unwrap();
    output.skip(TaskNumber(60), number(9)).await.unwrap();
    output.publish(&tasks(61..=120), number(60)).await.unwrap();
    output.fill(&[tasks(12..=14), tasks(30..=40)].concat()).await.unwrap();
    let expected: Vec<FinalTask> = [FIRST..=9, 12..=14, 30..=40, 61..=120].into_iter().flat_map(tasks).collect();
    let expected: Vec<FinalTask> = expected.into_iter().map(|task| stored(store, task)).collect();
    for (first, max) in [(0, 7), (FIRST, 1), (33, 7), (70, 10_000), (121, 7)] {
        let found = walk(&output, first, max, &[]).await;
        let wanted: Vec<_> = expected.iter().filter(|task| task.number.0 >= first).cloned().collect();
        assert!(found.tasks == wanted && found.damaged.is_empty(), "from {first}, {max} at a time: {found:?}");
    }
    assert_eq!(strays(&output).await, Vec::<String>::new());
    let other = store.open(Owner { epoch: Epoch(3), ..owner() });
    assert!(matches!(other.stored(TaskNumber(FIRST), 7, &[]).await, Err(OutputError::Foreign(_))));
}

/// Numbers at which a walk does not give what was published.
pub fn wrong(found: &Page, expected: &[FinalTask]) -> BTreeSet<u64> {
    let is_gone = |task: &&FinalTask| !found.tasks.contains(task);
    let missing = expected.iter().filter(is_gone).map(|task| task.number.0);
    missing.chain(found.damaged.iter().flat_map(|damaged| damaged.first.0..=damaged.last.0)).collect()
}

/// The first and the second message of a task.
fn sequences(task: u64) -> [u64; 2] {
    let (pair, place) = ((task - FIRST) / 2, (task - FIRST) % 2);
    [4 * pair + 1 + place, 4 * pair + 3 + place]
}

/// What somebody may do to the rows of a task.
fn changes(layout: Layout, task: u64) -> Vec<String> {
    let [first, second] = sequences(task);
    let marker = if layout == Layout::Apinode { "task_id" } else { "internal_task_id" };
    let device = if layout == Layout::Apinode { "device_id" } else { "client_id" };
    let message = |set: &str| format!("UPDATE messages SET {set} WHERE id = {second}");
    let of_task = |set: &str| format!("UPDATE tasks SET {set} WHERE id = {task}");
    let late = "'2030-01-01 00:00:00+00:00'";
    let columns = format!("created_at, updated_at, project_id, project_version, data, {device}, {marker}");
    let mut all = vec![
        format!("DELETE FROM messages WHERE id = {first}"),
        format!("INSERT INTO messages (id, {columns}) SELECT id + 1000000, {columns} FROM messages WHERE id = {first}"),
        message("project_version = '1.0.1'"),
        message("project_version = NULL"),
        message("project_id = 8"),
        message(&format!("data = (SELECT data FROM messages WHERE id = {first})")),
        message("data = NULL"),
        message(&format!("{device} = NULL")),
        message(&format!("created_at = {late}")),
        message(&format!("updated_at = {late}")),
        message(&format!("deleted_at = {late}")),
        format!("UPDATE messages SET created_at = {late}, updated_at = {late} WHERE id IN ({first}, {second})"),
        format!("UPDATE messages SET id = id + 2000000 WHERE id = {first}"),
        of_task("project_id = 8"),
        of_task("message_ids = '[]'"),
        of_task(&format!("created_at = {late}, updated_at = {late}")),
        of_task(&format!("updated_at = {late}")),
        of_task(&format!("deleted_at = {late}")),
        of_task(&format!("signature = (SELECT signature FROM tasks WHERE id = {FIRST})")),
        of_task(&format!("{marker} = NULL")),
    ];
    if layout == Layout::Sprout {
        let other = format!("{device} = 'did:io:0x{}'", "e".repeat(40));
        all.extend([
            message("message_id = 'x'"),
            message(&other),
            format!("UPDATE messages SET {other} WHERE id IN ({first}, {second})"),
            of_task("signature = upper(signature)"),
            of_task("signature = NULL"),
        ]);
    }
    all
}

pub async fn every_change_of_a_row_is_named_with_its_task(store: &dyn Tables) {
    let (tasks, layout) = (store.tasks(), store.layout().unwrap());
    let output = store.open(owner());
    let count = changes(layout, FIRST).len() as u64;
    // A task for each change, and whole ones between them.
    let expected: Vec<FinalTask> = tasks(FIRST..=FIRST + 3 * count + 5);
    output.publish(&expected, None).await.unwrap();
    let expected: Vec<FinalTask> = expected.into_iter().map(|task| stored(store, task)).collect();
    let mut touched = BTreeSet::new();
    for place in 0..count {
        let task = FIRST + 3 * (place + 1);
        let sql = &changes(layout, task)[place as usize];
        store.alter(sql).await;
        assert!(touched.insert(task));
        assert_eq!(wrong(&walk(&output, 0, 50, &[]).await, &expected), touched, "{sql}");
    }
    assert_eq!(wrong(&walk(&output, 0, 3, &[]).await, &expected), touched);
}

pub async fn rows_of_no_task_are_strays(store: &dyn Tables) {
    let (tasks, layout) = (store.tasks(), store.layout().unwrap());
    let marker = if layout == Layout::Apinode { "task_id" } else { "internal_task_id" };
    let output = store.open(owner());
    output.publish(&tasks(FIRST..=30), None).await.unwrap();
    assert_eq!(strays(&output).await, Vec::<String>::new());
    store.alter("DELETE FROM tasks WHERE id = 12").await;
    let orphans: Vec<String> = sequences(12).map(|id| format!("row {id} of messages is of no task")).to_vec();
    assert_eq!(strays(&output).await, orphans);
    store.alter("INSERT INTO messages (id, project_version) VALUES (5000, 'x')").await;
    let (of_tasks, values) = match layout {
        Layout::Apinode => ("task_id, project_id, message_ids, signature", "task_id, 99, message_ids, signature"),
        Layout::Sprout => ("project_id, message_ids, signature", "project_id, message_ids, signature"),
    };
    store.alter(&format!("INSERT INTO tasks (id, {of_tasks}) SELECT 31, {values} FROM tasks WHERE id = 13")).await;
    let mut named = orphans;
    named.insert(0, "row 31 of tasks is behind the last task".to_owned());
    named.push("row 5000 of messages is of no task".to_owned());
    assert_eq!(strays(&output).await, named);
    // It stands where the next task belongs.
    store
        .alter(&format!("UPDATE lockstep_cursor SET last_task = 31; DELETE FROM messages WHERE {marker} IS NULL"))
        .await;
    assert_eq!(strays(&output).await, named[1..3]);
    let damaged = walk(&output, 31, 5, &[]).await.damaged;
    assert_eq!((damaged.len(), damaged[0].first, damaged[0].last), (1, TaskNumber(31), TaskNumber(31)));
}
