//! A network that nobody uses.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use lockstep_api::views::HeadView;
use lockstep_testkit::cluster::{Cluster, ClusterOptions};
use lockstep_testkit::http::post_message;
use lockstep_testkit::load::device_key;
use lockstep_testkit::wait::{always, eventually};
use lockstep_types::ProjectId;

use crate::{SOON, binary};

/// Quiet for this long is quiet.
const SETTLED: Duration = Duration::from_secs(2);
const WATCHED: Duration = Duration::from_secs(5);

type Files = BTreeMap<PathBuf, (u64, SystemTime)>;

/// Sizes and times of all files below `path`, except what RocksDB logs about itself.
fn files(path: &Path, found: &mut Files) {
    for entry in fs::read_dir(path).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() {
            files(&path, found);
        } else if name != "LOG" && !name.starts_with("LOG.old")
            // A file may go between the listing and the look.
            && let Ok(about) = fs::metadata(&path)
        {
            found.insert(path, (about.len(), about.modified().unwrap()));
        }
    }
}

async fn state_of(cluster: &Cluster) -> (Files, Vec<HeadView>) {
    let (mut found, mut heads) = (Files::new(), Vec::new());
    for index in 0..cluster.len() {
        files(&cluster.node(index).process.home().join("store"), &mut found);
        heads.push(cluster.status(index).await.unwrap().head);
    }
    (found, heads)
}

fn compare(before: &(Files, Vec<HeadView>), after: &(Files, Vec<HeadView>)) -> Result<(), String> {
    let changed: Vec<_> = after.0.iter().filter(|(path, about)| before.0.get(*path) != Some(about)).collect();
    if before == after { Ok(()) } else { Err(format!("changed: {changed:?}, heads: {:?}", after.1)) }
}

#[tokio::test]
async fn an_idle_network_writes_nothing() {
    let mut cluster = Cluster::start(binary(), ClusterOptions::of(3)).await;
    for index in 0..cluster.len() {
        let body = lockstep_identity::sign_body(&device_key(1, index), ProjectId(7), "0.1", "the last one");
        assert_eq!(post_message(cluster.node(index).address(), body.as_bytes()).await.status, 200);
    }
    let head = cluster.wait_head_equal(SOON).await;
    assert_eq!(head.sequence.0, 3);
    let mut last = (Instant::now(), state_of(&cluster).await);
    eventually("the network settles", SOON, async || {
        let now = state_of(&cluster).await;
        if let Err(changed) = compare(&last.1, &now) {
            last = (Instant::now(), now);
            return Err(changed);
        }
        if last.0.elapsed() >= SETTLED { Ok(()) } else { Err("it was quiet for too short a time".into()) }
    })
    .await;
    let before = state_of(&cluster).await;
    always("an idle network is quiet", WATCHED, async || compare(&before, &state_of(&cluster).await)).await;
    // The newest batch may have got its certificate meanwhile.
    assert_eq!((before.1[0].height, before.1[0].hash), (head.height, head.hash));
    println!("{} files unchanged for {WATCHED:?}", before.0.len());
    cluster.assert_no_panics();
}
