//! Readers of the feed: each follows the final tasks of one node, and goes on at another one where it stopped.

use std::time::Duration;

use lockstep_api::views::{TaskView, TasksView, from_base64};
use lockstep_api::{TasksQuery, Viewer};
use lockstep_types::TaskNumber;
use tokio::time::sleep;

use super::bugs::Bug;
use super::changes::within;
use super::world::World;
use crate::order::{FeedPage, SeenTask};
use crate::random::Random;

/// Most tasks of a page.
const LIMIT_MAX: usize = 40;
/// Of so many pages one is read at another node than the one before.
const MOVES_ONE_OF: usize = 4;

fn seen(task: TaskView) -> SeenTask {
    let payload = |data: Option<String>| data.as_deref().and_then(from_base64).unwrap_or_default();
    (task.number, task.id, task.messages.into_iter().map(|m| (m.sequence, payload(m.data))).collect())
}

/// Reads until the run is over.
pub(super) async fn run(world: World, mut random: Random, reader: usize) {
    let (mut after, mut at) = (None, None);
    loop {
        let moves = at.is_none() || random.below(MOVES_ONE_OF) == 0;
        if moves {
            let nodes = world.nodes();
            at = Some(nodes[random.below(nodes.len())]);
        }
        let limit = 1 + random.below(LIMIT_MAX);
        let Some((node, running)) = at.and_then(|node| Some((node, world.running(node)?))) else {
            at = None;
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let goes_back = moves && world.scenario.bugs.has(Bug::FeedGoesBack);
        let asked = if goes_back { after.map(|last: TaskNumber| TaskNumber(last.0.saturating_sub(1))) } else { after };
        let query = TasksQuery { project: None, after: asked, from_height: None, limit, viewer: Viewer::default() };
        let feed = running.doors.feed();
        let read = within(&running, async move {
            feed.wait_for_task(asked).await;
            feed.tasks(query).await
        });
        match read.await {
            Some(Ok(TasksView { tasks, next, .. })) => {
                after = next.or(after);
                let page = FeedPage { at: world.record.now(), node, tasks: tasks.into_iter().map(seen).collect() };
                world.record.read(reader, page);
            }
            // It is down, or has nothing new: perhaps another one has.
            Some(Err(_)) | None => at = None,
        }
        sleep(Duration::from_millis(random.number() % 500)).await;
    }
}
