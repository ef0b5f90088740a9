//! What goes wrong, in words for the one who looks at the serial line.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use core::fmt;

/// Why something could not be had from a disk.
///
/// It is one pointer: every number that is read of a disk may be one of these, and the firmware is small.
#[derive(Clone, PartialEq, Eq)]
pub struct Error(Box<(Kind, String)>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Damaged,
    NotFound,
    Unsupported,
    Other,
}

/// What may fail so.
pub type Result<T> = core::result::Result<T, Error>;

impl Error {
    #[cold]
    #[inline(never)]
    fn new(kind: Kind, what: fmt::Arguments<'_>) -> Error {
        Error(Box::new((kind, what.to_string())))
    }

    /// The disk refused to read `len` bytes at `at`, with this status of the request (virtio 1.2, §5.2.6).
    #[cold]
    pub fn read(at: u64, len: u64, status: u8) -> Error {
        let what = format_args!("the disk did not read {len} bytes at {at} (status {status})");
        Error::new(Kind::Other, what)
    }

    /// A read of `len` bytes at `at`, where the end is `end`.
    #[cold]
    pub fn beyond(at: u64, len: u64, end: u64) -> Error {
        let what = format_args!("{len} bytes at {at} lie beyond the end, {end}");
        Error::new(Kind::Other, what)
    }

    /// What is on the disk contradicts itself.
    #[cold]
    pub fn damaged(what: fmt::Arguments<'_>) -> Error {
        Error::new(Kind::Damaged, what)
    }

    /// There is no file of this name.
    #[cold]
    pub fn not_found(name: &str) -> Error {
        Error::new(Kind::NotFound, format_args!("{name}"))
    }

    /// It is in order, but of a kind that is not read.
    #[cold]
    pub fn unsupported(what: fmt::Arguments<'_>) -> Error {
        Error::new(Kind::Unsupported, what)
    }

    /// It does not fit into the memory that there is.
    #[cold]
    pub fn does_not_fit(what: fmt::Arguments<'_>) -> Error {
        Error::new(Kind::Other, what)
    }

    /// Whether there is no file of that name.
    pub fn is_not_found(&self) -> bool {
        self.0.0 == Kind::NotFound
    }

    /// The same; what is damaged is at `place`.
    #[must_use]
    pub fn at(self, place: &str) -> Error {
        match *self.0 {
            (Kind::Damaged, what) => Error::damaged(format_args!("{place}: {what}")),
            other => Error(Box::new(other)),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, what) = &*self.0;
        let (before, after) = match kind {
            Kind::Damaged => ("damaged: ", ""),
            Kind::NotFound => ("", " is not there"),
            Kind::Unsupported => ("", " is not supported"),
            Kind::Other => ("", ""),
        };
        f.write_str(before)?;
        f.write_str(what)?;
        f.write_str(after)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::error::Error for Error {}
