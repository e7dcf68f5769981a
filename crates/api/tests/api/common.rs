//! A server over fake ports, and a client of plain sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use lockstep_api::views::*;
use lockstep_api::{
    Accepted, Bound, Feed, Options, OrderProblem, Ports, Read, ReadError, Registry, Sealed, SealedError, Sender,
    Server, Submit, SubmitError, TasksQuery, Viewer,
};
use lockstep_identity::{DeviceRequest, Did, RequestError, TaskRequest};
use lockstep_types::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Orders whatever authenticates; the payload can ask for trouble.
#[derive(Default)]
pub struct Fake {
    pub sequence: AtomicU64,
    pub not_ready: bool,
    /// How often somebody waited for a confirmation.
    pub confirmations: Arc<AtomicU64>,
    pub allow_unsigned: bool,
    /// Number of the newest final task.
    pub final_tasks: tokio::sync::watch::Sender<u64>,
}

#[async_trait]
impl Submit for Fake {
    async fn submit(&self, request: DeviceRequest) -> Result<Accepted, SubmitError> {
        let verified = match request.signature {
            Some(_) => request.authenticate().map_err(|e: RequestError| SubmitError::Unauthenticated(e.to_string()))?,
            None if self.allow_unsigned => request.vouch(&SigningKey::from_bytes([6; 32]).unwrap()),
            None => return Err(SubmitError::Forbidden("this network takes signed messages only".into())),
        };
        let content_id = verified.content_id();
        match &verified.message().data[..] {
            b"busy" => return Err(SubmitError::Busy { retry_after_ms: 1500 }),
            b"unavailable" => return Err(SubmitError::Unavailable { content_id, retry_after_ms: 10 }),
            b"fast" => return Err(SubmitError::TooFast { sender: Sender::Device, retry_after_ms: 250 }),
            b"stopping" => return Err(SubmitError::Stopping),
            b"forbidden" => return Err(SubmitError::Forbidden("project 7 is not known".into())),
            b"large" => return Err(SubmitError::TooLarge { max: 4 }),
            b"slow" => tokio::time::sleep(Duration::from_millis(400)).await,
            b"never" => std::future::pending().await,
            _ => {}
        }
        let sequence = Sequence(self.sequence.fetch_add(1, Ordering::SeqCst) + 1);
        Ok(Accepted {
            message_id: MessageId(content_id.0),
            task_id: sequence.0.is_multiple_of(2).then_some(TaskId([7; 32])),
            sequence,
            height: Height(sequence.0),
            duplicate: false,
        })
    }

    async fn submit_task(&self, request: TaskRequest) -> Result<(TaskId, Accepted), SubmitError> {
        if request.nonce == 2 {
            return Err(SubmitError::NonceUsed("used".into()));
        }
        let (message_id, task_id) = (MessageId([1; 32]), Some(TaskId([7; 32])));
        let accepted = Accepted { message_id, task_id, sequence: Sequence(1), height: Height(1), duplicate: false };
        Ok((TaskId([9; 32]), accepted))
    }
}

pub fn batch(height: Height) -> BatchView {
    BatchView {
        height,
        hash: BatchHash([1; 32]),
        parent: BatchHash::ZERO,
        time_ms: TimeMs(1_709_210_096_789),
        first_sequence: Sequence(height.0),
        messages: vec![BatchMessageView {
            sequence: Sequence(height.0),
            id: MessageId([2; 32]),
            project_id: ProjectId(7),
            project_version: "1".into(),
            device: None,
        }],
        tasks: vec![TaskId([7; 32])],
    }
}

const HEAD: u64 = 250;

#[async_trait]
impl Sealed for Fake {
    fn did_document(&self) -> Option<Arc<str>> {
        Some("{}".into())
    }

    async fn issue_token(&self, device: Did) -> Result<String, SealedError> {
        match device.address() {
            Address([1, ..]) => Ok("sealed token".into()),
            _ => Err(SealedError::Denied("the device is not known".into())),
        }
    }

    async fn submit(&self, token: &str, envelope: bytes::Bytes) -> Result<String, SealedError> {
        let text = |text: &str| text.to_owned();
        match (token, &envelope[..]) {
            ("good", b"altered") => Err(SealedError::Unreadable(text("altered"))),
            ("good", b"not permitted") => Err(SealedError::Denied(text("not permitted"))),
            ("good", b"refused by the log") => Err(SubmitError::Forbidden(text("not permitted")).into()),
            ("good", envelope) => Ok(format!("sealed answer to {}", String::from_utf8_lossy(envelope))),
            _ => Err(SealedError::Token(text("no token of this server"))),
        }
    }

    async fn states(&self, token: &str, message: &str) -> Result<String, SealedError> {
        if token == "good" { Ok(format!("states of {message}")) } else { Err(SealedError::Token("no".into())) }
    }
}

#[async_trait]
impl Registry for Fake {
    async fn order(&self, order: bytes::Bytes) -> Result<(), OrderProblem> {
        match &order[..] {
            b"good" => Ok(()),
            b"stale" => Err(OrderProblem::Refused("stale".into())),
            _ => Err(OrderProblem::Malformed("not an order".into())),
        }
    }

    fn projects(&self) -> ProjectsView {
        let projects = vec![project(ProjectId(7))];
        ProjectsView { network_id: NetworkId([1; 32]), epoch: Epoch(0), projects }
    }

    async fn project(&self, id: ProjectId) -> Option<ProjectView> {
        (id == ProjectId(7)).then(|| project(id))
    }

    async fn devices(&self, _: ProjectId, _: Address, _: usize) -> Result<DevicesView, ReadError> {
        Ok(DevicesView { devices: Vec::new(), next: None })
    }
}

/// The payload of every message, for whoever may see it.
fn payload(viewer: Viewer) -> Option<String> {
    (viewer == Viewer::with_token("reader")).then(|| to_base64(b"21.5"))
}

fn receipts(number: u64) -> Vec<ReceiptView> {
    let tasks = (TaskNumber(number), TaskNumber(number));
    let (output, commitment, height) = ("celestia".parse().unwrap(), Some("0x01".to_owned()), Some(Height(9)));
    let blob = ReceiptView { output, locator: "celestia:9".into(), commitment, height, stage: Stage::Included, tasks };
    let (output, locator) = ("db".parse().unwrap(), "postgres:public".into());
    vec![blob, ReceiptView { output, locator, commitment: None, height: None, stage: Stage::Final, tasks }]
}

fn task(id: TaskId, number: u64, viewer: Viewer) -> TaskView {
    TaskView {
        id,
        number: TaskNumber(number),
        project_id: ProjectId(7),
        project_version: "1".into(),
        device: Some(Address([3; 20])),
        messages: vec![TaskMessageView { sequence: Sequence(5), id: MessageId([2; 32]), data: payload(viewer) }],
        status: Progress::Packed,
        signature: None,
        time_ms: TimeMs(1_709_210_096_789),
        height: Height(5),
        chain: vec![],
        receipts: receipts(number),
        ruled: RuledView::default(),
    }
}

/// Tasks 1 to `final_tasks`; those up to 2 are forgotten.
#[async_trait]
impl Feed for Fake {
    async fn tasks(&self, query: TasksQuery) -> Result<TasksView, ReadError> {
        let newest = *self.final_tasks.borrow();
        let after = query.after.unwrap_or_default().0;
        if (1..2).contains(&after) {
            return Err(ReadError::Pruned { first: Height(3) });
        }
        let numbers = (after.max(2).saturating_add(1)..=newest).take(query.limit.min(10));
        let last = numbers.clone().last().map(TaskNumber);
        // Every third is of the project that is asked for, or all.
        let wanted = numbers.filter(|n| query.project.is_none_or(|_| n % 3 == 0));
        let tasks = wanted.map(|n| task(TaskId([n as u8; 32]), n, query.viewer)).collect();
        Ok(TasksView { tasks, next: last.or(query.after), newest: (newest > 0).then_some(TaskNumber(newest)) })
    }

    async fn wait_for_task(&self, after: Option<TaskNumber>) {
        let mut newest = self.final_tasks.subscribe();
        newest.wait_for(|newest| *newest > after.map_or(2, |after| after.0)).await.unwrap();
    }

    async fn final_batches(&self, from: Height, viewer: Viewer) -> Result<ExportPage, ReadError> {
        self.export(from, viewer).await
    }

    async fn wait_for_final(&self, _height: Height) {
        std::future::pending().await
    }
}

#[async_trait]
impl Read for Fake {
    async fn task_of_alias(&self, alias: TaskId) -> Result<Option<TaskId>, ReadError> {
        Ok((alias == TaskId([9; 32])).then_some(TaskId([7; 32])))
    }

    async fn status(&self) -> StatusView {
        StatusView {
            network: "test".into(),
            epoch: Epoch(0),
            node: NodeView { id: NodeId(1), peer_id: "16Uiu2".into(), address: Address([1; 20]) },
            role: Role::Leader,
            term: 3,
            leader: Some(LeaderView { id: NodeId(1), http: "http://127.0.0.1:9000".into() }),
            head: HeadView {
                height: Height(HEAD),
                hash: BatchHash([1; 32]),
                sequence: Sequence(HEAD),
                final_height: Height(HEAD),
                oldest_height: Height(0),
            },
            chain: None,
            w3bstream: None,
            effects: Digest([0; 32]),
            complaints: vec![],
            rules_version: 2,
            fetching: None,
            sending: vec![],
            peers: vec![],
            outputs: vec![OutputView {
                name: "files".into(),
                height: Height(1),
                lag: 0,
                error: None,
                gaps: vec![],
                refused: 2,
                paused: true,
                removed: true,
            }],
            held_back: Some(HeldBackView { output: "files".into(), next_task: TaskNumber(7), height: Height(2) }),
            version: "0.1.0".into(),
        }
    }

    fn members(&self) -> MembersView {
        MembersView {
            network_id: NetworkId([1; 32]),
            epoch: Epoch(0),
            members_hash: "0x".into(),
            changes: 0,
            members: vec![],
            pending: None,
            proposals: vec![],
            requests: vec![],
        }
    }

    async fn batches(&self, from: Height, limit: usize) -> Result<BatchesView, ReadError> {
        if from == Height(13) {
            return Err(ReadError::Pruned { first: Height(14) });
        }
        let heights = (from.0..=HEAD).take(limit);
        Ok(BatchesView { batches: heights.map(|h| batch(Height(h))).collect(), head: Height(HEAD) })
    }

    async fn batch(&self, height: Height) -> Result<Option<BatchView>, ReadError> {
        Ok((1..=HEAD).contains(&height.0).then(|| batch(height)))
    }

    async fn confirm(&self) -> Result<(), ReadError> {
        if self.not_ready {
            return Err(ReadError::Unavailable { reason: "no majority".into(), retry_after_ms: 1_000 });
        }
        self.confirmations.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn message(&self, id: MessageId, viewer: Viewer) -> Result<Option<MessageView>, ReadError> {
        Ok((id == MessageId([2; 32])).then(|| MessageView {
            id,
            status: Progress::Packed,
            sequence: Some(Sequence(5)),
            height: Some(Height(5)),
            index: Some(0),
            task_id: None,
            project_id: ProjectId(7),
            project_version: "1".into(),
            device: None,
            data: payload(viewer),
            signature: None,
            evidence: EvidenceView::Ingress { node: Address([1; 20]) },
            time_ms: Some(TimeMs(5)),
            flags: vec![],
        }))
    }

    async fn task(&self, id: TaskId, viewer: Viewer) -> Result<Option<TaskView>, ReadError> {
        Ok((id == TaskId([7; 32])).then(|| task(id, 9, viewer)))
    }

    async fn proof(&self, id: MessageId) -> Result<Option<Proof>, ReadError> {
        match id.0[0] {
            3 => Err(ReadError::NotFinal { retry_after_ms: 700 }),
            4 => Err(ReadError::Pruned { first: Height(14) }),
            _ => Ok(None),
        }
    }

    async fn boundaries(&self, _from: Height, _limit: usize) -> Result<BoundariesView, ReadError> {
        Ok(BoundariesView { boundaries: Vec::new() })
    }

    async fn export(&self, from: Height, _viewer: Viewer) -> Result<ExportPage, ReadError> {
        if from == Height(13) {
            return Err(ReadError::Pruned { first: Height(14) });
        }
        Ok(ExportPage {
            network: NetworkId([9; 32]),
            epoch: Epoch(0),
            oldest_height: Height(14),
            oldest_sequence: Sequence(14),
            head: Height(HEAD),
            final_height: Height(HEAD),
            batches: Vec::new(),
            certificates: Vec::new(),
        })
    }

    async fn wait_for_sequence(&self, sequence: Sequence, timeout: Duration) -> bool {
        if sequence.0 > HEAD {
            tokio::time::sleep(timeout).await;
        }
        sequence.0 <= HEAD
    }

    fn ready(&self) -> Result<(), String> {
        if self.not_ready { Err("catching up: 5 batches behind".into()) } else { Ok(()) }
    }

    async fn metrics(&self) -> String {
        "lockstep_up 1\n".into()
    }
}

fn project(id: ProjectId) -> ProjectView {
    ProjectView { id, owner: None, orders: 0, settings: ProjectSettings::default(), rules: vec![], figures: None }
}

pub struct Running {
    pub addr: SocketAddr,
    pub stop: CancellationToken,
    pub served: JoinHandle<()>,
}

pub fn start_with(options: Options, fake: Fake) -> Running {
    run(Server::bind(options, "127.0.0.1:0".parse().unwrap()).unwrap(), fake)
}

pub fn run(bound: Bound, fake: Fake) -> Running {
    let fake = Arc::new(fake);
    let (addr, stop) = (bound.local_addr(), CancellationToken::new());
    let ports = Ports {
        submit: fake.clone(),
        read: fake.clone(),
        sealed: fake.clone(),
        registry: fake.clone(),
        feed: fake,
        prover: None,
    };
    Running { addr, stop: stop.clone(), served: tokio::spawn(bound.run(ports, stop)) }
}

pub fn start(options: Options) -> Running {
    start_with(options, Fake::default())
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let line = self.head.lines().find(|l| l.to_lowercase().starts_with(&format!("{name}:")))?;
        Some(line.split_once(':')?.1.trim())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// Every error has the same shape.
    pub fn assert_problem(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        let body = self.json();
        assert_eq!(body["code"], code);
        assert!(body["error"].as_str().is_some_and(|e| e.len() > 5), "{body}");
    }
}

pub async fn read_answer<S: AsyncRead + Unpin>(stream: &mut S) -> Answer {
    let mut all = Vec::new();
    let end = loop {
        if let Some(at) = all.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        let mut chunk = [0; 4096];
        let n = stream.read(&mut chunk).await.unwrap();
        assert!(n > 0, "connection closed without an answer");
        all.extend_from_slice(&chunk[..n]);
    };
    let head = String::from_utf8(all[..end].to_vec()).unwrap();
    let status = head[9..12].parse().unwrap();
    let mut answer = Answer { status, head, body: all[end..].to_vec() };
    let length: usize = answer.header("content-length").map_or(0, |l| l.parse().unwrap());
    while answer.body.len() < length {
        assert!(stream.read_buf(&mut answer.body).await.unwrap() > 0, "body cut off");
    }
    answer
}

pub async fn exchange(addr: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request).await.unwrap();
    read_answer(&mut stream).await
}

pub fn post(body: &[u8], headers: &str) -> Vec<u8> {
    post_to("/message", body, headers)
}

pub fn post_to(path: &str, body: &[u8], headers: &str) -> Vec<u8> {
    let request = format!("POST {path} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {}\r\n\r\n", body.len());
    let mut request = request.into_bytes();
    request.extend_from_slice(body);
    request
}

pub async fn get(addr: SocketAddr, path: &str) -> Answer {
    exchange(addr, format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await
}

pub fn unsigned(data: &str) -> String {
    serde_json::json!({ "projectID": 7, "projectVersion": "1", "data": data }).to_string()
}

pub fn signed(data: &str) -> String {
    let key = SigningKey::from_bytes([5; 32]).unwrap();
    lockstep_identity::sign_body(&key, ProjectId(7), "1", data)
}

/// Waits until the other side closes; false when it does not in time.
pub async fn closes_within<S: AsyncRead + Unpin>(stream: &mut S, timeout: Duration) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(timeout, stream.read_to_end(&mut rest)).await.is_ok()
}
