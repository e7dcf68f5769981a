//! How large write buffers and table files are. The defaults are right for every node; a test makes them small, so that
//! a short run has as many files as years have.

use crate::storage::StoreError;

/// Names the variable with the bytes of a write buffer.
const WRITE_BUFFER_VARIABLE: &str = "LOCKSTEP_STORE_WRITE_BUFFER_BYTES";
/// Names the variable with the bytes of a table file.
const TABLE_FILE_VARIABLE: &str = "LOCKSTEP_STORE_TABLE_FILE_BYTES";
/// RocksDB takes no write buffer that is smaller.
const WRITE_BUFFER_BYTES_MIN: u64 = 64 << 10;
/// A file of less would hold nothing but its own index.
const TABLE_FILE_BYTES_MIN: u64 = 4 << 10;
const BYTES_MAX: u64 = 1 << 30;

/// Sizes of one store's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Of a write buffer; a store has several for each table.
    pub write_buffer_bytes: u64,
    /// Of a table file.
    pub table_file_bytes: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { write_buffer_bytes: 6 << 20, table_file_bytes: 64 << 20 }
    }
}

impl Sizes {
    /// The defaults, or what the process' environment says instead.
    ///
    /// # Errors
    /// If it says something that is no size.
    pub fn from_environment() -> Result<Self, StoreError> {
        Self::from_variables(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, StoreError> {
        let size = |name: &str, min: u64, default: u64| {
            let Some(text) = variable(name) else { return Ok(default) };
            let bytes = text.parse().ok().filter(|bytes| (min..=BYTES_MAX).contains(bytes));
            bytes.ok_or_else(|| {
                StoreError::Open(format!("{name} is {text:?}; a number of bytes from {min} to {BYTES_MAX} is expected"))
            })
        };
        let default = Self::default();
        Ok(Self {
            write_buffer_bytes: size(WRITE_BUFFER_VARIABLE, WRITE_BUFFER_BYTES_MIN, default.write_buffer_bytes)?,
            table_file_bytes: size(TABLE_FILE_VARIABLE, TABLE_FILE_BYTES_MIN, default.table_file_bytes)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_from_the_environment_where_they_are_sizes() {
        let with = |buffer: Option<&str>, file: Option<&str>| {
            Sizes::from_variables(|name| {
                let value = if name == WRITE_BUFFER_VARIABLE { buffer } else { file };
                value.map(str::to_owned)
            })
        };
        assert_eq!(with(None, None).unwrap(), Sizes::default());
        let small = Sizes { write_buffer_bytes: 65_536, table_file_bytes: 4_096 };
        assert_eq!(with(Some("65536"), Some("4096")).unwrap(), small);
        for wrong in ["", "0", "65535", "64k", "-1", "1073741825"] {
            let error = with(Some(wrong), None).unwrap_err().to_string();
            assert!(error.contains(WRITE_BUFFER_VARIABLE) && error.contains("65536"), "{error}");
        }
        assert!(with(None, Some("4095")).unwrap_err().to_string().contains(TABLE_FILE_VARIABLE));
    }
}
