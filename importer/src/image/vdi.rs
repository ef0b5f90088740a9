//! VDI, VirtualBox's format: a header, a map with an entry for each block, blocks.

use super::{Header, Image, Input, Place, Tables, exactly, place};
use crate::Result;
use crate::error::refused;

const VERSION: u32 = 0x0001_0001;
/// Entries of the map: no block, or one of zeros.
const FREE: u32 = u32::MAX;
const ZERO: u32 = u32::MAX - 1;

pub(super) struct Vdi<'a> {
    map: Tables<'a>,
    map_at: u64,
    data_at: u64,
    blocks: u64,
    block: u64,
    extra: u64,
    size: u64,
}

impl<'a> Vdi<'a> {
    pub(super) fn open(input: &'a dyn Input) -> Result<Self> {
        let bytes = exactly(input, 0, 512)?;
        let header = Header(&bytes);
        let (version, kind) = (header.le32(0x44)?, header.le32(0x4c)?);
        if version != VERSION {
            return refused(format!("VDI of version {version:#x} is not supported"));
        }
        // 1 grows, 2 has all its blocks; 3 and 4 are made of others.
        if !(1..=2).contains(&kind)
            || bytes
                .get(0x1a8..0x1c8)
                .is_none_or(|ids| ids.iter().any(|byte| *byte != 0))
        {
            return refused("it has invalid backing file: a VDI must be whole, not a snapshot of another");
        }
        let (size, block) = (header.le64(0x170)?, u64::from(header.le32(0x178)?));
        let blocks = u64::from(header.le32(0x180)?);
        if !block.is_power_of_two() || block < 512 || blocks < size.div_ceil(block.max(1)) {
            return refused(format!(
                "{blocks} blocks of {block} bytes do not make its disk of {size}"
            ));
        }
        Ok(Vdi {
            map: Tables::new(input),
            map_at: header.le32(0x154)?.into(),
            data_at: header.le32(0x158)?.into(),
            blocks,
            block,
            extra: header.le32(0x17c)?.into(),
            size,
        })
    }
}

impl Image for Vdi<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn block(&self) -> u64 {
        self.block
    }

    fn find(&mut self, index: u64, _: &mut Vec<u8>) -> Result<Place> {
        match u32::from_le_bytes(self.map.entry(place(self.map_at, index, 4)?)?) {
            FREE | ZERO => Ok(Place::Hole),
            block if u64::from(block) >= self.blocks => refused("its map names a block that is not there"),
            block => place(self.data_at, block.into(), self.block + self.extra)
                .map(|at| Place::At(at + self.extra)),
        }
    }
}
