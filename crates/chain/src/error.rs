//! What can go wrong, sorted by what the caller can do about it.

use lockstep_types::Address;

use crate::endpoint::TransferError;

/// Why the chain could not be read. Holds no part of the endpoint's URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// No connection, or one that broke. Retry.
    #[error("the chain's endpoint cannot be reached ({reason}); try again")]
    Unreachable {
        /// The innermost cause, in the words of the system.
        reason: String,
    },
    /// No whole answer in time. Retry, with a smaller `span_max` if it stays so.
    #[error("the chain's endpoint did not answer in time; try again, or lower span_max")]
    Timeout,
    /// The endpoint wants fewer requests, or is in trouble itself. Retry later.
    #[error("the chain's endpoint is busy ({code}); try again later")]
    Busy {
        /// Its HTTP status, or the code of its JSON-RPC error.
        code: i64,
    },
    /// The endpoint does not have the block yet, or not enough blocks on top of it. Retry.
    #[error("block {block} is not confirmed at this endpoint yet; try again")]
    NotYet {
        /// The block that was asked for.
        block: u64,
    },
    /// The chain was reorganised while it was read, or two servers behind the endpoint differ. Retry.
    #[error("the endpoint's answers do not fit together ({what}); read again")]
    Changed {
        /// What does not fit.
        what: &'static str,
    },
    /// Another chain than the one configured. Stop reading until an operator has looked.
    #[error("the endpoint serves chain {found}, not {expected}; correct the endpoint or the chain id")]
    WrongChain {
        /// The configured chain id.
        expected: u64,
        /// What the endpoint says.
        found: u64,
    },
    /// The endpoint refuses the request (credentials, path), or redirects it. Correct the URL.
    #[error("the endpoint answered with HTTP status {status}; check its URL and credentials")]
    Refused {
        /// The HTTP status.
        status: u16,
    },
    /// A JSON-RPC error.
    #[error("the endpoint answered with error {code}: {message}")]
    Rpc {
        /// The error's code.
        code: i64,
        /// Its message, shortened; withheld where it repeats a part of the URL.
        message: String,
    },
    /// An answer beyond the limit.
    #[error("the endpoint's answer is larger than {bytes_max} bytes; lower span_max")]
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// More logs than a range may have. Ask for fewer blocks.
    #[error("more than {logs_max} logs in these blocks; ask for fewer")]
    TooManyLogs {
        /// The limit.
        logs_max: u64,
    },
    /// Not what the method should answer: no Ethereum node, or a broken one.
    #[error("the endpoint's answer to {method} is malformed")]
    Malformed {
        /// The method.
        method: &'static str,
    },
    /// There is no code at a configured address.
    #[error("there is no contract at {address}; correct the address or the chain")]
    NoContract {
        /// The address.
        address: Address,
    },
    /// A range that nobody may ask for. Do not retry.
    #[error("blocks {first} to {last} cannot be read: {reason}")]
    Blocks {
        /// The first block.
        first: u64,
        /// The last block.
        last: u64,
        /// Why.
        reason: &'static str,
    },
    /// The source names no task manager.
    #[error("no task manager is configured")]
    NoTaskManager,
}

impl ChainError {
    /// Whether the same question may be answered later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Timeout | Self::Busy { .. } | Self::NotYet { .. } | Self::Changed { .. }
        )
    }

    /// Whether the same question about fewer blocks may be answered. Endpoints word "too many" in many ways and
    /// share no code for it, so every error of theirs that is not about the rate of requests counts.
    pub(crate) fn may_pass_with_fewer_blocks(&self) -> bool {
        matches!(self, Self::Rpc { .. } | Self::TooLarge { .. })
    }

    pub(crate) fn from_transfer(error: TransferError, bytes_max: usize) -> Self {
        match error {
            TransferError::Unreachable(reason) => Self::Unreachable { reason },
            TransferError::Timeout => Self::Timeout,
            TransferError::TooLarge => Self::TooLarge { bytes_max: bytes_max as u64 },
        }
    }
}

/// Why there is no document. Remembered for a while, so that one device cannot keep the gateway busy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// The device has no URI, or one that was too long or not text.
    #[error("the registry has no usable URI for the device")]
    NoUri,
    /// Neither `ipfs://` nor below the gateway.
    #[error("the URI is not an ipfs:// one, nor below the configured gateway")]
    NotAllowed,
    /// No connection to the gateway, or one that broke.
    #[error("the document gateway cannot be reached ({reason})")]
    Unreachable {
        /// The innermost cause, in the words of the system.
        reason: String,
    },
    /// No whole document in time.
    #[error("the document gateway did not answer in time")]
    Timeout,
    /// Not 200; redirects are not followed.
    #[error("the document gateway answered with HTTP status {status}")]
    Status {
        /// The HTTP status.
        status: u16,
    },
    /// Larger than a document may be.
    #[error("the document is larger than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// Other bytes than those that the registry has the hash of.
    #[error("the document does not have the hash that the registry has for it")]
    WrongHash,
    /// Too many documents are being fetched.
    #[error("too many documents are being fetched; try again")]
    Busy,
}

impl DocumentError {
    /// Whether the document may be there later. What is remembered is not asked again before its time.
    pub fn is_retryable(&self) -> bool {
        // 404: the document may be pinned after the device is registered.
        !matches!(self, Self::NoUri | Self::NotAllowed)
    }

    /// Whether the gateway was asked: what it did is worth remembering.
    pub(crate) fn is_of_gateway(&self) -> bool {
        !matches!(self, Self::NoUri | Self::NotAllowed | Self::Busy)
    }
}

impl From<TransferError> for DocumentError {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Unreachable(reason) => Self::Unreachable { reason },
            TransferError::Timeout => Self::Timeout,
            TransferError::TooLarge => Self::TooLarge { bytes_max: crate::DOCUMENT_BYTES_MAX as u64 },
        }
    }
}
