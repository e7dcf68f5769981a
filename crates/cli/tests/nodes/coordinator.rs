//! What a coordinator says of tasks, and that nothing depends on it.

use std::time::{Duration, Instant};

use lockstep_identity::Document;
use lockstep_testkit::cluster::{Cluster, change_config};
use lockstep_testkit::http::{get, request};
use lockstep_testkit::wait::eventually;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::sealed::{case, device, document_file, options, random, register, sealed};
use crate::{SOON, binary};

/// How the coordinator is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Good,
    Silent,
    Garbage,
    Huge,
    Redirect,
}

async fn answer(mut stream: TcpStream, mood: Mood) -> std::io::Result<()> {
    let mut head = vec![0; 4096];
    let length = stream.read(&mut head).await?;
    let head = String::from_utf8_lossy(&head[..length]).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let numbers: Vec<u64> = path.split('/').filter_map(|part| part.parse().ok()).collect();
    let states = [("dispatched", ""), ("proved", "a proof")].map(
        |(state, result)| json!({"state": state, "time": "2024-05-01T10:00:00.5+08:00", "comment": "", "result": result}),
    );
    let (status, body) = match mood {
        Mood::Good if numbers.len() == 2 => {
            ("200 OK", json!({"projectID": numbers[0], "taskID": numbers[1], "states": states}).to_string())
        }
        Mood::Good => ("404 Not Found", String::new()),
        Mood::Silent => return std::future::pending().await,
        Mood::Garbage => ("200 OK", "<html>it works</html>".into()),
        Mood::Huge => ("200 OK", json!({"states": states, "x": "x".repeat(1 << 20)}).to_string()),
        Mood::Redirect => ("302 Found\r\nlocation: /good", String::new()),
    };
    let text = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(text.as_bytes()).await
}

async fn coordinate(listener: TcpListener, mood: watch::Receiver<Mood>) {
    let mut open = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let mood = *mood.borrow();
        open.spawn(async move { answer(stream, mood).await });
    }
}

fn words(answer: &Value) -> Vec<&str> {
    let states = answer["states"].as_array().unwrap_or_else(|| panic!("no states: {answer}"));
    states.iter().map(|state| state["state"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn what_the_coordinator_says_is_added_and_whatever_it_does_the_rest_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let coordinator = listener.local_addr().unwrap();
    let mood = watch::Sender::new(Mood::Good);
    let task = tokio::spawn(coordinate(listener, mood.subscribe()));
    let mut cluster = Cluster::prepare(binary(), options([7]));
    let home = cluster.node(0).process.home().to_owned();
    std::fs::write(home.join("coordinator.url"), format!("http://{coordinator}\n")).unwrap();
    change_config(&home, |text| format!("{text}\n[coordinator]\nurl_file = \"coordinator.url\"\n"));
    cluster.start_all().await;

    let (case, address) = (case(1), cluster.node(0).address());
    let (device, did) = (device(&case), case["device"]["did"].as_str().unwrap());
    register(
        &cluster,
        lockstep_types::ProjectId(7),
        &document_file(&cluster, case["device"]["did_doc"].as_str().unwrap()),
    )
    .await;
    let ask = json!({ "clientID": did }).to_string();
    let open = |text: String| String::from_utf8(device.decrypt_answer(text.as_bytes()).unwrap().plaintext).unwrap();
    let issued = eventually("the device gets a token", SOON, async || {
        let answer = request(address, "POST", "/issue_vc", ask.as_bytes()).await.unwrap();
        (answer.status == 200).then(|| answer.text()).ok_or_else(|| answer.text())
    })
    .await;
    let token = open(issued);
    let server = Document::parse(get(address, "/didDoc").await.text().as_bytes()).unwrap();
    let message = json!({"projectID": 7, "projectVersion": "1", "data": "21.5"}).to_string();
    let envelope = device.encrypt_request(&server, &message, &mut random()).unwrap();
    let sent = sealed(address, "POST", "/message", &token, &envelope).await;
    assert_eq!(sent.status, 200, "{}", sent.text());
    let sent: Value = serde_json::from_str(&open(sent.text())).unwrap();
    let path = format!("/message/{}", sent["messageID"].as_str().unwrap());
    let id = get(address, &format!("/api{}", path.replace("message", "messages"))).await.json();
    let task_path = format!("/task?projectID=7&taskID={}", id["task_id"].as_str().unwrap());

    let states = async || {
        let started = Instant::now();
        let plain = get(address, &path).await.json();
        let secret = sealed(address, "GET", &path, &token, "").await;
        assert!(started.elapsed() < Duration::from_secs(4), "two answers took {:?}", started.elapsed());
        (plain, serde_json::from_str::<Value>(&open(secret.text())).unwrap())
    };
    let become_ = async |wanted: &[&str]| {
        eventually("the states are told", SOON, async || {
            let (plain, secret) = states().await;
            let all = words(&plain) == wanted && words(&secret) == wanted;
            all.then(|| plain.clone()).ok_or_else(|| format!("{plain} {secret}"))
        })
        .await
    };
    let (own, all) = (["received", "packed"], ["received", "packed", "dispatched", "proved"]);
    let told = become_(&all).await;
    assert_eq!(told["states"][3]["result"], "a proof");
    assert_eq!(told["states"][3]["time"], "2024-05-01T10:00:00.5+08:00");
    assert_eq!(words(&get(address, &task_path).await.json()), ["packed", "dispatched", "proved"]);
    for bad in [Mood::Silent, Mood::Garbage, Mood::Huge, Mood::Redirect] {
        mood.send_replace(bad);
        become_(&own).await;
        mood.send_replace(Mood::Good);
        become_(&all).await;
    }
    task.abort();
    become_(&own).await;
    // A node without a coordinator tells what it knows.
    let other = get(cluster.node(1).address(), &format!("{path}?min_sequence=1")).await.json();
    assert!(words(&other).iter().all(|word| own.contains(word)), "{other}");
    cluster.assert_no_panics();
}
