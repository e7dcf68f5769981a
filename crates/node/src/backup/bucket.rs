//! Backups in a bucket of a store that speaks S3.

use std::error::Error as _;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use lockstep_consensus::copy::Hasher;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path as Key;
use object_store::{ClientConfigKey, Error, MultipartUpload, ObjectStore as _, ObjectStoreExt as _, RetryConfig};
use tokio::runtime::Runtime;

use super::manifest::BackupFile;
use super::place::{BackupPlace, OTHER_CONTENT, PlaceError, is_manifest};
use super::{FILES, MANIFEST_BYTES_MAX};

/// Bytes of a file that are in memory at a time. A larger file is sent in parts of this size, of which S3 takes 10,000.
const PIECE_BYTES: usize = 8 << 20;
/// How often a request is repeated that failed or was not answered, and for how long in all.
const RETRIES_MAX: usize = 6;
/// See [`RETRIES_MAX`].
const RETRY_TIME_MAX: Duration = Duration::from_secs(90);
/// Time for one request with a piece, on a slow line.
const REQUEST_TIMEOUT: &str = "120 seconds";
/// Time to connect.
const CONNECT_TIMEOUT: &str = "10 seconds";
/// Longest part of an error's text that is shown.
const REASON_CHARS_MAX: usize = 300;
/// Where machines of a cloud ask for credentials when they were given none.
const METADATA_ADDRESS: &str = "169.254.169.254";

/// What a store answers to the wrong keys.
const KEY_CODES: [&str; 5] =
    ["AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"];
const LOOK_AT_KEYS: &str = "; look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and what they may do";
const NO_BUCKET: &str = "there is no such bucket";

/// See the module's documentation. It has a runtime of its own, which works on whichever thread calls it: so requests
/// give way with the thread that makes a backup.
struct BucketPlace {
    store: AmazonS3,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    prefix: Key,
    url: String,
}

/// Opens a bucket with the settings that the environment has, by the names that AWS' own programs use. Nobody is asked yet.
///
/// # Errors
/// If the settings make no sense.
pub(super) fn open(
    bucket: &str,
    prefix: &str,
    settings: impl IntoIterator<Item = (String, String)>,
) -> Result<Box<dyn BackupPlace>, PlaceError> {
    Ok(Box::new(BucketPlace::new(bucket, prefix, settings)?))
}

impl fmt::Display for BucketPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl Drop for BucketPlace {
    fn drop(&mut self) {
        // A runtime must not be waited for where tasks are driven.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What happened, in one sentence. Servers answer with XML, of which the code alone says something to people.
fn reason(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    if text.contains(METADATA_ADDRESS) {
        return "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment of the process that uses the bucket".into();
    }
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code);
    match code {
        Some("NoSuchBucket") => return NO_BUCKET.into(),
        Some(code) if KEY_CODES.contains(&code) => return format!("the store answers {code}{LOOK_AT_KEYS}"),
        Some(code) => return format!("the store answers {}", code.chars().take(REASON_CHARS_MAX).collect::<String>()),
        None => {}
    }
    let words = text.split('<').next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    words.chars().take(REASON_CHARS_MAX).collect()
}

fn unavailable(at: impl fmt::Display) -> impl Fn(Error) -> PlaceError {
    let at = at.to_string();
    move |error| {
        let refused = matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. });
        let reason = match reason(&error) {
            // Some answers to a refused request have no body that says more.
            reason if refused && !reason.contains(LOOK_AT_KEYS) => format!("the store refuses{LOOK_AT_KEYS}"),
            reason => reason,
        };
        PlaceError::Unavailable { at: at.clone(), reason }
    }
}

fn read_piece(source: &mut File, from: &Path) -> Result<Bytes, PlaceError> {
    let mut piece = Vec::new();
    source.take(PIECE_BYTES as u64).read_to_end(&mut piece).map_err(PlaceError::local(from))?;
    Ok(piece.into())
}

impl BucketPlace {
    fn new(
        bucket: &str,
        prefix: &str,
        settings: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, PlaceError> {
        let url = if prefix.is_empty() { format!("s3://{bucket}") } else { format!("s3://{bucket}/{prefix}") };
        let mut builder = AmazonS3Builder::new();
        for (name, value) in settings {
            // Others of these variables are for other programs.
            if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        let retry = RetryConfig { max_retries: RETRIES_MAX, retry_timeout: RETRY_TIME_MAX, ..RetryConfig::default() };
        let store = builder
            .with_bucket_name(bucket)
            .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), REQUEST_TIMEOUT)
            .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::ConnectTimeout), CONNECT_TIMEOUT)
            .with_retry(retry)
            .build()
            .map_err(unavailable(&url))?;
        let failed = |reason: String| PlaceError::Unavailable { at: url.clone(), reason };
        let prefix = Key::parse(prefix).map_err(|e| failed(e.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| failed(e.to_string()))?;
        Ok(Self { store, runtime: Some(runtime), prefix, url })
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.as_ref().expect("it is there until it is dropped").block_on(work)
    }

    fn key(&self, parts: &[&str]) -> Key {
        parts.iter().fold(self.prefix.clone(), |key, part| key.join(*part))
    }

    fn file_key(&self, file: &BackupFile) -> Key {
        self.key(&[FILES, &file.key()])
    }

    fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.url)
    }

    fn file_at(&self, file: &BackupFile) -> String {
        self.at(&format!("{FILES}/{}", file.key()))
    }

    /// Size of an object; `None` where there is none.
    async fn size(&self, key: &Key, at: &str) -> Result<Option<u64>, PlaceError> {
        match self.store.head(key).await {
            Ok(about) => Ok(Some(about.size)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(unavailable(at)(error)),
        }
    }

    async fn put(&self, key: &Key, content: Bytes, at: &str) -> Result<(), PlaceError> {
        match self.store.put(key, content.into()).await {
            Ok(_) => Ok(()),
            Err(Error::NotFound { .. }) => {
                let reason = NO_BUCKET.into();
                Err(PlaceError::Unavailable { at: self.url.clone(), reason })
            }
            Err(error) => Err(unavailable(at)(error)),
        }
    }

    /// Sends a file. It appears as a whole, and only if it is what its checksum says.
    async fn send(&self, file: &BackupFile, from: &Path) -> Result<(), PlaceError> {
        let (key, at) = (self.file_key(file), self.file_at(file));
        // Reading blocks, which holds up nothing: this runtime has no other work.
        let mut source = File::open(from).map_err(PlaceError::local(from))?;
        let first = read_piece(&mut source, from)?;
        if first.len() < PIECE_BYTES {
            let mut hasher = Hasher::default();
            hasher.update(&first);
            check_sum(hasher, file, from)?;
            return self.put(&key, first, &at).await;
        }
        let mut upload = self.store.put_multipart(&key).await.map_err(unavailable(&at))?;
        match send_parts(&mut *upload, first, &mut source, (file, from), &at).await {
            Ok(()) => upload.complete().await.map(drop).map_err(unavailable(&at)),
            Err(error) => {
                if let Err(error) = upload.abort().await {
                    tracing::debug!(%at, error = %reason(&error), "parts of a broken upload were not removed");
                }
                Err(error)
            }
        }
    }
}

fn check_sum(hasher: Hasher, file: &BackupFile, from: &Path) -> Result<(), PlaceError> {
    if hasher.finish() == file.sum.0 { Ok(()) } else { Err(PlaceError::damaged(from.display(), OTHER_CONTENT)) }
}

async fn send_parts(
    upload: &mut dyn MultipartUpload,
    first: Bytes,
    source: &mut File,
    (file, from): (&BackupFile, &Path),
    at: &str,
) -> Result<(), PlaceError> {
    let (mut hasher, mut piece) = (Hasher::default(), first);
    while !piece.is_empty() {
        hasher.update(&piece);
        upload.put_part(piece.into()).await.map_err(unavailable(at))?;
        piece = read_piece(source, from)?;
    }
    check_sum(hasher, file, from)
}

impl BackupPlace for BucketPlace {
    fn put_file(&self, file: &BackupFile, from: &Path) -> Result<bool, PlaceError> {
        self.wait(async {
            if self.size(&self.file_key(file), &self.file_at(file)).await? == Some(file.bytes) {
                return Ok(false);
            }
            self.send(file, from).await.map(|()| true)
        })
    }

    fn read_file(
        &self,
        file: &BackupFile,
        take: &mut dyn FnMut(&[u8]) -> Result<(), PlaceError>,
    ) -> Result<(), PlaceError> {
        let (key, at) = (self.file_key(file), self.file_at(file));
        self.wait(async {
            match self.size(&key, &at).await? {
                Some(bytes) if bytes == file.bytes => {}
                Some(bytes) => return Err(PlaceError::wrong_size(&at, bytes, file)),
                None => return Err(PlaceError::Missing(at)),
            }
            let mut offset = 0;
            while offset < file.bytes {
                let end = file.bytes.min(offset + PIECE_BYTES as u64);
                let piece = self.store.get_range(&key, offset..end).await.map_err(unavailable(&at))?;
                take(&piece)?;
                offset = end;
            }
            Ok(())
        })
    }

    fn put_manifest(&self, name: &str, text: &str) -> Result<(), PlaceError> {
        let content = Bytes::copy_from_slice(text.as_bytes());
        self.wait(self.put(&self.key(&[name]), content, &self.at(name)))
    }

    fn manifests(&self) -> Result<Vec<String>, PlaceError> {
        let prefix = Some(&self.prefix).filter(|prefix| !prefix.as_ref().is_empty());
        let found = self.wait(self.store.list_with_delimiter(prefix)).map_err(|error| match error {
            Error::NotFound { .. } => PlaceError::Unavailable { at: self.url.clone(), reason: NO_BUCKET.into() },
            error => unavailable(&self.url)(error),
        })?;
        let names = found.objects.iter().filter_map(|object| object.location.filename());
        Ok(names.filter(|name| is_manifest(name)).map(str::to_owned).collect())
    }

    fn read_manifest(&self, name: &str) -> Result<String, PlaceError> {
        let (key, at) = (self.key(&[name]), self.at(name));
        let content = self.wait(async {
            match self.size(&key, &at).await? {
                None => Err(PlaceError::Missing(at.clone())),
                Some(0) => Ok(Bytes::new()),
                Some(bytes) if bytes > MANIFEST_BYTES_MAX => {
                    Err(PlaceError::damaged(&at, "it is too large to be a backup's manifest"))
                }
                Some(bytes) => self.store.get_range(&key, 0..bytes).await.map_err(unavailable(&at)),
            }
        })?;
        String::from_utf8(content.into()).map_err(|_| PlaceError::damaged(&at, "it is not text"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> Error {
        Error::Generic { store: "S3", source: text.to_owned().into() }
    }

    #[test]
    fn an_error_is_one_short_sentence_without_what_the_server_wrote_around_it() {
        let answer = "403 Forbidden: <?xml version=\"1.0\"?>\n<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>AKIA</AWSAccessKeyId></Error>";
        assert_eq!(reason(&error(answer)), format!("the store answers SignatureDoesNotMatch{LOOK_AT_KEYS}"));
        assert_eq!(reason(&error("404: <Error><Code>NoSuchBucket</Code></Error>")), NO_BUCKET);
        assert!(reason(&error("GET http://169.254.169.254/latest: timed out")).contains("AWS_ACCESS_KEY_ID"));
        let long = reason(&error(&format!("no\n  route {}", "x".repeat(5_000))));
        assert!(long.contains("no route") && long.chars().count() <= REASON_CHARS_MAX, "{long}");
    }
}
