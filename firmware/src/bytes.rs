//! Numbers in bytes that came from a disk.

use alloc::string::String;

use crate::{Error, Result};

// What is read here is read everywhere: it is not to be put in each place anew, the firmware is small.
#[cold]
#[inline(never)]
fn short() -> Error {
    Error::damaged(format_args!("a structure ends too early"))
}

/// Bytes, out of which numbers are read; what lies beyond their end is damage, and an error.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// The `len` bytes at `at`.
    ///
    /// # Errors
    /// When they are not all there.
    #[inline(never)]
    pub fn slice(self, at: usize, len: usize) -> Result<&'a [u8]> {
        let end = at.checked_add(len);
        end.and_then(|end| self.0.get(at..end)).ok_or_else(short)
    }

    /// What follows `at`.
    ///
    /// # Errors
    /// When `at` is beyond the end.
    #[inline(never)]
    pub fn from(self, at: usize) -> Result<Bytes<'a>> {
        let rest = self.0.get(at..).map(Bytes);
        rest.ok_or_else(short)
    }

    fn array<const N: usize>(self, at: usize) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.slice(at, N)?);
        Ok(array)
    }

    /// A byte.
    ///
    /// # Errors
    /// As for [`Bytes::slice`]; so it is with all that follow.
    #[inline(never)]
    pub fn u8(self, at: usize) -> Result<u8> {
        self.array::<1>(at).map(|[byte]| byte)
    }

    /// A little-endian number.
    ///
    /// # Errors
    /// As for [`Bytes::slice`].
    #[inline(never)]
    pub fn u16(self, at: usize) -> Result<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    /// A little-endian number.
    ///
    /// # Errors
    /// As for [`Bytes::slice`].
    #[inline(never)]
    pub fn u32(self, at: usize) -> Result<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    /// A little-endian number.
    ///
    /// # Errors
    /// As for [`Bytes::slice`].
    #[inline(never)]
    pub fn u64(self, at: usize) -> Result<u64> {
        self.array(at).map(u64::from_le_bytes)
    }

    /// A big-endian number.
    ///
    /// # Errors
    /// As for [`Bytes::slice`].
    #[inline(never)]
    pub fn be16(self, at: usize) -> Result<u16> {
        self.array(at).map(u16::from_be_bytes)
    }

    /// A big-endian number.
    ///
    /// # Errors
    /// As for [`Bytes::slice`].
    #[inline(never)]
    pub fn be32(self, at: usize) -> Result<u32> {
        self.array(at).map(u32::from_be_bytes)
    }

    /// A big-endian number.
    ///
    /// # Errors
    /// As for [`Bytes::slice`].
    #[inline(never)]
    pub fn be64(self, at: usize) -> Result<u64> {
        self.array(at).map(u64::from_be_bytes)
    }

    /// Text of at most `len` bytes at `at`, up to a zero.
    ///
    /// # Errors
    /// As for [`Bytes::slice`].
    #[inline(never)]
    pub fn text(self, at: usize, len: usize) -> Result<String> {
        let bytes = self.slice(at, len)?;
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(text).trim_end().into())
    }

    /// A UUID (RFC 9562) at `at`, its bytes in the order in which they are written.
    ///
    /// # Errors
    /// As for [`Bytes::slice`].
    #[inline(never)]
    pub fn uuid(self, at: usize) -> Result<String> {
        use core::fmt::Write;
        let mut text = String::new();
        for (i, byte) in self.slice(at, 16)?.iter().enumerate() {
            if [4, 6, 8, 10].contains(&i) {
                text.push('-');
            }
            // Text takes everything.
            let _ = write!(text, "{byte:02x}");
        }
        Ok(text)
    }
}
