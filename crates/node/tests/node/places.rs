//! What every place for backups must do: one suite for all of them.

use std::fs;
use std::path::PathBuf;

use lockstep_node::backup::{
    BackupFile, BackupLocation, BackupManifest, BackupPlace, PlaceError, backups_in, check_backups, open_place,
    open_place_with,
};
use lockstep_testkit::bucket::{Bucket, SECRET_KEY};
use lockstep_types::{Digest, keccak256};

/// More than one part of an upload, and not a multiple of it.
const LARGE_BYTES: usize = (17 << 20) + 5;

/// An empty place, and the directory in which what it has lies under its names.
struct Empty {
    place: Box<dyn BackupPlace>,
    files: PathBuf,
    work: tempfile::TempDir,
}

impl Empty {
    fn file(&self, name: &str, content: &[u8]) -> (BackupFile, PathBuf) {
        let path = self.work.path().join(name);
        fs::write(&path, content).unwrap();
        let file =
            BackupFile { name: name.to_owned(), bytes: content.len() as u64, sum: Digest(keccak256(&[content])) };
        (file, path)
    }

    fn read(&self, file: &BackupFile) -> Result<Vec<u8>, PlaceError> {
        let mut content = Vec::new();
        self.place.read_file(file, &mut |piece| {
            content.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(content)
    }

    fn stored(&self, file: &BackupFile) -> PathBuf {
        self.files.join("files").join(file.key())
    }
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 + at / 251) as u8).collect()
}

fn files_come_back_as_they_were_and_are_sent_once(place: &Empty) {
    for (name, bytes) in
        [("000001.sst", 0), ("000002.sst", 1_000), ("000003.sst", 8 << 20), ("000004.sst", LARGE_BYTES)]
    {
        let (file, path) = place.file(name, &content(bytes));
        assert!(matches!(place.read(&file), Err(PlaceError::Missing(_))));
        assert!(place.place.put_file(&file, &path).unwrap());
        assert!(!place.place.put_file(&file, &path).unwrap(), "{name} was sent again");
        assert_eq!(place.read(&file).unwrap(), content(bytes));
        assert_eq!(fs::metadata(place.stored(&file)).unwrap().len(), bytes as u64);
    }
}

fn what_is_not_what_its_checksum_says_is_never_there(place: &Empty) {
    for bytes in [1_000, LARGE_BYTES] {
        let (file, path) = place.file("000007.sst", &content(bytes));
        let mut other = content(bytes);
        other[bytes / 2] ^= 1;
        fs::write(&path, other).unwrap();
        assert!(matches!(place.place.put_file(&file, &path), Err(PlaceError::Damaged { .. })));
        assert!(matches!(place.read(&file), Err(PlaceError::Missing(_))));
        assert!(!place.stored(&file).exists());
    }
    let (file, path) = place.file("000008.sst", b"gone");
    fs::remove_file(&path).unwrap();
    assert!(matches!(place.place.put_file(&file, &path), Err(PlaceError::Local { .. })));
}

fn a_file_of_another_size_is_found_and_replaced(place: &Empty) {
    let (file, path) = place.file("000009.sst", &content(5_000));
    place.place.put_file(&file, &path).unwrap();
    fs::write(place.stored(&file), b"short").unwrap();
    assert!(matches!(place.read(&file), Err(PlaceError::Damaged { .. })));
    assert!(place.place.put_file(&file, &path).unwrap());
    assert_eq!(place.read(&file).unwrap(), content(5_000));
}

fn manifests_are_listed_read_and_replaced(place: &Empty) {
    let (file, path) = place.file("CURRENT", b"x");
    place.place.put_file(&file, &path).unwrap();
    assert!(matches!(place.place.read_manifest("backup-0-1.json"), Err(PlaceError::Missing(_))));
    for (name, text) in [("backup-0-1.json", "one"), ("backup-0-12.json", "two"), ("backup-0-1.json", "three")] {
        place.place.put_manifest(name, text).unwrap();
        assert_eq!(place.place.read_manifest(name).unwrap(), text);
    }
    let mut names = place.place.manifests().unwrap();
    names.sort();
    assert_eq!(names, ["backup-0-1.json", "backup-0-12.json"]);
    assert!(matches!(backups_in(&*place.place), Err(error) if error.to_string().contains("backup-0-1")));
    assert!(BackupManifest::read(&*place.place, "backup-0-1.json").is_err());
}

fn a_place_without_backups_says_so(place: &Empty) {
    let (file, path) = place.file("CURRENT", b"x");
    place.place.put_file(&file, &path).unwrap();
    assert_eq!(place.place.manifests().unwrap(), Vec::<String>::new());
    assert_eq!(check_backups(&*place.place, |_, _| {}).unwrap().files, 0);
}

fn suite(new: impl Fn() -> Empty) {
    for claim in [
        files_come_back_as_they_were_and_are_sent_once,
        what_is_not_what_its_checksum_says_is_never_there,
        a_file_of_another_size_is_found_and_replaced,
        manifests_are_listed_read_and_replaced,
        a_place_without_backups_says_so,
    ] {
        claim(&new());
    }
}

#[test]
fn a_directory_passes_the_suite() {
    suite(|| {
        let work = tempfile::tempdir().unwrap();
        let files = work.path().join("backups");
        Empty { place: open_place(&BackupLocation::Directory(files.clone())).unwrap(), files, work }
    });
}

#[test]
fn a_bucket_passes_the_suite() {
    let server = Bucket::start();
    let count = std::cell::Cell::new(0);
    suite(|| {
        count.set(count.get() + 1);
        let prefix = format!("networks/test-{}", count.get());
        let location = server.url(&prefix).parse().unwrap();
        let place = open_place_with(&location, server.environment()).unwrap();
        Empty { place, files: server.directory(&prefix), work: tempfile::tempdir().unwrap() }
    });
}

fn refused(location: &str, environment: Vec<(String, String)>) -> String {
    let place = open_place_with(&location.parse().unwrap(), environment).unwrap();
    let error = place.manifests().unwrap_err();
    assert!(matches!(error, PlaceError::Unavailable { .. }), "{error:?}");
    told(&error)
}

fn told(error: &PlaceError) -> String {
    let text = error.to_string();
    assert!(!text.contains(SECRET_KEY) && !text.contains('\n') && !text.contains('<'), "{text}");
    println!("{text}");
    text
}

#[test]
fn a_bucket_that_refuses_or_is_not_there_is_told_in_one_sentence_without_a_secret() {
    let server = Bucket::start();
    let with = |name: &str, value: &str| {
        let mut settings = server.environment();
        settings.retain(|(known, _)| known != name);
        settings.push((name.to_owned(), value.to_owned()));
        settings
    };
    let wrong_key = with("AWS_SECRET_ACCESS_KEY", "another");
    assert!(refused(&server.url("a"), wrong_key.clone()).contains("AWS_SECRET_ACCESS_KEY"));
    let work = tempfile::tempdir().unwrap();
    let path = work.path().join("CURRENT");
    fs::write(&path, b"x").unwrap();
    let file = BackupFile { name: "CURRENT".into(), bytes: 1, sum: Digest(keccak256(&[b"x"])) };
    let place = open_place_with(&server.url("a").parse().unwrap(), wrong_key).unwrap();
    assert!(told(&place.put_file(&file, &path).unwrap_err()).contains("AWS_SECRET_ACCESS_KEY"));
    // This server makes a bucket when something is put into it, so only a look finds that there is none.
    assert!(refused("s3://no-such-bucket/a", server.environment()).contains("no such bucket"));
}
