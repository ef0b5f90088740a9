//! VHD, Microsoft's "Virtual Hard Disk Image Format Specification" 1.0: a footer that is also the header, a table with an
//! entry for each block, blocks that begin with a bitmap. (The bitmap matters to differencing disks alone.)

use super::{Header, Image, Input, Place, Tables, exactly, place};
use crate::Result;
use crate::error::refused;

const SECTOR: u64 = 512;
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;
const UNUSED: u32 = u32::MAX;

/// Bytes of the disk that a footer of 512 bytes describes, where it is that of a fixed VHD: the disk as it is, before it.
pub fn fixed(footer: &[u8]) -> Option<u64> {
    let header = Header(footer);
    let fits = footer.len() == 512 && footer.starts_with(b"conectix") && header.be32(60).ok()? == FIXED;
    (fits && header.be32(64).ok()? == checksum(footer, 64)).then(|| header.be64(48).ok())?
}

/// One's complement of the sum of all bytes but those of the sum itself.
fn checksum(bytes: &[u8], own: usize) -> u32 {
    let others = bytes
        .iter()
        .enumerate()
        .filter(|(at, _)| !(own..own + 4).contains(at));
    !others.fold(0_u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)))
}

pub(super) struct Vhd<'a> {
    table: Tables<'a>,
    table_at: u64,
    entries: u64,
    block: u64,
    bitmap: u64,
    size: u64,
}

impl<'a> Vhd<'a> {
    pub(super) fn open(input: &'a dyn Input) -> Result<Self> {
        let bytes = exactly(input, 0, 512)?;
        let footer = Header(&bytes);
        if footer.be32(64)? != checksum(&bytes, 64) {
            return refused("the checksum of its header is wrong");
        }
        match footer.be32(60)? {
            DYNAMIC => {}
            DIFFERENCING => {
                return refused(
                    "it has invalid backing file: a VHD must be whole, not a difference to another",
                );
            }
            kind => return refused(format!("VHD of type {kind} is not supported")),
        }
        let dynamic = exactly(input, footer.be64(16)?, 1024)?;
        let header = Header(&dynamic);
        if !dynamic.starts_with(b"cxsparse") || header.be32(36)? != checksum(&dynamic, 36) {
            return refused("its second header is damaged");
        }
        let (size, block) = (footer.be64(48)?, u64::from(header.be32(32)?));
        let entries = u64::from(header.be32(28)?);
        if !block.is_power_of_two() || block < SECTOR || entries < size.div_ceil(block.max(1)) {
            return refused(format!(
                "{entries} blocks of {block} bytes do not make its disk of {size}"
            ));
        }
        Ok(Vhd {
            table: Tables::new(input),
            table_at: header.be64(16)?,
            entries,
            block,
            bitmap: (block / SECTOR / 8).next_multiple_of(SECTOR),
            size,
        })
    }
}

impl Image for Vhd<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn block(&self) -> u64 {
        self.block
    }

    fn find(&mut self, index: u64, _: &mut Vec<u8>) -> Result<Place> {
        if index >= self.entries {
            return refused("its table is shorter than the disk");
        }
        match u32::from_be_bytes(self.table.entry(place(self.table_at, index, 4)?)?) {
            UNUSED => Ok(Place::Hole),
            sector => Ok(Place::At(u64::from(sector) * SECTOR + self.bitmap)),
        }
    }
}
