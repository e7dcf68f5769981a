//! The stores that the network publishes to, each behind something that can be away or slow.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::gather;
use crate::bucket::{Bucket, Fault};
use crate::cluster::{Cluster, change_config};
use crate::da::{Kind, NAMESPACE, Server, TOKEN};
use crate::http::local;
use crate::order::{At, Store};
use crate::outputs::{read_postgres, read_sqlite};
use crate::postgres::Postgres;
use crate::proxy::{Carrying, Proxy};

/// How much later a slow store answers.
const SLOW: Duration = Duration::from_millis(400);
/// The blobs' place in the bucket.
const PREFIX: &str = "chaos";
/// Outputs of one node: its SQLite file, and those of the network.
pub const OUTPUTS: usize = 5;

/// How a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// As it should be.
    Good,
    /// It answers nobody.
    Down,
    /// It answers late.
    Slow,
}

/// Where files go that nobody wants after the run: many small ones are slow on some disks.
fn in_memory() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

/// All of them, in the order of [`super::faults::STORES`].
pub struct Stores {
    postgres: Postgres,
    proxy: Proxy,
    bucket: Bucket,
    da: [Server; 2],
}

impl Stores {
    /// Starts them.
    pub fn start() -> Self {
        let postgres = Postgres::start();
        let proxy = Proxy::start(local(postgres.port()));
        let da = [Kind::Keccak, Kind::Celestia].map(Server::start);
        Self { postgres, proxy, bucket: Bucket::start_in(&in_memory()), da }
    }

    /// How nodes reach the PostgreSQL server.
    pub fn dsn(&self) -> String {
        let port = |port: u16| format!("port={port}");
        self.postgres.dsn().replace(&port(self.postgres.port()), &port(self.proxy.port()))
    }

    /// Has nodes publish to all of them. Their [`Stores::dsn`] is an option of the cluster.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn configure(&self, cluster: &Cluster) -> Result<()> {
        let url = self.bucket.url(PREFIX);
        let mut text = format!(
            "\n[[output]]\nname = \"objects\"\nscope = \"network\"\nkind = \"object\"\nurl = \"{url}\"\n\
             credentials_file = \"s3.credentials\"\n"
        );
        let credentials = self.bucket.environment().iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        let mut files =
            vec![("celestia.token".to_owned(), TOKEN.to_owned()), ("s3.credentials".to_owned(), credentials)];
        let celestia = format!("kind = \"celestia\"\nnamespace = \"{NAMESPACE}\"\ntoken_file = \"celestia.token\"");
        let settings = [("keccak", "kind = \"altda\"\nmode = \"keccak\""), ("celestia", &celestia)];
        for (server, (name, settings)) in self.da.iter().zip(settings) {
            text += &format!(
                "\n[[output]]\nname = \"{name}\"\nscope = \"network\"\nurl_file = \"{name}.url\"\n{settings}\n"
            );
            files.push((format!("{name}.url"), server.url.clone()));
        }
        for node in 0..cluster.len() {
            let home = cluster.node(node).process.home();
            // All devices of this machine have one address, so their limit is lifted.
            change_config(home, |config| config.replace("per_second = 1000", "per_second = 0") + &text);
            for (name, content) in &files {
                std::fs::write(home.join(name), content).with_context(|| name.clone())?;
            }
        }
        Ok(())
    }

    /// How one of them is from now on.
    pub fn set(&self, store: usize, state: State) {
        match (store, state) {
            (0, State::Good) => self.proxy.set(Carrying::Good),
            (0, State::Down) => self.proxy.set(Carrying::Dead),
            (0, State::Slow) => self.proxy.set(Carrying::Slow(SLOW)),
            (1, State::Good) => self.bucket.faults().set(Fault::None),
            (1, State::Down) => self.bucket.faults().set(Fault::Down),
            (1, State::Slow) => self.bucket.faults().set(Fault::Slow(SLOW)),
            (da, state) => {
                let mut held = self.da[da - 2].held.lock();
                held.down = state == State::Down;
                held.slow = (state == State::Slow).then_some(SLOW);
            }
        }
    }

    /// All are good again.
    pub fn heal(&self) {
        (0..super::faults::STORES.len()).for_each(|store| self.set(store, State::Good));
    }

    /// What all outputs hold, those of each node too.
    ///
    /// # Errors
    /// When one cannot be read.
    pub async fn contents(&self, cluster: &Cluster, at: At) -> Result<Vec<Store>> {
        let mut found = Vec::new();
        for node in 0..cluster.len() {
            let name = format!("SQLite of node {}", node + 1);
            found.push(gather::table(read_sqlite(&cluster.sqlite(node), &name)?, at)?);
        }
        found.push(gather::table(read_postgres(&self.postgres.dsn(), "PostgreSQL").await?, at)?);
        let objects = gather::blobs_below(&self.bucket.directory(PREFIX))?;
        found.push(gather::blobs("S3", objects, at)?);
        for (server, name) in self.da.iter().zip(["alt-DA", "Celestia"]) {
            found.push(gather::blobs(name, server.held.lock().puts.clone(), at)?);
        }
        Ok(found)
    }
}
