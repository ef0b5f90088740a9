//! VMDK, VMware's "Virtual Disk Format 5.0": one sparse extent with its description inside, plain or compressed
//! (streamOptimized).

use super::{Header, Image, Input, Place, Tables, exactly, inflate, place};
use crate::error::{io as doing, refused};
use crate::{Error, Result};

const SECTOR: u64 = 512;
/// Where the directory is named at the end of the file.
const AT_END: u64 = u64::MAX;
/// Flags of the header.
const ZEROED_GRAINS: u32 = 1 << 2;
const COMPRESSED: u32 = 1 << 16;
/// What is before the data of a compressed grain: its sector, its length.
const MARKER: usize = 12;
/// Bytes of a description that are read.
const DESCRIPTION: u64 = 64 << 10;

pub(super) struct Vmdk<'a> {
    input: &'a dyn Input,
    directory: Tables<'a>,
    tables: Tables<'a>,
    directory_at: u64,
    sectors: u64,
    grain: u64,
    per_table: u64,
    flags: u32,
}

impl<'a> Vmdk<'a> {
    pub(super) fn open(input: &'a dyn Input) -> Result<Self> {
        let mut bytes = exactly(input, 0, 512)?;
        describe(input, &Header(&bytes))?;
        if Header(&bytes).le64(56)? == AT_END {
            // A copy of the header with the directory's place, before the marker of the end.
            let end = input.size().map_err(doing("read the image"))?;
            bytes = exactly(input, end.saturating_sub(1024), 512)?;
            if !bytes.starts_with(b"KDMV") {
                return refused("it was cut: its footer is missing");
            }
        }
        let header = Header(&bytes);
        let version = header.le32(4)?;
        if !(1..=3).contains(&version) {
            return refused(format!("VMDK of version {version} is not supported"));
        }
        let (flags, sectors, grain) = (header.le32(8)?, header.le64(12)?, header.le64(20)?);
        let (per_table, algorithm) = (header.le32(44)?, header.le16(77)?);
        if !grain.is_power_of_two() || grain > 4096 || !(1..=512).contains(&per_table) {
            return refused(format!(
                "grains of {grain} sectors, {per_table} a table, are not VMDK's"
            ));
        }
        if flags & COMPRESSED != 0 && algorithm != 1 {
            return refused(format!(
                "it is compressed in a way that is not known ({algorithm})"
            ));
        }
        let beyond = || Error::Image("it claims to be larger than any disk".into());
        Ok(Vmdk {
            input,
            directory: Tables::new(input),
            tables: Tables::new(input),
            directory_at: place(0, header.le64(56)?, SECTOR)?,
            sectors: sectors.checked_mul(SECTOR).ok_or_else(beyond)? / SECTOR,
            grain: grain * SECTOR,
            per_table: per_table.into(),
            flags,
        })
    }
}

/// Looks at the description: an image must be whole.
fn describe(input: &dyn Input, header: &Header<'_>) -> Result<()> {
    let (at, len) = (header.le64(28)?, header.le64(36)?);
    if at == 0 {
        return refused("it is one extent of several; convert it to one file (streamOptimized)");
    }
    let len = len.saturating_mul(SECTOR).min(DESCRIPTION);
    let bytes = exactly(
        input,
        place(0, at, SECTOR)?,
        usize::try_from(len).unwrap_or_default(),
    )?;
    let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
    let value = |key: &str| {
        text.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name.trim() == key).then(|| value.trim_matches(['"', ' ', '\r', '\0']).to_owned())
        })
    };
    let kind = value("createtype").unwrap_or_default();
    if !["monolithicsparse", "streamoptimized"].contains(&kind.as_str()) {
        return refused(format!(
            "VMDK of type {kind:?} is not supported; convert it to one file (streamOptimized)"
        ));
    }
    if value("parentcid").is_some_and(|parent| parent != "ffffffff") || value("parentfilenamehint").is_some()
    {
        return refused("it has invalid backing file: an image must be whole; flatten it (qemu-img convert)");
    }
    Ok(())
}

impl Image for Vmdk<'_> {
    fn size(&self) -> u64 {
        self.sectors * SECTOR
    }

    fn block(&self) -> u64 {
        self.grain
    }

    fn find(&mut self, index: u64, held: &mut Vec<u8>) -> Result<Place> {
        let directory = place(self.directory_at, index / self.per_table, 4)?;
        let table = u64::from(u32::from_le_bytes(self.directory.entry(directory)?));
        if table == 0 {
            return Ok(Place::Hole);
        }
        let entry = place(table * SECTOR, index % self.per_table, 4)?;
        let at = match u32::from_le_bytes(self.tables.entry(entry)?) {
            0 => return Ok(Place::Hole),
            1 if self.flags & ZEROED_GRAINS != 0 => return Ok(Place::Hole),
            sector => u64::from(sector) * SECTOR,
        };
        if self.flags & COMPRESSED == 0 {
            return Ok(Place::At(at));
        }
        let marker = exactly(self.input, at, MARKER)?;
        let (sector, len) = (Header(&marker).le64(0)?, Header(&marker).le32(8)?);
        // What does not compress grows by less than this.
        if sector.checked_mul(SECTOR) != index.checked_mul(self.grain) || u64::from(len) > self.grain * 2 {
            return refused("a compressed grain of it is not where its tables say");
        }
        let packed = exactly(self.input, at + MARKER as u64, len as usize)?;
        // The last grain may be shorter.
        let len = self.grain.min(self.size() - index * self.grain);
        inflate(&packed, true, len, held)?;
        Ok(Place::Held)
    }
}
