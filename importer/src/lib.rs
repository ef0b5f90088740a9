//! Fills a volume with a disk.
//!
//! - [`source`] are where the bytes come from, in order: the web, a registry, a file.
//! - [`unpack`] takes off what is around an image: compression, archives.
//! - [`image`] reads the formats of disks. Readers are bounded: an image may come from anybody.
//! - [`target`] is the volume: a file or a block device, written sparse.
//! - [`import`] puts them together.
//! - [`archive`] fills a volume with files instead.
//!
//! What is not a disk as it is goes to a scratch file first, as its tables lie anywhere.
#![forbid(unsafe_code)]

pub mod archive;
mod error;
pub mod image;
pub mod import;
pub mod progress;
pub mod source;
pub mod target;
pub mod unpack;

pub use error::{Error, Result};
