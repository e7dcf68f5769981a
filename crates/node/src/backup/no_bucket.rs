//! In the place of buckets, in a program without the feature `buckets`.

use super::place::{BackupPlace, PlaceError};

/// Says that this program knows no buckets.
pub(super) fn open(
    bucket: &str,
    _prefix: &str,
    _settings: impl IntoIterator<Item = (String, String)>,
) -> Result<Box<dyn BackupPlace>, PlaceError> {
    Err(PlaceError::LeftOut(format!("s3://{bucket}")))
}
