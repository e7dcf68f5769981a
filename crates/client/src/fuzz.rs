//! What the fuzz targets call: the readers of a node's answers, and of the outbox's file. Not for anybody else.

use bytes::Bytes;
use hyper::StatusCode;

use crate::feed::{Event, status_in};
use crate::node::Answer;
use crate::outbox::record::{find_frame, frame, read_frame, read_header};
use crate::outcome::failure_of;
use crate::url::Endpoint;

/// An outbox's id, for [`outbox`].
pub const OUTBOX: [u8; 16] = [7; 16];

/// An event of a feed.
pub fn event(text: &str) -> bool {
    let event = Event::parse(text);
    assert!(event.data.len() <= text.len() && event.name.len() <= text.len());
    let _ = status_in(event.data.as_bytes());
    event != Event::default()
}

/// What a node answers instead of 200.
pub fn refusal(status: u16, body: Bytes) -> bool {
    let Ok(status) = StatusCode::from_u16(status) else { return false };
    let _ = failure_of("http://127.0.0.1:1", &Answer { status, retry_after: None, body });
    true
}

/// A node's address, as a user gives it.
pub fn url(text: &str) -> bool {
    Endpoint::parse(text).is_ok_and(|endpoint| {
        assert_eq!(Endpoint::parse(&endpoint.url).ok().as_ref(), Some(&endpoint));
        true
    })
}

/// The file of an outbox: frames up to the first that is none, and where the next one begins.
pub fn outbox(bytes: &[u8]) -> usize {
    let _ = read_header(bytes);
    let (mut at, mut count) = (0, 0);
    while let Some((record, end)) = read_frame(&OUTBOX, bytes, at) {
        assert_eq!(frame(&OUTBOX, &record), bytes[at..end], "a frame has one form");
        assert!(end > at && end <= bytes.len());
        (at, count) = (end, count + 1);
    }
    // Looks at every place, so not at all of a long one.
    let tail = &bytes[bytes.len().saturating_sub(256)..];
    assert!(find_frame(&OUTBOX, tail, 0).is_none_or(|found| read_frame(&OUTBOX, tail, found).is_some()));
    count
}

/// Two frames of an outbox.
pub fn outbox_seed(id: &[u8; 16]) -> Vec<u8> {
    use crate::outbox::record::Record;
    [frame(id, &Record::Offered(vec![1, 2])), frame(id, &Record::Done(vec![1]))].concat()
}
