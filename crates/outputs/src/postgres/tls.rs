//! Connections to PostgreSQL, with TLS where the DSN demands it.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, Connection, Error, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::options::PostgresOptionsError;
use super::session::describe;

/// Longest file with certificates that is read, in bytes.
const CA_FILE_BYTES_MAX: u64 = 1 << 20;

/// How the server is reached.
#[derive(Clone)]
pub(super) struct Connector {
    config: Config,
    /// `None`: in the clear.
    tls: Option<MakeRustlsConnect>,
}

impl Connector {
    /// With the certificates in `ca_file`, or else those that the system trusts, where `config` demands TLS. The server's
    /// certificate has to be of one of them and of the host's name.
    pub(super) fn new(config: Config, ca_file: Option<&Path>) -> Result<Self, PostgresOptionsError> {
        let tls = match config.get_ssl_mode() {
            SslMode::Require => Some(MakeRustlsConnect::new(client_config(roots(ca_file)?)?)),
            _ => None,
        };
        Ok(Self { config, tls })
    }

    /// Connects. What keeps the connection going ends when the client is dropped.
    pub(super) async fn connect(&self) -> Result<Client, Error> {
        match &self.tls {
            Some(tls) => {
                let (client, connection) = self.config.connect(tls.clone()).await?;
                keep_going(connection);
                Ok(client)
            }
            None => {
                let (client, connection) = self.config.connect(NoTls).await?;
                keep_going(connection);
                Ok(client)
            }
        }
    }
}

fn keep_going<S, T>(connection: Connection<S, T>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        // Its error is also that of the call that met it.
        if let Err(error) = connection.await {
            tracing::debug!(error = %describe(&error), "connection to PostgreSQL ended");
        }
    });
}

fn client_config(roots: RootCertStore) -> Result<ClientConfig, PostgresOptionsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| PostgresOptionsError::Tls(error.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, PostgresOptionsError> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            let failed = |reason: &dyn std::fmt::Display| {
                PostgresOptionsError::Tls(format!("the certificates in {}: {reason}", path.display()))
            };
            let size = std::fs::metadata(path).map_err(|e| failed(&e))?.len();
            if size > CA_FILE_BYTES_MAX {
                return Err(failed(&format!("the file has {size} bytes, at most {CA_FILE_BYTES_MAX} are read")));
            }
            for certificate in CertificateDer::pem_file_iter(path).map_err(|e| failed(&e))? {
                roots.add(certificate.map_err(|e| failed(&e))?).map_err(|e| failed(&e))?;
            }
            if roots.is_empty() {
                return Err(failed(&"there is none (PEM: BEGIN CERTIFICATE)"));
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                let reason = "this system trusts no certificate: name a file with the server's in `ca_file`";
                return Err(PostgresOptionsError::Tls(reason.to_owned()));
            }
        }
    }
    Ok(roots)
}
