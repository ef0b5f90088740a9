//! Formats of disk images, read only. Each is a map from the disk's blocks to places in the file, read where it is needed:
//! no table is ever held whole, so that memory does not depend on what an image claims.

mod qcow2;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::error::{io as doing, refused};
use crate::target::Target;
use crate::{Error, Result};

pub use vhd::fixed as fixed_vhd;

/// Bytes of a file that are enough to know its format.
pub const HEAD: usize = 4096;
/// Bytes of a table that are read at once.
const WINDOW: usize = 64 << 10;
/// Bytes of the disk that are copied at once.
const COPY: u64 = 1 << 20;
/// The largest block of any format: that of VHDX.
const MAX_BLOCK: u64 = 256 << 20;

/// Where an image is.
pub trait Input {
    /// Fills `buffer` from `offset`; how much of it the image has.
    ///
    /// # Errors
    /// It cannot be read.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Bytes of the image.
    ///
    /// # Errors
    /// It cannot be asked.
    fn size(&self) -> io::Result<u64>;
}

impl Input for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match FileExt::read_at(self, rest, offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl Input for Vec<u8> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let rest = self.get(from..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(rest) {
            *to = *from;
        }
        Ok(count)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(Vec::len(self) as u64)
    }
}

/// What a file is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The disk as it is, or anything else.
    Raw,
    /// QEMU.
    Qcow2,
    /// VMware: a sparse extent in one file.
    Vmdk,
    /// VirtualBox.
    Vdi,
    /// Virtual PC, Azure: the dynamic kind; a fixed one is raw with a footer.
    Vhd,
    /// Hyper-V.
    Vhdx,
}

impl Format {
    /// Of the file that begins with these bytes.
    ///
    /// # Errors
    /// It is of a format that is known and not read.
    pub fn of(head: &[u8]) -> Result<Format> {
        let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
        for (magic, name) in [
            (&b"COWD"[..], "VMDK of ESX 2"),
            (
                b"# Disk DescriptorFile",
                "VMDK description without its extents; convert it to one file (streamOptimized)",
            ),
            (b"QED\0", "QED"),
            (b"WithoutFreeSpace", "Parallels"),
            (b"WithouFreSpacExt", "Parallels"),
            (b"LUKS\xba\xbe", "LUKS, encrypted"),
        ] {
            if at(0, magic) {
                return refused(format!("its format is not supported: {name}"));
            }
        }
        Ok(match () {
            () if at(0, b"QFI\xfb") => Format::Qcow2,
            () if at(0, b"KDMV") => Format::Vmdk,
            () if at(0x40, &0xbeda_107f_u32.to_le_bytes()) => Format::Vdi,
            () if at(0, b"conectix") => Format::Vhd,
            () if at(0, b"vhdxfile") => Format::Vhdx,
            () => Format::Raw,
        })
    }
}

/// Where a block of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: it is zero.
    Hole,
    /// In the file, as it is, from here.
    At(u64),
    /// It was compressed, and is in the buffer now.
    Held,
}

/// A disk in a file.
pub trait Image {
    /// Bytes of the disk.
    fn size(&self) -> u64;
    /// Bytes of a block.
    fn block(&self) -> u64;
    /// Where a block is. `held` takes one that has to be decompressed.
    ///
    /// # Errors
    /// The tables lead nowhere, or the file cannot be read.
    fn find(&mut self, index: u64, held: &mut Vec<u8>) -> Result<Place>;
}

/// Opens an image that is not raw.
///
/// # Errors
/// It is damaged, refers to other files, or is of a kind that is not read.
pub fn open<'a>(format: Format, input: &'a dyn Input) -> Result<Box<dyn Image + 'a>> {
    let image: Box<dyn Image> = match format {
        Format::Raw => return refused("it is raw, which needs no reader"),
        Format::Qcow2 => Box::new(qcow2::Qcow2::open(input)?),
        Format::Vmdk => Box::new(vmdk::Vmdk::open(input)?),
        Format::Vdi => Box::new(vdi::Vdi::open(input)?),
        Format::Vhd => Box::new(vhd::Vhd::open(input)?),
        Format::Vhdx => Box::new(vhdx::Vhdx::open(input)?),
    };
    // What every format must keep to.
    if image.block() == 0 || image.block() > MAX_BLOCK || image.size() > i64::MAX as u64 {
        return refused(format!(
            "a disk of {} bytes in blocks of {} is not possible",
            image.size(),
            image.block()
        ));
    }
    Ok(image)
}

/// Copies the disk to the target; `done` is told how far it is.
///
/// # Errors
/// The disk has no room, the image is damaged, or a file cannot be read or written.
pub fn copy(
    image: &mut dyn Image,
    input: &dyn Input,
    target: &mut Target,
    done: &mut dyn FnMut(u64),
) -> Result<()> {
    let (size, block) = (image.size(), image.block());
    target.must_hold(size)?;
    let end = input.size().map_err(doing("read the image"))?;
    let (mut held, mut buffer) = (Vec::new(), Vec::new());
    // Blocks that follow each other in the file are read together.
    let mut run: Option<(u64, u64, u64)> = None;
    for index in 0..size.div_ceil(block) {
        let offset = index * block;
        let len = block.min(size - offset);
        let place = image.find(index, &mut held)?;
        run = match (run, place) {
            (Some((from, at, have)), Place::At(next))
                if at.checked_add(have) == Some(next) && have < COPY =>
            {
                Some((from, at, have + len))
            }
            (before, place) => {
                if let Some(before) = before {
                    copy_run(input, end, before, &mut buffer, target)?;
                }
                match place {
                    Place::Hole => None,
                    Place::At(at) => Some((offset, at, len)),
                    Place::Held => {
                        let len = usize::try_from(len).unwrap_or(usize::MAX).min(held.len());
                        target.write(offset, held.get(..len).unwrap_or_default())?;
                        None
                    }
                }
            }
        };
        done(offset);
    }
    if let Some(last) = run {
        copy_run(input, end, last, &mut buffer, target)?;
    }
    target.finish(size)
}

/// Copies `len` bytes at `at` of a file of `end` bytes to `offset` of the disk.
fn copy_run(
    input: &dyn Input,
    end: u64,
    (offset, at, len): (u64, u64, u64),
    buffer: &mut Vec<u8>,
    target: &mut Target,
) -> Result<()> {
    let mut done = 0;
    while done < len {
        let from = at.saturating_add(done);
        if from >= end {
            return refused(format!("it ends at byte {end}, and has a block at {from}"));
        }
        let part = COPY.min(len - done);
        buffer.clear();
        buffer.resize(usize::try_from(part).unwrap_or_default(), 0);
        // The last block of a file may be cut short; what is missing is zero.
        input.read_at(buffer, from).map_err(doing("read the image"))?;
        target.write(offset + done, buffer)?;
        done += part;
        if from.saturating_add(part) >= end {
            break;
        }
    }
    Ok(())
}

/// Bytes of a header.
pub(crate) struct Header<'a>(pub(crate) &'a [u8]);

impl Header<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk());
        bytes
            .copied()
            .ok_or_else(|| Error::Image("it ends within its header".into()))
    }

    fn be32(&self, at: usize) -> Result<u32> {
        self.bytes(at).map(u32::from_be_bytes)
    }

    fn be64(&self, at: usize) -> Result<u64> {
        self.bytes(at).map(u64::from_be_bytes)
    }

    fn le16(&self, at: usize) -> Result<u16> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    fn le32(&self, at: usize) -> Result<u32> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    fn le64(&self, at: usize) -> Result<u64> {
        self.bytes(at).map(u64::from_le_bytes)
    }
}

/// The bytes from `offset`, all of them.
fn exactly(input: &dyn Input, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let got = input
        .read_at(&mut bytes, offset)
        .map_err(doing("read the image"))?;
    if got < len {
        return refused(format!(
            "it ends before byte {}",
            offset.saturating_add(len as u64)
        ));
    }
    Ok(bytes)
}

/// What is read of tables: one window of the file.
struct Tables<'a> {
    input: &'a dyn Input,
    window: Vec<u8>,
    from: u64,
}

impl<'a> Tables<'a> {
    fn new(input: &'a dyn Input) -> Self {
        Tables {
            input,
            window: Vec::new(),
            from: 0,
        }
    }

    /// The entry at a place of the file.
    fn entry<const N: usize>(&mut self, at: u64) -> Result<[u8; N]> {
        if let Some(entry) = self.held(at) {
            return Ok(entry);
        }
        self.window.clear();
        self.window.resize(WINDOW, 0);
        self.from = at;
        let got = self
            .input
            .read_at(&mut self.window, at)
            .map_err(doing("read the image"))?;
        self.window.truncate(got);
        self.held(at)
            .ok_or_else(|| Error::Image(format!("it ends before its table at byte {at}")))
    }

    fn held<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        let at = usize::try_from(at.checked_sub(self.from)?).ok()?;
        self.window.get(at..)?.first_chunk().copied()
    }
}

/// `base + index * size`, within what offsets can be.
fn place(base: u64, index: u64, size: u64) -> Result<u64> {
    let place = index
        .checked_mul(size)
        .and_then(|offset| base.checked_add(offset));
    place.ok_or_else(|| Error::Image("a table lies beyond the end of all files".into()))
}

/// The raw deflate stream, or that with a header of zlib, of a block; exactly `len` bytes.
fn inflate(packed: &[u8], zlib: bool, len: u64, held: &mut Vec<u8>) -> Result<()> {
    let len = usize::try_from(len).unwrap_or_default();
    held.clear();
    held.reserve_exact(len);
    let mut inflate = flate2::Decompress::new(zlib);
    let done = inflate.decompress_vec(packed, held, flate2::FlushDecompress::Finish);
    if done.is_err() || held.len() < len {
        return refused("a compressed block of it is damaged");
    }
    held.truncate(len);
    Ok(())
}
