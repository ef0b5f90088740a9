//! qcow2 (QEMU's `docs/interop/qcow2`): two levels of tables, clusters that may be compressed. Neither backing files nor
//! encryption nor data in another file.

use std::io::Read;

use super::{Header, Image, Input, Place, Tables, exactly, inflate, place};
use crate::Result;
use crate::error::refused;

/// Where an offset is in an entry of either level.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Incompatible features: what a reader must understand.
const DIRTY: u64 = 1;
const COMPRESSION: u64 = 1 << 3;

pub(super) struct Qcow2<'a> {
    input: &'a dyn Input,
    l1: Tables<'a>,
    l2: Tables<'a>,
    l1_at: u64,
    l1_size: u64,
    bits: u32,
    size: u64,
    version: u32,
    zstd: bool,
}

impl<'a> Qcow2<'a> {
    pub(super) fn open(input: &'a dyn Input) -> Result<Self> {
        let bytes = exactly(input, 0, 112.min(super::HEAD)).or_else(|_| exactly(input, 0, 72))?;
        let header = Header(&bytes);
        let version = header.be32(4)?;
        if !(2..=3).contains(&version) {
            return refused(format!("qcow2 of version {version} is not supported"));
        }
        if header.be64(8)? != 0 {
            return refused(
                "it has invalid backing file: an image must be whole; flatten it (qemu-img convert)",
            );
        }
        if header.be32(32)? != 0 {
            return refused("it is encrypted");
        }
        let bits = header.be32(20)?;
        if !(9..=21).contains(&bits) {
            return refused(format!("clusters of 2^{bits} bytes are not qcow2's"));
        }
        let features = if version >= 3 { header.be64(72)? } else { 0 };
        let unknown = features & !(DIRTY | COMPRESSION);
        if unknown != 0 {
            return refused(format!(
                "it needs features that are not supported, or is marked corrupt (incompatible features {unknown:#x})"
            ));
        }
        let zstd = features & COMPRESSION != 0 && bytes.get(104) == Some(&1);
        Ok(Qcow2 {
            input,
            l1: Tables::new(input),
            l2: Tables::new(input),
            l1_at: header.be64(40)?,
            l1_size: header.be32(36)?.into(),
            bits,
            size: header.be64(24)?,
            version,
            zstd,
        })
    }

    fn decompress(&self, entry: u64, held: &mut Vec<u8>) -> Result<()> {
        // Low bits are where it is, the others how many sectors more than the first it reaches into.
        let shift = 62 - (self.bits - 8);
        let at = entry & ((1 << shift) - 1);
        let sectors = ((entry & (COMPRESSED - 1)) >> shift) + 1;
        let len = (sectors * 512).saturating_sub(at & 511).min(2 << self.bits);
        let mut packed = vec![0; usize::try_from(len).unwrap_or_default()];
        let got = self
            .input
            .read_at(&mut packed, at)
            .map_err(crate::error::io("read the image"))?;
        packed.truncate(got);
        if !self.zstd {
            return inflate(&packed, false, self.block(), held);
        }
        held.clear();
        let done = ruzstd::decoding::StreamingDecoder::new(packed.as_slice())
            .map_err(|_| ())
            .and_then(|stream| stream.take(self.block()).read_to_end(held).map_err(|_| ()));
        match done {
            Ok(len) if len as u64 == self.block() => Ok(()),
            _ => refused("a compressed block of it is damaged"),
        }
    }
}

impl Image for Qcow2<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn block(&self) -> u64 {
        1 << self.bits
    }

    fn find(&mut self, index: u64, held: &mut Vec<u8>) -> Result<Place> {
        let per_table = 1_u64 << (self.bits - 3);
        let first = index / per_table;
        if first >= self.l1_size {
            return refused("its first table is shorter than the disk");
        }
        let table = u64::from_be_bytes(self.l1.entry(place(self.l1_at, first, 8)?)?) & OFFSET;
        if table == 0 {
            return Ok(Place::Hole);
        }
        let entry = u64::from_be_bytes(self.l2.entry(place(table, index % per_table, 8)?)?);
        if entry & COMPRESSED != 0 {
            self.decompress(entry, held)?;
            return Ok(Place::Held);
        }
        match entry & OFFSET {
            _ if self.version >= 3 && entry & ZERO != 0 => Ok(Place::Hole),
            0 => Ok(Place::Hole),
            at => Ok(Place::At(at)),
        }
    }
}
