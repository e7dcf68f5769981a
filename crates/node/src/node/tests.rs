//! A whole node in which what runs beside ordering panics on purpose.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use lockstep_client::Client;
use lockstep_outputs::{Adopted, Adoption, FinalTask, OutputError, Page, Place, Receipt};
use lockstep_testkit::http::get;
use lockstep_testkit::wait::eventually;
use lockstep_types::{NetworkParams, OutputName, ProjectId, ProjectSettings, TaskId, TaskNumber};
use serde_json::Value;

use super::*;
use crate::admin::{AdminAnswer, AdminRequest, administer};
use crate::backup::BackupLocation;
use crate::config::{Config, HttpConfig, P2pConfig, PoolConfig, RaftConfig};
use crate::home::MemberOptions;

const SOON: Duration = Duration::from_secs(30);

/// Panics as often as it was told to.
#[derive(Clone, Default)]
struct Fuse(Arc<AtomicU32>);

impl Fuse {
    fn panics(&self, times: u32) {
        self.0.store(times, Ordering::SeqCst);
    }

    fn pass(&self) {
        let left = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |times| times.checked_sub(1));
        assert!(left.is_err(), "on purpose");
    }
}

/// What panics, and how often others were there.
#[derive(Clone, Default)]
struct Doubles {
    publish: Fuse,
    stored: Fuse,
    last: Fuse,
    place: Fuse,
    upkeep: Fuse,
    opened: Arc<AtomicU32>,
    upkeeps: Arc<AtomicU32>,
}

impl Doubles {
    fn means(&self) -> Means {
        let means = Means::default();
        let (open, doubles) = (means.open_output.clone(), self.clone());
        let open_output: OpenOutput = Arc::new(move |config, home, owner| {
            doubles.opened.fetch_add(1, Ordering::SeqCst);
            Ok(Arc::new(Store { inner: open(config, home, owner)?, doubles: doubles.clone() }))
        });
        let (open, doubles) = (means.open_place.clone(), self.clone());
        let open_place: OpenPlace = Arc::new(move |location| {
            doubles.place.pass();
            open(location)
        });
        let doubles = self.clone();
        let metrics_upkeep: MetricsUpkeep = Arc::new(move |handle| {
            doubles.upkeep.pass();
            handle.run_upkeep();
            doubles.upkeeps.fetch_add(1, Ordering::SeqCst);
        });
        Means { open_output, open_place, metrics_upkeep, ..means }
    }
}

/// A store whose program has faults.
struct Store {
    inner: Arc<dyn Output>,
    doubles: Doubles,
}

#[async_trait]
impl Output for Store {
    async fn publish(&self, tasks: &[FinalTask], expected_last: Option<TaskNumber>) -> Result<Receipt, OutputError> {
        self.doubles.publish.pass();
        self.inner.publish(tasks, expected_last).await
    }

    async fn skip(&self, last: TaskNumber, expected_last: Option<TaskNumber>) -> Result<(), OutputError> {
        self.inner.skip(last, expected_last).await
    }

    async fn fill(&self, tasks: &[FinalTask]) -> Result<(), OutputError> {
        self.inner.fill(tasks).await
    }

    async fn first_gap(
        &self,
        first: TaskNumber,
        last: TaskNumber,
    ) -> Result<Option<(TaskNumber, TaskNumber)>, OutputError> {
        self.inner.first_gap(first, last).await
    }

    async fn last(&self) -> Result<Option<TaskNumber>, OutputError> {
        self.doubles.last.pass();
        self.inner.last().await
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Adopted, OutputError> {
        self.inner.adopt(adoption).await
    }

    async fn read(&self, id: &TaskId) -> Result<Option<FinalTask>, OutputError> {
        self.inner.read(id).await
    }

    async fn stored(&self, first: TaskNumber, max: usize, places: &[Place]) -> Result<Page, OutputError> {
        self.doubles.stored.pass();
        self.inner.stored(first, max, places).await
    }
}

/// Makes the home of a lone node with one output, whose groups have one message.
fn make_home(path: &Path) -> Home {
    let home = Home::at(path);
    let output = "name = \"tasks\"\nscope = \"network\"\nkind = \"sqlite\"\npath = \"tasks.sqlite\"";
    let config = Config {
        http: HttpConfig::at("127.0.0.1:0".parse().unwrap()),
        p2p: P2pConfig::at("/ip4/127.0.0.1/tcp/0".into()),
        pool: PoolConfig::default(),
        limits: Default::default(),
        tls: None,
        raft: RaftConfig::default(),
        upgrade: Default::default(),
        chain: None,
        coordinator: None,
        devices: Default::default(),
        w3bstream: None,
        outputs: vec![toml::from_str(output).unwrap()],
        gateways: Vec::new(),
    };
    let options = MemberOptions {
        name: "a".into(),
        p2p: "/ip4/127.0.0.1/tcp/1".into(),
        http: "http://127.0.0.1:1".into(),
        node_key: None,
    };
    let member = home.create(&config, options, None).unwrap();
    let default_project = ProjectSettings { group_messages_max: 1, ..ProjectSettings::open() };
    let params = NetworkParams { allow_unknown_projects: true, default_project, ..NetworkParams::default() };
    let genesis = lockstep_types::Genesis::new("panics", vec![member], params).unwrap();
    home.install_genesis(&genesis).unwrap();
    home
}

/// Devices and an operator of the node.
struct Outside {
    home: Home,
    http: SocketAddr,
    client: Client,
    sent: AtomicU32,
}

impl Outside {
    /// Sends a message, which has to get its place.
    async fn order(&self) {
        let key = SigningKey::from_bytes([7; 32]).unwrap();
        let number = self.sent.fetch_add(1, Ordering::SeqCst);
        let body = lockstep_identity::sign_body(&key, ProjectId(7), "0.1", &format!("message {number}"));
        self.client.submit(body, SOON).await.unwrap();
    }

    async fn status(&self) -> Value {
        get(self.http, "/api/status").await.json()
    }

    /// Waits until the status says all of this of what ended; messages get their places meanwhile.
    async fn told(&self, wanted: &[&str]) {
        eventually("what ended is told", SOON, async || {
            self.order().await;
            let told = self.status().await["complaints"].to_string();
            if wanted.iter().all(|wanted| told.contains(wanted)) { Ok(()) } else { Err(told) }
        })
        .await;
    }

    async fn publishing_goes_on(&self) {
        eventually("tasks are published", SOON, async || {
            self.order().await;
            let output = self.status().await["outputs"][0].clone();
            let sent = self.sent.load(Ordering::SeqCst);
            let has_some = output["height"].as_u64().is_some_and(|height| height > 0);
            if output["error"].is_null() && has_some { Ok(()) } else { Err(format!("{sent} sent: {output}")) }
        })
        .await;
    }

    /// Has work done and says how it ended.
    async fn ends(&self, begin: AdminRequest, progress: AdminRequest) -> AdminAnswer {
        administer(&self.home, &begin).await.unwrap();
        eventually("it has ended", SOON, async || {
            self.order().await;
            let answer = administer(&self.home, &progress).await.unwrap();
            let ended = match &answer {
                AdminAnswer::Backup(Some(progress)) => progress.ended,
                AdminAnswer::Audit(Some(progress)) => progress.ended,
                AdminAnswer::Refill(Some(progress)) => progress.ended,
                _ => false,
            };
            if ended { Ok(answer) } else { Err(format!("{answer:?}")) }
        })
        .await
    }

    async fn backup(&self, to: &Path) -> AdminAnswer {
        let to = BackupLocation::Directory(to.to_owned());
        self.ends(AdminRequest::Backup(to), AdminRequest::BackupProgress).await
    }

    async fn audit(&self, output: &OutputName) -> AdminAnswer {
        let begin = AdminRequest::Audit { output: output.clone(), from: None };
        self.ends(begin, AdminRequest::AuditProgress { output: output.clone() }).await
    }

    async fn refill(&self, output: &OutputName, from: &Path) -> AdminAnswer {
        let from = BackupLocation::Directory(from.to_owned());
        self.ends(AdminRequest::Refill { output: output.clone(), from }, AdminRequest::RefillProgress).await
    }
}

fn error_of(answer: AdminAnswer) -> Option<String> {
    match answer {
        AdminAnswer::Backup(Some(progress)) => progress.error,
        AdminAnswer::Audit(Some(progress)) => progress.error,
        AdminAnswer::Refill(Some(progress)) => progress.error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_panics_beside_ordering_is_told_and_begins_again_while_messages_are_ordered() {
    let directory = tempfile::tempdir().unwrap();
    let (home, doubles) = (make_home(&directory.path().join("home")), Doubles::default());
    doubles.publish.panics(2);
    doubles.upkeep.panics(1);
    let node = Node::start_with(&home, doubles.means()).await.unwrap();
    let (http, stop) = (node.http(), CancellationToken::new());
    let running = tokio::spawn(node.run(stop.clone()));
    let client = Client::new(vec![format!("http://{http}")]).unwrap();
    let outside = Outside { home, http, client, sent: AtomicU32::new(0) };

    // The publisher and the metrics: while it rests the output says why it does not get on.
    eventually("the output says so", SOON, async || {
        outside.order().await;
        let output = outside.status().await["outputs"][0].clone();
        let error = output["error"].as_str().unwrap_or_default();
        if error.contains("broke off") && error.contains("it panicked: on purpose") {
            Ok(())
        } else {
            Err(output.to_string())
        }
    })
    .await;
    outside
        .told(&["the publisher of output tasks ended 2 times", "the metrics ended once", "it panicked: on purpose"])
        .await;
    outside.publishing_goes_on().await;
    // One for the publisher and one for gaps, and one for each new start.
    assert_eq!(doubles.opened.load(Ordering::SeqCst), 4);
    eventually("metrics are looked after", SOON, async || {
        if doubles.upkeeps.load(Ordering::SeqCst) > 0 { Ok(()) } else { Err("not yet".into()) }
    })
    .await;

    // A backup, an audit and a refill: the first of each panics, the second comes to its end.
    let (output, backups): (OutputName, _) = ("tasks".parse().unwrap(), directory.path().join("backups"));
    doubles.place.panics(1);
    assert_eq!(error_of(outside.backup(&backups).await).as_deref(), Some("it panicked: on purpose"));
    match outside.backup(&backups).await {
        AdminAnswer::Backup(Some(progress)) => assert!(progress.made.is_some() && progress.error.is_none()),
        other => panic!("{other:?}"),
    }
    doubles.stored.panics(1);
    assert_eq!(error_of(outside.audit(&output).await).as_deref(), Some("it panicked: on purpose"));
    match outside.audit(&output).await {
        AdminAnswer::Audit(Some(progress)) => {
            assert!(progress.error.is_none() && progress.findings.total() == 0 && progress.good > 0, "{progress:?}");
        }
        other => panic!("{other:?}"),
    }
    doubles.last.panics(1);
    assert_eq!(error_of(outside.refill(&output, &backups).await).as_deref(), Some("it panicked: on purpose"));
    assert_eq!(error_of(outside.refill(&output, &backups).await), None);
    outside
        .told(&["a backup ended once", "an audit of output tasks ended once", "a refill of output tasks ended once"])
        .await;
    let metrics = get(http, "/metrics").await.text();
    for (part, times) in [("the publisher of output tasks", 2), ("the metrics", 1), ("a backup", 1)] {
        let line = format!("lockstep_parts_ended_total{{part=\"{part}\"}} {times}");
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
    assert_eq!(get(http, "/readyz").await.status, 200);
    stop.cancel();
    running.await.unwrap().unwrap();
}
