//! The outputs of a node, as they stand in `config.toml`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use lockstep_outputs::Layout;
use lockstep_types::{OutputName, ProjectId};
use serde::{Deserialize, Serialize};

use crate::blob_outputs::{BlobKind, BlobKindName, BlobSettings, Mode};

/// Who feeds an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// One store for the network: the leader publishes.
    Network,
    /// A store of this operator's own: this node publishes.
    Node,
}

/// A store that this node feeds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "OutputTable", into = "OutputTable")]
pub struct OutputConfig {
    /// Its name: the same on all nodes for an output of the network.
    pub name: OutputName,
    /// Who feeds it.
    pub scope: Scope,
    /// Projects whose tasks it takes, the same on all nodes that feed it; `None`: all. What was passed over does not come
    /// when this is changed.
    pub projects: Option<BTreeSet<ProjectId>>,
    /// Where it is.
    pub kind: OutputKind,
}

/// Where an output is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputKind {
    /// A SQLite file.
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Which readers it is for.
        layout: Layout,
    },
    /// A PostgreSQL server.
    Postgres {
        /// A file with the connection string, so that this one holds no secret.
        dsn_file: PathBuf,
        /// Schema of the tables.
        schema: String,
        /// Which readers it is for.
        layout: Layout,
        /// A file with the certificates that the server's may be of, where the connection string demands TLS; `None`:
        /// those that the system trusts.
        ca_file: Option<PathBuf>,
    },
    /// A store of blobs.
    Blobs(BlobKind),
}

impl OutputKind {
    /// Its name, which is that of its feature.
    #[allow(dead_code, reason = "unused in a program with all features")]
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Sqlite { .. } => "sqlite",
            Self::Postgres { .. } => "postgres",
            Self::Blobs(kind) => kind.name(),
        }
    }
}

/// An `[[output]]` table as it stands in the file: flat, so that a setting that does not fit its kind is named.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutputTable {
    name: OutputName,
    scope: Scope,
    #[serde(skip_serializing_if = "Option::is_none")]
    projects: Option<BTreeSet<ProjectId>>,
    kind: KindName,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dsn_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    layout: Layout,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credentials_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<Mode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gas_price_microutia: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replicas: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_file: Option<PathBuf>,
}

fn is_default(layout: &Layout) -> bool {
    *layout == Layout::default()
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindName {
    Sqlite,
    Postgres,
    Object,
    Altda,
    Celestia,
    Nats,
}

impl KindName {
    /// The kind, where it is a store of blobs.
    fn of_blobs(self) -> Option<BlobKindName> {
        match self {
            Self::Sqlite | Self::Postgres => None,
            Self::Object => Some(BlobKindName::Object),
            Self::Altda => Some(BlobKindName::AltDa),
            Self::Celestia => Some(BlobKindName::Celestia),
            Self::Nats => Some(BlobKindName::Nats),
        }
    }
}

impl From<BlobKindName> for KindName {
    fn from(name: BlobKindName) -> Self {
        match name {
            BlobKindName::Object => Self::Object,
            BlobKindName::AltDa => Self::Altda,
            BlobKindName::Celestia => Self::Celestia,
            BlobKindName::Nats => Self::Nats,
        }
    }
}

const DEFAULT_SCHEMA: &str = "public";

impl TryFrom<OutputTable> for OutputConfig {
    type Error = String;

    fn try_from(table: OutputTable) -> Result<Self, String> {
        let (name, layout) = (&table.name, table.layout);
        let mut blobs = BlobSettings {
            url: table.url,
            credentials_file: table.credentials_file,
            url_file: table.url_file,
            mode: table.mode,
            token_file: table.token_file,
            namespace: table.namespace,
            gas_price_microutia: table.gas_price_microutia,
            stream: table.stream,
            subject: table.subject,
            replicas: table.replicas,
            ca_file: table.ca_file,
        };
        if let Some(kind) = table.kind.of_blobs() {
            let of_tables = table.path.is_some() || table.dsn_file.is_some() || table.schema.is_some();
            if of_tables || !is_default(&layout) {
                return Err(format!("output {name}: `path`, `dsn_file`, `schema` and `layout` are of other kinds"));
            }
            let kind = BlobKind::read(kind, blobs).map_err(|e| format!("output {name}: {e}"))?;
            return Self::taking(table.name, table.scope, table.projects, OutputKind::Blobs(kind));
        }
        let ca_file = if matches!(table.kind, KindName::Postgres) { blobs.ca_file.take() } else { None };
        if blobs != BlobSettings::default() {
            return Err(format!("output {name}: it has a setting that is for stores of blobs"));
        }
        let kind = match (table.kind, table.path, table.dsn_file, table.schema) {
            (KindName::Sqlite, Some(path), None, None) => OutputKind::Sqlite { path, layout },
            (KindName::Sqlite, ..) => {
                return Err(format!("output {name}: kind sqlite takes `path` and, if need be, `layout`"));
            }
            (KindName::Postgres, None, Some(dsn_file), schema) => {
                let schema = schema.unwrap_or_else(|| DEFAULT_SCHEMA.into());
                OutputKind::Postgres { dsn_file, schema, layout, ca_file }
            }
            (KindName::Postgres, ..) => {
                return Err(format!(
                    "output {name}: kind postgres takes `dsn_file` and, if need be, `schema`, `layout` and `ca_file`"
                ));
            }
            _ => return Err(format!("output {name}: its kind is not known")),
        };
        Self::taking(table.name, table.scope, table.projects, kind)
    }
}

impl OutputConfig {
    fn taking(
        name: OutputName,
        scope: Scope,
        projects: Option<BTreeSet<ProjectId>>,
        kind: OutputKind,
    ) -> Result<Self, String> {
        if projects.as_ref().is_some_and(BTreeSet::is_empty) {
            return Err(format!("output {name}: `projects` must name one at least; leave it out for all"));
        }
        Ok(Self { name, scope, projects, kind })
    }
}

impl From<OutputConfig> for OutputTable {
    fn from(config: OutputConfig) -> Self {
        let OutputConfig { name, scope, projects, kind } = config;
        let mut blobs = BlobSettings::default();
        let (kind, path, dsn_file, schema, layout) = match kind {
            OutputKind::Sqlite { path, layout } => (KindName::Sqlite, Some(path), None, None, layout),
            OutputKind::Postgres { dsn_file, schema, layout, ca_file } => {
                blobs.ca_file = ca_file;
                (KindName::Postgres, None, Some(dsn_file), Some(schema), layout)
            }
            OutputKind::Blobs(kind) => {
                let (name, settings) = kind.settings();
                blobs = settings;
                (name.into(), None, None, None, Layout::default())
            }
        };
        Self {
            name,
            scope,
            projects,
            kind,
            path,
            dsn_file,
            schema,
            layout,
            url: blobs.url,
            credentials_file: blobs.credentials_file,
            url_file: blobs.url_file,
            mode: blobs.mode,
            token_file: blobs.token_file,
            namespace: blobs.namespace,
            gas_price_microutia: blobs.gas_price_microutia,
            stream: blobs.stream,
            subject: blobs.subject,
            replicas: blobs.replicas,
            ca_file: blobs.ca_file,
        }
    }
}
