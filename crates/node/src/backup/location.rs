//! Where backups are, as an operator writes it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a bucket's address begins with.
const SCHEME: &str = "s3://";
/// Longest name of a bucket.
const BUCKET_CHARS_MAX: usize = 255;
/// Longest prefix: names of objects have at most 1,024 bytes, and files get 70 more.
const PREFIX_CHARS_MAX: usize = 512;

/// A directory, or a bucket of a store that speaks S3: `s3://BUCKET/PREFIX`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum BackupLocation {
    /// A directory.
    Directory(PathBuf),
    /// What begins with a prefix in a bucket.
    Bucket {
        /// The bucket.
        bucket: String,
        /// The prefix, without slashes at its ends; empty for all of the bucket.
        prefix: String,
    },
}

/// Not the address of a bucket. It does not quote what was given, which may hold a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// Another form.
    #[error(
        "a bucket is given as s3://BUCKET/PREFIX, with letters, digits, '-', '_' and '.' (in the prefix also '/', '=' and '+'); keys and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL), never from here"
    )]
    Malformed,
    /// Nothing.
    #[error("a directory or s3://BUCKET/PREFIX is needed")]
    Empty,
}

fn is_name(text: &str, more: &[u8]) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) || more.contains(&byte))
}

impl FromStr for BackupLocation {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        let Some(rest) = text.strip_prefix(SCHEME) else {
            return if text.is_empty() { Err(LocationError::Empty) } else { Ok(Self::Directory(text.into())) };
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        let parts = || prefix.split('/').filter(|_| !prefix.is_empty());
        let good = (1..=BUCKET_CHARS_MAX).contains(&bucket.len())
            && prefix.len() <= PREFIX_CHARS_MAX
            && is_name(bucket, b"")
            && parts().all(|part| is_name(part, b"=+") && !["", ".", ".."].contains(&part));
        if !good {
            return Err(LocationError::Malformed);
        }
        Ok(Self::Bucket { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl TryFrom<String> for BackupLocation {
    type Error = LocationError;

    fn try_from(text: String) -> Result<Self, LocationError> {
        text.parse()
    }
}

impl From<BackupLocation> for String {
    fn from(location: BackupLocation) -> Self {
        location.to_string()
    }
}

impl fmt::Display for BackupLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Bucket { bucket, prefix } if prefix.is_empty() => write!(f, "{SCHEME}{bucket}"),
            Self::Bucket { bucket, prefix } => write!(f, "{SCHEME}{bucket}/{prefix}"),
        }
    }
}

impl BackupLocation {
    /// The same for a process with another working directory.
    ///
    /// # Errors
    /// If the working directory is gone.
    pub fn absolute(self) -> std::io::Result<Self> {
        match self {
            Self::Directory(path) => Ok(Self::Directory(std::path::absolute(path)?)),
            bucket @ Self::Bucket { .. } => Ok(bucket),
        }
    }

    /// Whether it means the same in every working directory.
    pub fn is_absolute(&self) -> bool {
        match self {
            Self::Directory(path) => path.is_absolute(),
            Self::Bucket { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(bucket: &str, prefix: &str) -> Result<BackupLocation, LocationError> {
        Ok(BackupLocation::Bucket { bucket: bucket.into(), prefix: prefix.into() })
    }

    #[test]
    fn directories_and_buckets_are_told_apart_and_survive_their_text() {
        for (text, location) in [
            ("s3://b", bucket("b", "")),
            ("s3://b/", bucket("b", "")),
            ("s3://my.bucket-1/a/b=c", bucket("my.bucket-1", "a/b=c")),
            ("s3://b/a/", bucket("b", "a")),
            ("backups", Ok(BackupLocation::Directory("backups".into()))),
            ("/s3://b", Ok(BackupLocation::Directory("/s3://b".into()))),
        ] {
            assert_eq!(text.parse(), location, "{text}");
            let json = serde_json::to_string(&location.clone().unwrap()).unwrap();
            assert_eq!(serde_json::from_str::<BackupLocation>(&json).unwrap(), location.unwrap());
        }
    }

    #[test]
    fn what_is_no_address_of_a_bucket_is_refused_without_quoting_it() {
        for text in ["s3://", "s3:///a", "s3://key:secret@b/a", "s3://b/a//c", "s3://b/../c", "s3://b/a?x", "s3://b c"]
        {
            let error = text.parse::<BackupLocation>().unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        assert_eq!("".parse::<BackupLocation>(), Err(LocationError::Empty));
    }
}
