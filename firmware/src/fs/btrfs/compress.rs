//! What btrfs compresses: extents of at most 128 KiB, by zlib, LZO or zstd.

use alloc::vec;
use alloc::vec::Vec;

use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use ruzstd::io::Read;

use crate::bytes::Bytes;
use crate::{Error, Result};

const ZLIB: u8 = 1;
const LZO: u8 = 2;
const ZSTD: u8 = 3;
/// Longest compressed extent, and what it decompresses to.
const MAX: u64 = 128 << 10;
/// LZO's pieces do not lie over the ends of pages of this size, those of x86.
const PAGE: usize = 4096;

/// `len` as a length of an extent that is compressed.
pub fn checked(len: u64) -> Result<usize> {
    match len {
        // What does not compress is stored a little longer.
        0..=0x2_1000 => Ok(len as usize),
        _ => Err(Error::damaged(format_args!(
            "btrfs has a compressed extent of {len} bytes"
        ))),
    }
}

/// The `whole` bytes that `stored` stands for.
pub fn expand(compression: u8, stored: &[u8], whole: u64) -> Result<Vec<u8>> {
    if whole > MAX {
        return Err(Error::damaged(format_args!(
            "btrfs has a compressed extent of {whole} bytes"
        )));
    }
    let mut out = vec![0; whole as usize];
    let wrong = |how: &str| {
        Error::damaged(format_args!(
            "btrfs has an extent that is not compressed by {how}"
        ))
    };
    match compression {
        0 => {
            let len = out.len().min(stored.len());
            let (to, from) = (out.get_mut(..len), stored.get(..len));
            to.zip(from)
                .into_iter()
                .for_each(|(to, from)| to.copy_from_slice(from));
        }
        ZLIB => {
            // It may be shorter than the range: the rest is zeros. It is never longer.
            let bytes = miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(stored, out.len());
            fill(&mut out, &bytes.map_err(|_| wrong("zlib"))?);
        }
        ZSTD => {
            let (mut decoder, mut input) = (FrameDecoder::new(), stored);
            decoder.set_max_window_size(MAX);
            decoder.reset(&mut input).map_err(|_| wrong("zstd"))?;
            while !decoder.is_finished() && decoder.can_collect() < out.len() {
                let decoded = decoder.decode_blocks(&mut input, BlockDecodingStrategy::UptoBlocks(1));
                decoded.map_err(|_| wrong("zstd"))?;
            }
            let mut at = 0;
            while let Some(rest) = out.get_mut(at..).filter(|rest| !rest.is_empty()) {
                match decoder.read(rest).map_err(|_| wrong("zstd"))? {
                    0 => break,
                    read => at += read,
                }
            }
        }
        LZO => lzo(stored, &mut out)?,
        other => return Err(Error::unsupported(format_args!("btrfs's compression {other}"))),
    }
    Ok(out)
}

fn fill(out: &mut [u8], bytes: &[u8]) {
    out.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
}

/// The length of all, then for each page its length and what LZO1X made of it.
fn lzo(stored: &[u8], out: &mut [u8]) -> Result<()> {
    let bytes = Bytes(stored);
    let end = (bytes.u32(0)? as usize).min(stored.len());
    let mut at = 4;
    for page in out.chunks_mut(PAGE) {
        if PAGE - at % PAGE < 4 {
            at = at.next_multiple_of(PAGE);
        }
        if at + 4 > end {
            break;
        }
        let len = bytes.u32(at)? as usize;
        lzo1x(bytes.slice(at + 4, len)?, page)?;
        at += 4 + len;
    }
    Ok(())
}

/// LZO1X (the Linux kernel's Documentation/staging/lzo.rst).
fn lzo1x(input: &[u8], out: &mut [u8]) -> Result<()> {
    let mut state = Lzo {
        input,
        at: 0,
        out,
        len: 0,
    };
    state
        .run()
        .ok_or_else(|| Error::damaged(format_args!("btrfs has an extent that is not compressed by LZO")))
}

struct Lzo<'a> {
    input: &'a [u8],
    at: usize,
    out: &'a mut [u8],
    len: usize,
}

impl Lzo<'_> {
    fn byte(&mut self) -> Option<usize> {
        let byte = self.input.get(self.at)?;
        self.at += 1;
        Some(usize::from(*byte))
    }

    /// A length whose low bits are in the code; none of them set, it goes on in bytes, of which a zero adds 255.
    fn length(&mut self, code: usize, mask: usize, base: usize) -> Option<usize> {
        if code & mask != 0 {
            return Some((code & mask) + base);
        }
        let mut length = base + mask;
        loop {
            match self.byte()? {
                0 => length += 255,
                last => return Some(length + last),
            }
        }
    }

    fn literals(&mut self, count: usize) -> Option<()> {
        let from = self.input.get(self.at..self.at.checked_add(count)?)?;
        self.out
            .get_mut(self.len..self.len.checked_add(count)?)?
            .copy_from_slice(from);
        self.at += count;
        self.len += count;
        Some(())
    }

    fn copy(&mut self, distance: usize, count: usize) -> Option<()> {
        // Byte by byte: what is copied may reach into what is being written.
        for _ in 0..count {
            let byte = *self.out.get(self.len.checked_sub(distance)?)?;
            *self.out.get_mut(self.len)? = byte;
            self.len += 1;
        }
        Some(())
    }

    fn run(&mut self) -> Option<()> {
        // How many literals the last instruction had: 0 to 3, or 4 for more.
        let mut before = 0;
        if *self.input.first()? > 17 {
            let count = self.byte()? - 17;
            self.literals(count)?;
            before = count.min(4);
        }
        loop {
            let code = self.byte()?;
            let (distance, count, after) = match (code, before) {
                (0..16, 0) => {
                    let count = self.length(code, 15, 3)?;
                    self.literals(count)?;
                    before = 4;
                    continue;
                }
                (0..16, 1..4) => ((self.byte()? << 2) + (code >> 2) + 1, 2, code & 3),
                (0..16, _) => ((self.byte()? << 2) + (code >> 2) + 2049, 3, code & 3),
                (16..32, _) => {
                    let count = self.length(code, 7, 2)?;
                    let low = self.byte()? | self.byte()? << 8;
                    let distance = 16384 + ((code & 8) << 11) + (low >> 2);
                    if distance == 16384 {
                        return Some(());
                    }
                    (distance, count, low & 3)
                }
                (32..64, _) => {
                    let count = self.length(code, 31, 2)?;
                    let low = self.byte()? | self.byte()? << 8;
                    ((low >> 2) + 1, count, low & 3)
                }
                (64..128, _) => (
                    (self.byte()? << 3) + (code >> 2 & 7) + 1,
                    3 + (code >> 5 & 1),
                    code & 3,
                ),
                (_, _) => (
                    (self.byte()? << 3) + (code >> 2 & 7) + 1,
                    5 + (code >> 5 & 3),
                    code & 3,
                ),
            };
            self.copy(distance, count)?;
            self.literals(after)?;
            before = after;
        }
    }
}
