//! A server that speaks S3, over a directory of this machine.

use std::fs;
use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use parking_lot::Mutex;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::background::Background;

/// Who may use the server.
pub const ACCESS_KEY: &str = "AKTESTLOCKSTEP";
/// The key that requests are signed with.
pub const SECRET_KEY: &str = "a-secret-of-the-tests-that-shows-up-nowhere";

/// How the server behaves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Fault {
    /// As it should.
    #[default]
    None,
    /// Every request is answered 503.
    Down,
    /// Every request waits for this long first.
    Slow(Duration),
    /// No object is taken whose key has one of these in it: 503.
    LosesPuts(Vec<String>),
    /// No object is taken whose key has this in it, as if it were too large.
    Refuses(String),
}

/// Sets how a running server behaves.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<Fault>>);

impl Faults {
    /// From now on.
    pub fn set(&self, fault: Fault) {
        *self.0.lock() = fault;
    }

    /// The answer of a server with this fault; `None` where it does what it is asked.
    async fn answer(&self, request: &Request<Incoming>) -> Option<Response<s3s::Body>> {
        let fault = self.0.lock().clone();
        let (path, puts) = (request.uri().path(), request.method() == Method::PUT);
        let (status, code) = match fault {
            Fault::Down => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
            Fault::LosesPuts(keys) if puts && keys.iter().any(|key| path.contains(key)) => {
                (StatusCode::SERVICE_UNAVAILABLE, "SlowDown")
            }
            Fault::Refuses(key) if puts && path.contains(&key) => (StatusCode::BAD_REQUEST, "EntityTooLarge"),
            Fault::Slow(time) => {
                tokio::time::sleep(time).await;
                return None;
            }
            _ => return None,
        };
        let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
        let mut response = Response::new(s3s::Body::from(body));
        *response.status_mut() = status;
        Some(response)
    }
}

/// A running server with one bucket. It ends, and its files go, with the value.
pub struct Bucket {
    endpoint: String,
    directory: TempDir,
    faults: Faults,
    _work: Background,
}

impl Bucket {
    /// Name of the bucket.
    pub const NAME: &str = "backups";

    /// Starts it on a free port. It checks the signature of every request.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start() -> Self {
        Self::start_in(&std::env::temp_dir())
    }

    /// The same, with its files below a directory.
    ///
    /// # Panics
    /// As [`Bucket::start`].
    pub fn start_in(parent: &Path) -> Self {
        let directory = tempfile::Builder::new().prefix("lockstep-s3-").tempdir_in(parent).expect("a directory");
        fs::create_dir(directory.path().join(Self::NAME)).expect("a directory for the bucket");
        let files = FileSystem::new(directory.path()).expect("a directory to serve");
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = service.build();
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a socket that does not block");
        let endpoint = format!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        let faults = Faults::default();
        let its_faults = faults.clone();
        // S3 looks whether an object is there and creates it in one step; this server does it in two.
        let turns = Arc::new(tokio::sync::Mutex::new(()));
        let work = move || async move {
            let listener = TcpListener::from_std(listener).expect("a listening socket");
            while let Ok((stream, _)) = listener.accept().await {
                let (service, faults, turns) = (service.clone(), its_faults.clone(), turns.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (service, faults, turns) = (service.clone(), faults.clone(), turns.clone());
                    async move {
                        if let Some(answer) = faults.answer(&request).await {
                            return Ok(answer);
                        }
                        let _turn = if request.method() == Method::PUT { Some(turns.lock().await) } else { None };
                        service.call(request.map(s3s::Body::from)).await
                    }
                });
                tokio::spawn(async move {
                    // A client that goes away is no failure.
                    let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        };
        Self { endpoint, directory, faults, _work: Background::spawn("s3", work) }
    }

    /// How it behaves.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Address of a prefix in the bucket.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{}/{prefix}", Self::NAME)
    }

    /// What a process needs in its environment to use it.
    pub fn environment(&self) -> Vec<(String, String)> {
        let settings = [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_ENDPOINT_URL", &self.endpoint),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
        ];
        settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    /// The directory in which objects lie under their names.
    pub fn directory(&self, prefix: &str) -> PathBuf {
        self.directory.path().join(Self::NAME).join(prefix)
    }
}
