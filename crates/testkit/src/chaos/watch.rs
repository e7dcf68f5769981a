//! Looks at a network while it runs: where each node is, and what a reader of its feed is told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_api::views::{StatusView, TaskView};
use lockstep_client::{Client, ClientOptions, Follow};
use lockstep_types::NodeId;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::check::from_base64;
use crate::http;
use crate::order::{At, Row, Sighting};
use crate::sim::Record;

/// Between two looks at a node.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Longest wait for a node's answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// How often each node was started, by its place.
pub type Lives = Arc<Vec<AtomicU64>>;

/// Watchers at work. They end with the value.
pub struct Watch {
    rows: Arc<Mutex<Vec<Row>>>,
    _tasks: JoinSet<()>,
}

impl Watch {
    /// Starts a watcher of each node, and a reader that follows the tasks of whichever node answers, from the first on.
    ///
    /// # Panics
    /// When a node's address is not one.
    pub fn start(nodes: Vec<(NodeId, SocketAddr)>, lives: &Lives, record: &Record) -> Self {
        let mut tasks = JoinSet::new();
        for (place, (node, address)) in nodes.iter().copied().enumerate() {
            tasks.spawn(look(node, address, place, Arc::clone(lives), record.clone()));
        }
        let rows = Arc::default();
        let urls = nodes.iter().map(|(_, address)| format!("http://{address}")).collect();
        tasks.spawn(follow(urls, Arc::clone(&rows), record.clone()));
        Self { rows, _tasks: tasks }
    }

    /// What the reader was told so far, in that order.
    pub fn rows(&self) -> Vec<Row> {
        self.rows.lock().clone()
    }

    /// How many tasks the reader was told of.
    pub fn read(&self) -> usize {
        self.rows.lock().len()
    }
}

async fn look(node: NodeId, address: SocketAddr, place: usize, lives: Lives, record: Record) {
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let life = lives[place].load(Ordering::SeqCst);
        let Ok(Ok(answer)) = timeout(ANSWER_MAX, http::request(address, "GET", "/api/status", b"")).await else {
            continue;
        };
        let Ok(view) = serde_json::from_slice::<StatusView>(&answer.body) else { continue };
        let head = view.head;
        // An answer of a life that is over says nothing about the next one.
        if lives[place].load(Ordering::SeqCst) == life {
            let (height, hash, final_height) = (head.height, head.hash, head.final_height);
            record.see(Sighting { at: record.now(), node, life, height, hash, final_height });
        }
    }
}

async fn follow(urls: Vec<String>, rows: Arc<Mutex<Vec<Row>>>, record: Record) {
    let client = Client::with_options(urls, ClientOptions::default()).expect("urls of this machine");
    let mut feed = client.follow(Follow::default());
    loop {
        match feed.next().await {
            Ok(followed) => match row(&followed.json, record.now()) {
                Some(row) => rows.lock().push(row),
                None => record.trouble(crate::order::Promise::Output, format!("a feed said: {}", followed.json)),
            },
            Err(error) => {
                record.trouble(crate::order::Promise::Progress, format!("a reader of the feed was refused: {error}"));
                return;
            }
        }
    }
}

fn row(json: &str, at: At) -> Option<Row> {
    let task: TaskView = serde_json::from_str(json).ok()?;
    let message = |message: &lockstep_api::views::TaskMessageView| {
        Some((message.sequence, message.data.as_deref().and_then(from_base64)?))
    };
    Some(Row {
        at,
        number: task.number,
        id: task.id,
        messages: task.messages.iter().map(message).collect::<Option<_>>()?,
    })
}
