//! A libp2p peer that is set as those of W3bstream, run by Node.
//!
//! `testnet/install-w3bstream-peer.sh` installs it. Everything here panics with a reason, as a test would.

use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use crate::process::tool;

/// For anything that the peer does.
const DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks at a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A running peer. Ends with this value.
#[derive(Debug)]
pub struct Peer {
    // Ends when the last handle to it does.
    _process: Child,
    commands: ChildStdin,
    events: Arc<Mutex<Vec<Value>>>,
    address: String,
    id: String,
}

impl Peer {
    /// Starts a peer and waits until it listens. It does not listen to announcements yet.
    pub async fn start(chain_id: u64) -> Self {
        let program = tool("w3bstream-peer.js");
        assert!(program.exists(), "the peer is missing: testnet/install-w3bstream-peer.sh installs it");
        let mut command = Command::new("node");
        command.arg(program).arg(chain_id.to_string()).kill_on_drop(true);
        let process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = process.expect("node is missing: scripts/deps.sh test installs it");
        let (commands, output) = (process.stdin.take().expect("piped"), process.stdout.take().expect("piped"));
        let events = Arc::<Mutex<Vec<Value>>>::default();
        let heard = events.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let event = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            }
        });
        let mut peer = Self { _process: process, commands, events, address: String::new(), id: String::new() };
        let listening = peer.wait_for("listening", 0).await;
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        (peer.address, peer.id) = (text(&listening["addresses"][0]), text(&listening["peer"]));
        peer
    }

    /// Its multiaddress, with its id at the end.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its peer id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Listens to announcements from now on.
    pub async fn subscribe(&mut self) {
        self.tell(json!({"do": "subscribe"})).await;
    }

    /// Connects to a peer, whose multiaddress ends in its id.
    pub async fn dial(&mut self, address: &str) {
        self.tell(json!({"do": "dial", "address": address})).await;
    }

    /// Sends something to the topic of announcements.
    pub async fn publish(&mut self, data: &str) {
        self.tell(json!({"do": "publish", "data": data})).await;
    }

    /// Its connections: `peer`, `multiplexer` and `encryption` of each.
    pub async fn connections(&mut self) -> Vec<Value> {
        let seen = self.events("connections").len();
        self.tell(json!({"do": "connections"})).await;
        let answer = self.wait_for("connections", seen).await;
        answer["connections"].as_array().cloned().unwrap_or_default()
    }

    /// Whom the table has at the rendezvous: peer ids with their addresses.
    pub async fn providers(&mut self) -> Value {
        let seen = self.events("providers").len();
        self.tell(json!({"do": "providers"})).await;
        self.wait_for("providers", seen).await["providers"].clone()
    }

    /// The announcements that it has heard: `topic`, `signed`, `from`, `sequence` and `data` of each.
    pub fn messages(&self) -> Vec<Value> {
        self.events("message")
    }

    /// Who said that it listens to announcements.
    pub fn subscribers(&self) -> Vec<String> {
        let subscribed = self.events("subscription").into_iter().filter(|event| event["subscribed"] == true);
        subscribed.filter_map(|event| event["peer"].as_str().map(str::to_owned)).collect()
    }

    fn events(&self, name: &str) -> Vec<Value> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.iter().filter(|event| event["event"] == name).cloned().collect()
    }

    async fn tell(&mut self, command: Value) {
        self.commands.write_all(format!("{command}\n").as_bytes()).await.expect("the peer reads");
        self.commands.flush().await.expect("the peer reads");
    }

    /// The event of this name after the first `seen` of them.
    async fn wait_for(&self, name: &str, seen: usize) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(event) = self.events(name).into_iter().nth(seen) {
                return event;
            }
            assert!(Instant::now() < deadline, "the peer has not said {name:?} within {DEADLINE:?}");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}
