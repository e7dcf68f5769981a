//! Reading every block of a store's files against its checksum.

use std::ffi::{CStr, CString, c_char};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;

use librocksdb_sys as ffi;

use crate::storage::StoreError;

/// Column families, opened to be read, with what has to be given back.
struct Opened {
    options: *mut ffi::rocksdb_options_t,
    db: *mut ffi::rocksdb_t,
    handles: Vec<*mut ffi::rocksdb_column_family_handle_t>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: all of these came from RocksDB, are given back once, and are used by nobody any more. RocksDB
        // takes null where opening failed.
        #[allow(unsafe_code)]
        unsafe {
            for handle in self.handles.iter().filter(|handle| !handle.is_null()) {
                ffi::rocksdb_column_family_handle_destroy(*handle);
            }
            if !self.db.is_null() {
                ffi::rocksdb_close(self.db);
            }
            ffi::rocksdb_options_destroy(self.options);
        }
    }
}

/// Takes over RocksDB's message.
///
/// # Safety
/// `error` is null or came from RocksDB.
#[allow(unsafe_code)]
unsafe fn taken(error: *mut c_char) -> Result<(), StoreError> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the caller's promise; the text ends with a zero and is freed once.
    let text = unsafe {
        let text = CStr::from_ptr(error).to_string_lossy().into_owned();
        ffi::rocksdb_free(error.cast());
        text
    };
    Err(StoreError::Failed(text))
}

/// Reads all blocks of all table files of the store in a directory, also those that no look-up would read, and compares
/// their checksums. `families` are all that the store has, besides the default one. Nothing is written.
///
/// # Errors
/// If the store cannot be opened, or a block is damaged.
#[allow(unsafe_code)]
pub(crate) fn verify_blocks(store: &Path, families: &[&str]) -> Result<(), StoreError> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|e| StoreError::Open(e.to_string()));
    let path = text(store.as_os_str().as_bytes())?;
    let names: Vec<CString> = std::iter::once("default")
        .chain(families.iter().copied())
        .map(|name| text(name.as_bytes()))
        .collect::<Result<_, _>>()?;
    let name_pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let count = i32::try_from(names.len()).map_err(|e| StoreError::Open(e.to_string()))?;
    let mut error = ptr::null_mut();
    // SAFETY: every pointer is to something that lives until `opened` is dropped; the three lists have `count` items.
    unsafe {
        let mut opened = Opened {
            options: ffi::rocksdb_options_create(),
            db: ptr::null_mut(),
            handles: vec![ptr::null_mut(); names.len()],
        };
        ffi::rocksdb_options_set_paranoid_checks(opened.options, 1);
        let family_options = vec![opened.options.cast_const(); names.len()];
        opened.db = ffi::rocksdb_open_for_read_only_column_families(
            opened.options,
            path.as_ptr(),
            count,
            name_pointers.as_ptr(),
            family_options.as_ptr(),
            opened.handles.as_mut_ptr(),
            0,
            &raw mut error,
        );
        taken(error)?;
        ffi::rocksdb_verify_checksum(opened.db, &raw mut error);
        taken(error)
    }
}
