//! Endpoints that misbehave: what the reader says of them, and that it keeps their URL to itself.

use std::time::Duration;

use crate::support::{Reply, Server};
use lockstep_chain::{ANSWER_BYTES_MAX, ChainError, ChainReader, ChainSource, LOGS_BYTES_MAX, LOGS_MAX, Rpc};
use lockstep_types::{Address, keccak256};
use serde_json::{Value, json};

const REGISTRY: Address = Address([0xaa; 20]);
const PROJECTS: Address = Address([0xbb; 20]);
const HEAD: u64 = 1_000;

fn quantity(value: &Value) -> u64 {
    u64::from_str_radix(&value.as_str().unwrap()[2..], 16).unwrap()
}

fn word(number: u64) -> String {
    format!("{number:#066x}")
}

fn log(block: u64) -> Value {
    json!({
        "address": PROJECTS,
        "topics": [format!("0x{}", hex::encode(keccak256(&[b"Approve(uint256,address)"]))), word(0xd1)],
        "data": word(7),
        "blockNumber": format!("{block:#x}"),
        "blockHash": word(block + 1),
        "logIndex": "0x0",
        "removed": false,
    })
}

/// A chain of HEAD blocks where block n has the hash n + 1; `special` answers first.
async fn chain(special: impl Fn(&str, &Value) -> Option<Reply> + Send + Sync + 'static) -> Server {
    Server::start(move |_, body| {
        let question: Value = serde_json::from_str(body).unwrap();
        let (method, params) = (question["method"].as_str().unwrap(), &question["params"]);
        if let Some(reply) = special(method, params) {
            return reply;
        }
        result(match method {
            "eth_chainId" => json!("0x1"),
            "eth_blockNumber" => json!(format!("{HEAD:#x}")),
            "eth_getBlockByNumber" => block(quantity(&params[0]), 0),
            "eth_getLogs" => json!([]),
            other => panic!("{other}"),
        })
    })
    .await
}

fn block(number: u64, fork: u64) -> Value {
    json!({ "number": format!("{number:#x}"), "hash": word(number + 1 + fork), "parentHash": word(number + fork) })
}

fn result(value: Value) -> Reply {
    Reply::new(200, json!({ "jsonrpc": "2.0", "id": 1, "result": value }).to_string())
}

fn error(code: i64, message: &str) -> Reply {
    let error = json!({ "code": code, "message": message });
    Reply::new(200, json!({ "jsonrpc": "2.0", "id": 1, "error": error }).to_string())
}

fn reader(url: &str) -> ChainReader {
    let rpc = Rpc::with_timeout(url.parse().unwrap(), Duration::from_millis(500)).unwrap();
    ChainReader::new(rpc, ChainSource::new(1, REGISTRY, PROJECTS)).unwrap()
}

/// What reading blocks 10 to 19 of such a chain fails with.
async fn failure(special: impl Fn(&str, &Value) -> Option<Reply> + Send + Sync + 'static) -> ChainError {
    let server = chain(special).await;
    reader(&server.url).range(10, 19).await.unwrap_err()
}

fn logs(logs: Value) -> impl Fn(&str, &Value) -> Option<Reply> {
    move |method, _| (method == "eth_getLogs").then(|| result(logs.clone()))
}

#[tokio::test]
async fn trouble_that_passes_is_retryable_and_nothing_else_is() {
    for status in [429, 500, 502, 503] {
        let busy = failure(move |_, _| Some(Reply::new(status, ""))).await;
        assert_eq!(busy, ChainError::Busy { code: status.into() });
        assert!(busy.is_retryable());
    }
    for (code, message) in [(429, "x"), (-32005, "daily request count exceeded, rate limited")] {
        assert_eq!(failure(move |_, _| Some(error(code, message))).await, ChainError::Busy { code });
    }
    let stalled = failure(|_, _| Some(Reply::Stall(b"HTTP/1.1 200 x\r\ncontent-length: 9\r\n\r\n".into()))).await;
    assert_eq!(stalled, ChainError::Timeout);
    let broken = failure(|_, _| Some(Reply::Raw(b"HTTP/1.1 200 x\r\ncontent-length: 9\r\n\r\n{".into()))).await;
    assert!(matches!(broken, ChainError::Unreachable { .. }) && broken.is_retryable(), "{broken}");

    for status in [400, 401, 403, 404] {
        let refused = failure(move |_, _| Some(Reply::new(status, "<html>"))).await;
        assert_eq!(refused, ChainError::Refused { status });
        assert!(!refused.is_retryable());
    }
    let wrong = ChainError::WrongChain { expected: 1, found: 2 };
    assert_eq!(failure(|method, _| (method == "eth_chainId").then(|| result(json!("0x2")))).await, wrong);
    assert!(!wrong.is_retryable());
    for body in ["", "{}", "[]", "hello", r#"{"result":5}"#, r#"{"result":"0x+1"}"#] {
        let malformed = failure(move |_, _| Some(Reply::new(200, body))).await;
        assert_eq!(malformed, ChainError::Malformed { method: "eth_chainId" }, "{body}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = chain(|_, _| None).await;
    let there = format!("HTTP/1.1 307 x\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n", other.url);
    let refused = failure(move |_, _| Some(Reply::Raw(there.clone().into()))).await;
    assert_eq!((refused, other.requests()), (ChainError::Refused { status: 307 }, 0));
}

#[tokio::test]
async fn an_answer_beyond_the_limit_is_refused_before_it_is_held() {
    let announced = format!("HTTP/1.1 200 x\r\ncontent-length: {}\r\n\r\n", ANSWER_BYTES_MAX + 1);
    let too_large = failure(move |_, _| Some(Reply::Stall(announced.clone().into()))).await;
    assert_eq!(too_large, ChainError::TooLarge { bytes_max: ANSWER_BYTES_MAX as u64 });
    // Also where one block has too much to say.
    let announced = format!("HTTP/1.1 200 x\r\ncontent-length: {}\r\n\r\n", LOGS_BYTES_MAX + 1);
    let too_large =
        failure(move |method, _| (method == "eth_getLogs").then(|| Reply::Stall(announced.clone().into()))).await;
    assert_eq!(too_large, ChainError::TooLarge { bytes_max: LOGS_BYTES_MAX as u64 });
}

#[tokio::test]
async fn no_error_shows_what_the_url_hides() {
    let server = chain(|_, _| Some(error(-32000, "project 0123456789abcdef has no access"))).await;
    let url = server.url.replace("http://", "http://user:passw0rd@") + "/v3/0123456789abcdef?key=topsecret1";
    let reader = reader(&url);
    let withheld = reader.head().await.unwrap_err();
    assert_eq!(withheld, ChainError::Rpc { code: -32000, message: "(withheld)".into() });
    drop(server);
    let down = reader.head().await.unwrap_err();
    assert!(matches!(down, ChainError::Unreachable { .. }), "{down}");
    let shown = format!("{reader:?} {withheld} {withheld:?} {down} {down:?}");
    for part in ["passw0rd", "0123456789abcdef", "topsecret1"] {
        assert!(!shown.contains(part), "{shown}");
    }
}

#[tokio::test]
async fn a_span_with_too_many_results_is_split_and_reads_the_same() {
    let all = |_: u64, _: u64| true;
    let at_most = |blocks: u64| move |from: u64, to: u64| to - from < blocks;
    let mut digests = Vec::new();
    for limit in
        [Box::new(all) as Box<dyn Fn(u64, u64) -> bool + Send + Sync>, Box::new(at_most(3)), Box::new(at_most(1))]
    {
        let server = chain(move |method, params| {
            let (from, to) = match method {
                "eth_getLogs" => (quantity(&params[0]["fromBlock"]), quantity(&params[0]["toBlock"])),
                _ => return None,
            };
            // Each provider has its own words for it.
            let found = if limit(from, to) {
                result((from..=to).filter(|block| block % 2 == 0).map(log).collect())
            } else {
                error(-32005, "query returned more than 10000 results")
            };
            Some(found)
        })
        .await;
        let reader = reader(&server.url);
        let range = reader.range(10, 49).await.unwrap();
        assert_eq!(range.events.len(), 20);
        assert_eq!(reader.range(10, 49).await.unwrap(), range);
        digests.push(range.digest());
    }
    assert!(digests.iter().all(|digest| *digest == digests[0]));
    // One block cannot be split.
    let one = failure(|method, _| (method == "eth_getLogs").then(|| error(-32005, "more than 10000 results"))).await;
    assert_eq!(one, ChainError::Rpc { code: -32005, message: "more than 10000 results".into() });
}

#[tokio::test]
async fn answers_that_do_not_fit_together_are_read_again() {
    use std::sync::atomic::{AtomicU64, Ordering};

    // The chain is reorganised after the logs were read.
    let fork = AtomicU64::new(0);
    let racing = failure(move |method, params| match method {
        "eth_getBlockByNumber" => Some(result(block(quantity(&params[0]), fork.load(Ordering::SeqCst)))),
        "eth_getLogs" => {
            fork.store(500, Ordering::SeqCst);
            None
        }
        _ => None,
    })
    .await;
    assert!(matches!(racing, ChainError::Changed { .. }) && racing.is_retryable(), "{racing}");

    let with = |field: &str, value: Value| {
        let mut changed = log(12);
        changed[field] = value;
        changed
    };
    for bad in [
        json!([with("removed", json!(true))]),
        json!([with("blockNumber", json!(null))]),
        json!([with("blockNumber", json!("0x9"))]),
        json!([log(12), log(12)]),
        json!([log(12), with("blockHash", json!(word(99)))]),
        json!([with("blockNumber", json!("0x13"))]),
    ] {
        let changed = failure(logs(bad.clone())).await;
        assert!(matches!(changed, ChainError::Changed { .. }), "{bad}: {changed}");
    }
    let malformed = failure(logs(json!([with("data", json!("12"))]))).await;
    assert_eq!(malformed, ChainError::Malformed { method: "eth_getLogs" });
}

/// An answer with many logs in each block, written without much ado.
fn crowd(from: u64, to: u64) -> Reply {
    let one = log(0).to_string();
    let (block, hash) = (r#""blockNumber":"0x0""#, format!(r#""blockHash":"{}""#, word(1)));
    let logs = (from..=to).flat_map(|number| {
        let one = one.replace(block, &format!(r#""blockNumber":"{number:#x}""#));
        let one = one.replace(&hash, &format!(r#""blockHash":"{}""#, word(number + 1)));
        (0..100).map(move |index| one.replace(r#""logIndex":"0x0""#, &format!(r#""logIndex":"{index:#x}""#)))
    });
    let logs: Vec<String> = logs.collect();
    Reply::new(200, format!(r#"{{"jsonrpc":"2.0","id":1,"result":[{}]}}"#, logs.join(",")))
}

#[tokio::test]
async fn a_crowd_of_events_shortens_a_range_to_whole_blocks_and_stops_nothing() {
    // Almost 1,000 blocks with 100 approvals each: too many bytes, too many logs, too many events.
    let server = chain(|method, params| {
        let span = || (quantity(&params[0]["fromBlock"]), quantity(&params[0]["toBlock"]));
        (method == "eth_getLogs").then(|| crowd(span().0, span().1))
    })
    .await;
    let rpc = Rpc::new(server.url.parse().unwrap()).unwrap();
    let reader = ChainReader::new(rpc, ChainSource::new(1, REGISTRY, PROJECTS)).unwrap();
    assert_eq!(reader.range(10, 900).await, Err(ChainError::TooManyLogs { logs_max: LOGS_MAX as u64 }));
    let range = reader.next_range(10).await.unwrap().unwrap();
    assert_eq!((range.first, range.last, range.events.len()), (10, 19, 1_000));
    assert_eq!(reader.range(10, 19).await.unwrap(), range);
    let next = reader.next_range(20).await.unwrap().unwrap();
    assert!(next.follows(&range));
}

#[tokio::test]
async fn an_endpoint_that_speaks_no_tls_is_unreachable_by_https() {
    let server = chain(|_, _| None).await;
    let error = reader(&server.url.replace("http", "https")).head().await.unwrap_err();
    assert!(matches!(error, ChainError::Unreachable { .. }), "{error}");
    assert_eq!(server.requests(), 0);
}

#[tokio::test]
async fn blocks_that_nobody_may_ask_for_are_refused() {
    let server = chain(|_, _| None).await;
    let rpc = Rpc::new(server.url.parse().unwrap()).unwrap();
    let source = ChainSource { start_block: 5, ..ChainSource::new(1, REGISTRY, PROJECTS) };
    let reader = ChainReader::new(rpc, source).unwrap();
    for (first, last) in [(4, 9), (9, 8), (5, 10_005), (5, u64::MAX)] {
        assert!(matches!(reader.range(first, last).await, Err(ChainError::Blocks { .. })), "{first} {last}");
    }
    assert_eq!(server.requests(), 0);
    assert_eq!(reader.range(980, HEAD - 11).await, Err(ChainError::NotYet { block: HEAD - 11 }));
    assert!(reader.range(980, HEAD - 12).await.is_ok());
    assert_eq!(reader.next_range(0).await.unwrap().unwrap().first, 5);
    assert_eq!(reader.task_states(5, 6).await, Err(ChainError::NoTaskManager));
}
