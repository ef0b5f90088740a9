//! Where bytes come from: a stream, in order, each exactly once, however often a connection breaks.

mod checksum;
#[cfg(feature = "web")]
pub mod http;
#[cfg(feature = "web")]
pub mod registry;
#[cfg(feature = "web")]
pub mod s3;
#[cfg(feature = "web")]
pub mod upload;

use std::io::{self, Read};

pub use checksum::Checksum;

use crate::Result;
use crate::progress::Progress;

/// A stream that is counted, and whose checksum is taken. All of it counts, so it is read to its end by
/// [`finish`](Source::finish).
pub struct Source {
    stream: Box<dyn Read>,
    progress: Progress,
    checksum: Option<Checksum>,
}

impl Source {
    /// The stream, and what its checksum shall be.
    pub fn new(stream: Box<dyn Read>, progress: Progress, checksum: Option<Checksum>) -> Source {
        Source {
            stream,
            progress,
            checksum,
        }
    }

    /// Reads what is left of it, which a format may have, and compares checksums.
    ///
    /// # Errors
    /// The stream fails, or is not what was announced.
    pub fn finish(mut self) -> Result<()> {
        if self.checksum.is_none() {
            return Ok(());
        }
        io::copy(&mut self, &mut io::sink()).map_err(crate::error::io("read the source"))?;
        self.checksum.map_or(Ok(()), Checksum::check)
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.progress.add(count as u64);
        if let Some(checksum) = &mut self.checksum {
            checksum.update(buffer.get(..count).unwrap_or_default());
        }
        Ok(count)
    }
}
