//! What W3bstream's coordinator, or a prover with the same interface, says became of a task. It is a stranger's word:
//! asked for when somebody asks, bounded, and nothing depends on it.

use std::collections::HashMap;
use std::time::Instant;

use async_trait::async_trait;
use lockstep_api::{ProverState, ProverStates};
use lockstep_chain::{Endpoint, Service, ServiceError};
use lockstep_types::{ProjectId, TaskNumber};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::Semaphore;

use crate::chain::limits::{
    COORDINATOR_ANSWER_BYTES_MAX, COORDINATOR_CACHE_MAX, COORDINATOR_CACHE_TTL, COORDINATOR_QUESTIONS_MAX,
    COORDINATOR_STATES_MAX, COORDINATOR_TIMEOUT,
};
use crate::config::CoordinatorConfig;
use crate::error::NodeError;
use crate::home::Home;

/// What a coordinator may add; what it says beside that is ours to say.
const WORDS: [&str; 4] = ["dispatched", "proved", "outputted", "failed"];
/// Longest time in RFC 3339, with nanoseconds and an offset.
const TIME_BYTES_MAX: usize = 35;

fn endpoint(config: &CoordinatorConfig, home: &Home) -> Result<Endpoint, NodeError> {
    let bad = |setting: &str, e: &dyn std::fmt::Display| {
        NodeError::Config(format!("config.toml: coordinator.{setting}: {e}"))
    };
    if let Some(url) = &config.url {
        return url.parse().map_err(|e| bad("url", &e));
    }
    let file = home.path().join(config.url_file.as_deref().unwrap_or("".as_ref()));
    let text = std::fs::read_to_string(&file).map_err(|e| bad("url_file", &format!("{}: {e}", file.display())))?;
    text.parse().map_err(|e| bad("url_file", &e))
}

/// The answer of `GET /task/<projectID>/<taskID>`. Go writes `null` for no states.
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(rename = "projectID")]
    project_id: Option<u64>,
    #[serde(rename = "taskID")]
    task_id: Option<u64>,
    states: Option<Vec<StateLog>>,
}

#[derive(Debug, Deserialize)]
struct StateLog {
    state: String,
    time: String,
    #[serde(default)]
    comment: String,
    #[serde(default)]
    result: String,
}

/// Reads an answer about a task; `None` where it is none, or is about another task.
fn read(answer: &[u8], project: ProjectId, task: TaskNumber) -> Option<Vec<ProverState>> {
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    if answer.project_id.is_some_and(|id| id != project.0) || answer.task_id.is_some_and(|id| id != task.0) {
        return None;
    }
    let known = |log: &StateLog| WORDS.contains(&log.state.as_str()) && is_time(&log.time);
    let states = answer.states.unwrap_or_default().into_iter().filter(known).take(COORDINATOR_STATES_MAX);
    Some(states.map(|StateLog { state, time, comment, result }| ProverState { state, time, comment, result }).collect())
}

/// Whether a text can be a time in RFC 3339, which readers expect there.
fn is_time(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_digit() || b"-:.+TZ".contains(&byte);
    (20..=TIME_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed) && text.as_bytes()[10] == b'T'
}

type Key = (ProjectId, TaskNumber);

/// What was said lately.
#[derive(Debug, Default)]
struct Kept {
    states: HashMap<Key, (Instant, Vec<ProverState>)>,
    /// After a failure nobody asks until then, so that a coordinator that is away delays one answer and not all.
    quiet_until: Option<Instant>,
}

impl Kept {
    /// What is known now without asking; `None`: ask.
    fn get(&self, key: &Key, now: Instant) -> Option<Vec<ProverState>> {
        match self.states.get(key) {
            Some((until, states)) if *until > now => Some(states.clone()),
            _ => self.quiet_until.is_some_and(|until| until > now).then(Vec::new),
        }
    }

    fn keep(&mut self, key: Key, states: Vec<ProverState>, now: Instant) {
        if self.states.len() >= COORDINATOR_CACHE_MAX {
            self.states.retain(|_, (until, _)| *until > now);
        }
        if self.states.len() < COORDINATOR_CACHE_MAX {
            self.states.insert(key, (now + COORDINATOR_CACHE_TTL, states));
        }
    }
}

/// Asks the coordinator.
pub(crate) struct Coordinator {
    service: Service,
    questions: Semaphore,
    kept: Mutex<Kept>,
}

impl Coordinator {
    /// Asks nobody yet; `None` where the configuration names no coordinator.
    ///
    /// # Errors
    /// If its URL cannot be used.
    pub fn open(home: &Home, config: Option<&CoordinatorConfig>) -> Result<Option<Self>, NodeError> {
        let Some(config) = config else { return Ok(None) };
        Ok(Some(Self::at(endpoint(config, home)?)?))
    }

    fn at(endpoint: Endpoint) -> Result<Self, NodeError> {
        let service = Service::new(endpoint, COORDINATOR_TIMEOUT, COORDINATOR_ANSWER_BYTES_MAX)
            .map_err(|e| NodeError::Config(format!("config.toml: coordinator: {e}")))?;
        Ok(Self { service, questions: Semaphore::new(COORDINATOR_QUESTIONS_MAX), kept: Mutex::default() })
    }

    async fn ask(&self, project: ProjectId, task: TaskNumber) -> Result<Option<Vec<ProverState>>, ServiceError> {
        // Connecting has a longer time of its own, so that this is what bounds a question.
        let (project_text, task_text) = (project.to_string(), task.0.to_string());
        let segments = ["task", &project_text, &task_text];
        let asked = tokio::time::timeout(COORDINATOR_TIMEOUT, self.service.get(&segments)).await;
        Ok(read(&asked.unwrap_or(Err(ServiceError::Timeout))?, project, task))
    }
}

#[async_trait]
impl ProverStates for Coordinator {
    async fn states(&self, project: ProjectId, task: TaskNumber) -> Vec<ProverState> {
        let key = (project, task);
        if let Some(known) = self.kept.lock().get(&key, Instant::now()) {
            return known;
        }
        let Ok(_place) = self.questions.try_acquire() else { return Vec::new() };
        let (asked, now) = (self.ask(project, task).await, Instant::now());
        let mut kept = self.kept.lock();
        match asked {
            Ok(states) => {
                if states.is_none() {
                    tracing::debug!(coordinator = %self.service.base(), %project, "an answer that cannot be read");
                }
                kept.quiet_until = None;
                kept.keep(key, states.clone().unwrap_or_default(), now);
                states.unwrap_or_default()
            }
            Err(error) => {
                tracing::debug!(coordinator = %self.service.base(), %error, "the coordinator gives no states");
                kept.quiet_until = Some(now + COORDINATOR_CACHE_TTL);
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const GOOD: &str = r#"{"taskID":9,"projectID":7,"states":[
        {"state":"packed","time":"2024-05-01T10:00:00Z","comment":"","result":""},
        {"state":"dispatched","time":"2024-05-01T10:00:01.123456789+08:00","comment":"","result":""},
        {"state":"proved","time":"yesterday","comment":"","result":""},
        {"state":"failed","time":"2024-05-01T10:00:02Z","comment":"no \"proof\"","result":"r"}]}"#;

    fn words(states: &[ProverState]) -> Vec<&str> {
        states.iter().map(|state| state.state.as_str()).collect()
    }

    #[test]
    fn only_known_states_with_a_time_are_taken_and_only_of_the_task_that_was_asked_for() {
        let read = |text: &str| read(text.as_bytes(), ProjectId(7), TaskNumber(9));
        let states = read(GOOD).unwrap();
        assert_eq!(words(&states), ["dispatched", "failed"]);
        assert_eq!((&states[1].comment[..], &states[1].result[..]), ("no \"proof\"", "r"));
        assert_eq!(read(r#"{"taskID":9,"projectID":7,"states":null}"#), Some(vec![]));
        assert_eq!(read(r#"{"states":[{"state":"proved","time":"2024-05-01T10:00:02Z"}]}"#).map(|s| s.len()), Some(1));
        let many = format!(
            r#"{{"states":[{}]}}"#,
            [r#"{"state":"proved","time":"2024-05-01T10:00:02Z"}"#; COORDINATOR_STATES_MAX + 1].join(",")
        );
        assert_eq!(read(&many).map(|s| s.len()), Some(COORDINATOR_STATES_MAX));
        for other in [r#"{"taskID":8,"states":[]}"#, r#"{"projectID":8}"#, "[]", "null", "", r#"{"states":7}"#] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    /// Answers every connection with `answer`, and counts them; with nothing it stays silent.
    async fn serve(answer: Option<String>) -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counter = asked.clone();
        tokio::spawn(async move {
            let mut silent = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                let mut head = [0; 4096];
                let read = stream.read(&mut head).await.unwrap();
                let wanted = b"GET /base/task/7/9 HTTP/1.1\r\n";
                assert!(head[..read].starts_with(wanted), "{}", String::from_utf8_lossy(&head[..read]));
                match &answer {
                    Some(answer) => drop(stream.write_all(answer.as_bytes()).await),
                    None => silent.push(stream),
                }
            }
        });
        (address, asked)
    }

    fn ok(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    async fn ask(coordinator: &Coordinator) -> Vec<ProverState> {
        coordinator.states(ProjectId(7), TaskNumber(9)).await
    }

    fn at(address: SocketAddr) -> Coordinator {
        Coordinator::at(format!("http://{address}/base/").parse().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn states_come_once_for_many_who_ask() {
        let (address, asked) = serve(Some(ok(GOOD))).await;
        let coordinator = at(address);
        for _ in 0..20 {
            assert_eq!(words(&ask(&coordinator).await), ["dispatched", "failed"]);
        }
        assert!(asked.load(Ordering::SeqCst) <= 3, "{asked:?} questions");
    }

    #[tokio::test]
    async fn whatever_goes_wrong_gives_no_states_in_bounded_time() {
        let huge = ok(&format!("{{\"states\":[],\"x\":\"{}\"}}", "x".repeat(COORDINATOR_ANSWER_BYTES_MAX)));
        let (elsewhere, followed) = serve(Some(ok(GOOD))).await;
        let redirect = format!(
            "HTTP/1.1 302 Found\r\nlocation: http://{elsewhere}/base/task/7/9\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        );
        let broken = "HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{".to_owned();
        for answer in [Some(huge), Some(redirect), Some(ok("<html>")), Some(broken), Some("SSH-2.0".into()), None] {
            let (address, _) = serve(answer.clone()).await;
            let started = Instant::now();
            assert_eq!(ask(&at(address)).await, [], "{answer:?}");
            assert!(started.elapsed() < COORDINATOR_TIMEOUT * 5, "{:?}", started.elapsed());
        }
        assert_eq!(followed.load(Ordering::SeqCst), 0, "no redirect is followed");
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let coordinator = at(nobody);
        assert_eq!(ask(&coordinator).await, []);
        // While it is away the next answers do not wait for it.
        assert_eq!(coordinator.kept.lock().get(&(ProjectId(1), TaskNumber(1)), Instant::now()), Some(vec![]));
    }

    #[test]
    fn what_is_kept_is_bounded_and_short_lived() {
        let (mut kept, now) = (Kept::default(), Instant::now());
        for n in 0..2 * COORDINATOR_CACHE_MAX as u64 {
            kept.keep((ProjectId(1), TaskNumber(n)), Vec::new(), now);
        }
        assert_eq!(kept.states.len(), COORDINATOR_CACHE_MAX);
        let later = now + Duration::from_millis(1) + COORDINATOR_CACHE_TTL;
        assert_eq!(kept.get(&(ProjectId(1), TaskNumber(1)), now), Some(vec![]));
        assert_eq!(kept.get(&(ProjectId(1), TaskNumber(1)), later), None);
        kept.keep((ProjectId(2), TaskNumber(1)), Vec::new(), later);
        assert_eq!(kept.states.len(), 1);
    }
}
