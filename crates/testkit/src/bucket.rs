//! A server that speaks S3, over a directory of this machine.

use std::fs;
use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::path::PathBuf;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
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

/// A running server with one bucket. It ends, and its files go, with the value.
pub struct Bucket {
    endpoint: String,
    directory: TempDir,
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
        let directory = tempfile::Builder::new().prefix("lockstep-s3-").tempdir().expect("a temporary directory");
        fs::create_dir(directory.path().join(Self::NAME)).expect("a directory for the bucket");
        let files = FileSystem::new(directory.path()).expect("a directory to serve");
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = service.build();
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a socket that does not block");
        let endpoint = format!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        let work = move || async move {
            let listener = TcpListener::from_std(listener).expect("a listening socket");
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    // A client that goes away is no failure.
                    let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        };
        Self { endpoint, directory, _work: Background::spawn("s3", work) }
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
