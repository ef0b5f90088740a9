//! What can go wrong, for people.

use std::io;

/// Why a volume could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source does not give what it should.
    #[error("cannot fetch {what}: {reason}")]
    Source {
        /// Its address, without what is secret in it.
        what: String,
        /// What it said.
        reason: String,
    },
    /// What came is not what was announced.
    #[error("checksum mismatch: the source has {found}, wanted is {wanted}")]
    Checksum {
        /// As was asked for, with its algorithm.
        wanted: String,
        /// As it is.
        found: String,
    },
    /// The image is damaged, or of a kind that is not taken.
    #[error("the image is refused: {0}")]
    Image(String),
    /// The disk has no room.
    #[error(
        "virtual image size {size} is larger than the reported available storage {room}. A larger PVC is required"
    )]
    TooLarge {
        /// Bytes of the disk, as far as they are known.
        size: u64,
        /// Bytes that there are.
        room: u64,
    },
    /// A file or the stream.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why not.
        source: io::Error,
    },
}

/// Result of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Says what was being done.
pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io {
        doing: doing.into(),
        source,
    }
}

/// An image that is refused.
pub(crate) fn refused<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::Image(why.into()))
}
