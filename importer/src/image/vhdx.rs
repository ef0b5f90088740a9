//! VHDX, \[MS-VHDX\]: two headers of which the newer counts, regions, metadata, a table of blocks.

use super::{Header, Image, Input, Place, Tables, exactly, place};
use crate::error::refused;
use crate::{Error, Result};

const MIB: u64 = 1 << 20;
/// Where the two headers and the two tables of regions are.
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const REGIONS: [u64; 2] = [192 << 10, 256 << 10];
/// Bytes of a table of regions or of metadata.
const TABLE: usize = 64 << 10;

/// Identifiers as they are in the file.
const BAT: [u8; 16] = guid(0x2dc2_7766, 0xf623, 0x4200, *b"\x9d\x64\x11\x5e\x9b\xfd\x4a\x08");
const METADATA: [u8; 16] = guid(0x8b7c_a206, 0x4790, 0x4b9a, *b"\xb8\xfe\x57\x5f\x05\x0f\x88\x6e");
const PARAMETERS: [u8; 16] = guid(0xcaa1_6737, 0xfa36, 0x4d43, *b"\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b");
const SIZE: [u8; 16] = guid(0x2fa5_4224, 0xcd1b, 0x4876, *b"\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8");
const SECTOR: [u8; 16] = guid(0x8141_bf1d, 0xa96f, 0x4709, *b"\xba\x47\xf2\x33\xa8\xfa\xab\x5f");

const fn guid(a: u32, b: u16, c: u16, rest: [u8; 8]) -> [u8; 16] {
    let ([a0, a1, a2, a3], [b0, b1], [c0, c1]) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    let [d0, d1, d2, d3, d4, d5, d6, d7] = rest;
    [a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d2, d3, d4, d5, d6, d7]
}

pub(super) struct Vhdx<'a> {
    table: Tables<'a>,
    table_at: u64,
    table_len: u64,
    block: u64,
    /// Blocks between two entries of the table that are for bitmaps.
    chunk: u64,
    size: u64,
}

impl<'a> Vhdx<'a> {
    pub(super) fn open(input: &'a dyn Input) -> Result<Self> {
        let mut newest: Option<(u64, [u8; 16])> = None;
        for at in HEADERS {
            let bytes = exactly(input, at, 4096)?;
            let header = Header(&bytes);
            if bytes.starts_with(b"head") && header.le32(4)? == checksum(&bytes) {
                let sequence = header.le64(8)?;
                if newest.is_none_or(|(other, _)| sequence > other) {
                    newest = Some((sequence, header.bytes(48)?));
                }
            }
        }
        let Some((_, log)) = newest else {
            return refused("neither of its headers is whole");
        };
        if log != [0; 16] {
            return refused("it was not closed cleanly; open it once with what made it");
        }
        let regions = regions(input)?;
        let find = |id: &[u8; 16]| -> Result<(u64, u64)> {
            let count = Header(&regions).le32(8)?.min(2047) as usize;
            entry(&regions, 16, count, id)?
                .map(|at| {
                    Ok((
                        Header(&regions).le64(at + 16)?,
                        Header(&regions).le32(at + 24)?.into(),
                    ))
                })
                .unwrap_or_else(|| refused("a region of it is missing"))
        };
        let (metadata_at, _) = find(&METADATA)?;
        let (table_at, table_len) = find(&BAT)?;
        let metadata = exactly(input, metadata_at, TABLE)?;
        if !metadata.starts_with(b"metadata") {
            return refused("its metadata is damaged");
        }
        let item = |id: &[u8; 16]| -> Result<Vec<u8>> {
            let count = Header(&metadata).le16(10)?.min(2047).into();
            let at = entry(&metadata, 32, count, id)?;
            let at = at.ok_or_else(|| Error::Image("a part of its metadata is missing".into()))?;
            exactly(
                input,
                place(metadata_at, Header(&metadata).le32(at + 16)?.into(), 1)?,
                8,
            )
        };
        let parameters = item(&PARAMETERS)?;
        let (block, flags) = (
            u64::from(Header(&parameters).le32(0)?),
            Header(&parameters).le32(4)?,
        );
        let (size, sector) = (
            Header(&item(&SIZE)?).le64(0)?,
            u64::from(Header(&item(&SECTOR)?).le32(0)?),
        );
        if flags & 2 != 0 {
            return refused("it has invalid backing file: a VHDX must be whole, not a difference to another");
        }
        if !block.is_power_of_two() || !(MIB..=256 * MIB).contains(&block) || ![512, 4096].contains(&sector) {
            return refused(format!(
                "blocks of {block} bytes and sectors of {sector} are not VHDX's"
            ));
        }
        Ok(Vhdx {
            table: Tables::new(input),
            table_at,
            table_len,
            block,
            chunk: (sector << 23) / block,
            size,
        })
    }
}

/// The table of regions: the first that is whole.
fn regions(input: &dyn Input) -> Result<Vec<u8>> {
    for at in REGIONS {
        let bytes = exactly(input, at, TABLE)?;
        if bytes.starts_with(b"regi") && Header(&bytes).le32(4)? == checksum(&bytes) {
            return Ok(bytes);
        }
    }
    refused("neither of its tables of regions is whole")
}

/// Where the entry of 32 bytes is that begins with `id`.
fn entry(table: &[u8], from: usize, count: usize, id: &[u8; 16]) -> Result<Option<usize>> {
    for at in (from..).step_by(32).take(count) {
        if Header(table).bytes::<16>(at)? == *id {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// CRC-32C of a structure whose own field, at byte 4, counts as zero.
fn checksum(bytes: &[u8]) -> u32 {
    let own = |at: usize| (4..8).contains(&at);
    !bytes.iter().enumerate().fold(u32::MAX, |sum, (at, byte)| {
        let byte = if own(at) { 0 } else { *byte };
        (0..8).fold(sum ^ u32::from(byte), |sum, _| {
            (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg())
        })
    })
}

impl Image for Vhdx<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn block(&self) -> u64 {
        self.block
    }

    fn find(&mut self, index: u64, _: &mut Vec<u8>) -> Result<Place> {
        let at = place(0, index + index / self.chunk, 8)?;
        if at.saturating_add(8) > self.table_len {
            return refused("its table is shorter than the disk");
        }
        let entry = u64::from_le_bytes(self.table.entry(place(self.table_at, at, 1)?)?);
        match entry & 7 {
            // Not there, undefined, zero, given back.
            0..=3 => Ok(Place::Hole),
            6 => Ok(Place::At(entry & !(MIB - 1))),
            state => refused(format!(
                "a block of it is in the state {state}, which a whole disk does not have"
            )),
        }
    }
}
