//! Who reads: anyone, or whoever shows a project's reader token.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use lockstep_types::Digest;
use lockstep_types::registry::reader_hash;

/// Longest token that is looked at, in bytes.
const READER_TOKEN_BYTES_MAX: usize = 256;

/// Who reads. Holds a hash, so that it can be kept and printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Viewer {
    /// Hash of the reader token that was shown, whosever it is.
    pub token: Option<Digest>,
}

impl Viewer {
    /// Whoever shows `token`.
    pub fn with_token(token: &str) -> Self {
        Self { token: Some(reader_hash(token)) }
    }

    /// By the header `Authorization: Bearer …`. What is no token opens nothing, and is no reason to refuse a read.
    pub fn of(headers: &HeaderMap) -> Self {
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = shown.and_then(|text| text.strip_prefix("Bearer ")).map(str::trim);
        token.filter(|token| token.len() <= READER_TOKEN_BYTES_MAX).map(Self::with_token).unwrap_or_default()
    }
}

impl<S: Sync> FromRequestParts<S> for Viewer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.headers))
    }
}
