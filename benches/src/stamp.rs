//! A kernel that says when it is entered. Some bytes of machine code are put before its entry points, as a segment of
//! their own behind the kernel: they write a byte to the serial port's register, which every monitor has, and go on.
//! The same kernel file then tells the same moment under every monitor.

use crate::error::{Error, Result};

/// What the serial line carries when the kernel is entered, and when init is.
pub const KERNEL: u8 = 2;
/// The guest program's own, of `guest/src/main.rs`.
pub const INIT: u8 = 3;
/// And each millisecond that a guest runs which is moved.
pub const TICK: u8 = 4;

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const LOAD: u32 = 1;
const NOTE: u32 = 4;
/// XEN_ELFNOTE_PHYS32_ENTRY: where a PVH loader enters, in 32-bit mode.
const PVH_ENTRY: u32 = 18;
/// `mov dx, 0x3f8; mov al, KERNEL; out dx, al; jmp ...`: the same bytes in 32-bit and in 64-bit mode, and no register
/// that a boot protocol uses.
const CODE: [u8; 8] = [0x66, 0xba, 0xf8, 0x03, 0xb0, KERNEL, 0xee, 0xe9];
const CODE_LENGTH: usize = CODE.len() + 4;

/// A little-endian number of a file.
trait Bytes {
    fn number(&self, at: usize, len: usize) -> Result<u64>;
}

impl Bytes for [u8] {
    fn number(&self, at: usize, len: usize) -> Result<u64> {
        let bytes = at.checked_add(len).and_then(|end| self.get(at..end));
        let bytes = bytes.ok_or_else(|| wrong("it ends too early"))?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

fn wrong(why: &str) -> Error {
    Error::Kernel(why.to_owned())
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) -> Result<()> {
    let place = file
        .get_mut(at..at + bytes.len())
        .ok_or_else(|| wrong("it ends too early"))?;
    place.copy_from_slice(bytes);
    Ok(())
}

/// The ELF file `kernel` with stamps at its entries.
///
/// # Errors
/// When it is no 64-bit ELF file, or has no room for one more program header.
pub fn stamped(kernel: &[u8]) -> Result<Vec<u8>> {
    if !kernel.starts_with(b"\x7fELF\x02\x01") {
        return Err(wrong("it is no 64-bit ELF file (a vmlinux, not a bzImage)"));
    }
    let mut file = kernel.to_vec();
    let entry = file.number(24, 8)?;
    let table =
        usize::try_from(file.number(32, 8)?).map_err(|_| wrong("its program headers are beyond reach"))?;
    let count = file.number(56, 2)? as usize;
    let end = count
        .checked_mul(PROGRAM_HEADER)
        .and_then(|length| table.checked_add(length));
    let end = end
        .filter(|_| table >= HEADER)
        .ok_or_else(|| wrong("its program headers are beyond reach"))?;

    let (mut top, mut note) = (0, None);
    for header in (table..end).step_by(PROGRAM_HEADER) {
        let (kind, offset) = (file.number(header, 4)? as u32, file.number(header + 8, 8)?);
        let (address, filled, size) = (
            file.number(header + 24, 8)?,
            file.number(header + 32, 8)?,
            file.number(header + 40, 8)?,
        );
        match kind {
            LOAD => {
                top = top.max(
                    address
                        .checked_add(size)
                        .ok_or_else(|| wrong("a segment is beyond reach"))?,
                )
            }
            NOTE => note = note.or(pvh_entry(&file, offset as usize, filled as usize)?),
            _ => {}
        }
    }
    let room = file.get(end..end + PROGRAM_HEADER);
    if room.is_none_or(|room| room.iter().any(|byte| *byte != 0)) {
        return Err(wrong("it has no room for one more program header"));
    }
    let place = top.next_multiple_of(4096);
    let code = u32::try_from(place).ok().filter(|place| *place < 1 << 30);
    let code = code.ok_or_else(|| wrong("it is loaded above 1 GiB"))?;

    let mut stub = jump(code, entry)?;
    put(&mut file, 24, &u64::from(code).to_le_bytes())?;
    if let Some((at, pvh)) = note {
        stub.extend(jump(code + CODE_LENGTH as u32, pvh)?);
        put(&mut file, at, &(code + CODE_LENGTH as u32).to_le_bytes())?;
    }
    let offset = file.len().next_multiple_of(4096);
    file.resize(offset, 0);
    let words = [
        offset as u64,
        place,
        place,
        stub.len() as u64,
        stub.len() as u64,
        4096,
    ];
    // Readable, writable, executable.
    let header = [LOAD.to_le_bytes(), 7u32.to_le_bytes()].into_iter().flatten();
    let header: Vec<u8> = header
        .chain(words.iter().flat_map(|word| word.to_le_bytes()))
        .collect();
    put(&mut file, end, &header)?;
    put(&mut file, 56, &(count as u16 + 1).to_le_bytes())?;
    file.extend(stub);
    Ok(file)
}

/// The code for `place`, which goes on at `target`.
fn jump(place: u32, target: u64) -> Result<Vec<u8>> {
    let target = u32::try_from(target).map_err(|_| wrong("it is entered above 4 GiB"))?;
    let distance = target.wrapping_sub(place + CODE_LENGTH as u32);
    Ok([&CODE[..], &distance.to_le_bytes()].concat())
}

/// Where in the file the PVH entry is written, and the entry.
fn pvh_entry(file: &[u8], start: usize, length: usize) -> Result<Option<(usize, u64)>> {
    let mut at = start;
    while at + 12 <= start.saturating_add(length) {
        let (name, data) = (file.number(at, 4)? as usize, file.number(at + 4, 4)? as usize);
        let kind = file.number(at + 8, 4)? as u32;
        let value = at + 12 + name.next_multiple_of(4);
        if kind == PVH_ENTRY && file.get(at + 12..at + 16) == Some(b"Xen\0") {
            return Ok(Some((value, file.number(value, data.min(8))?)));
        }
        at = value + data.next_multiple_of(4);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel at 16 MiB, entered there, and 32 bytes later by PVH.
    fn kernel(room: u8) -> Vec<u8> {
        let header = |kind: u32, offset: u64, size: u64| {
            let words = [offset, 0x100_0000, 0x100_0000, size, size, 4];
            let words = words.iter().flat_map(|word| word.to_le_bytes());
            kind.to_le_bytes()
                .into_iter()
                .chain(5u32.to_le_bytes())
                .chain(words)
                .collect::<Vec<u8>>()
        };
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        file.extend([0x100_0000u64, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
        file.extend(
            [0u16, 0, 64, 56, 2, 0, 0, 0]
                .iter()
                .flat_map(|half| half.to_le_bytes()),
        );
        file.extend(header(LOAD, 512, 100));
        file.extend(header(NOTE, 256, 24));
        file.push(room);
        file.resize(256, 0);
        file.extend([4u32, 8, PVH_ENTRY].iter().flat_map(|word| word.to_le_bytes()));
        file.extend(b"Xen\0");
        file.extend(0x100_0020u64.to_le_bytes());
        file.resize(612, 0x90);
        file
    }

    /// Where the code at this address goes on.
    fn target(file: &[u8], address: u64) -> u64 {
        let offset = file.number(64 + 2 * 56 + 8, 8).unwrap();
        let place = file.number(64 + 2 * 56 + 24, 8).unwrap();
        let code = (offset + address - place) as usize;
        assert_eq!(file[code..code + CODE.len()], CODE);
        let distance = file.number(code + CODE.len(), 4).unwrap() as i32;
        (address as i64 + CODE_LENGTH as i64 + i64::from(distance)) as u64
    }

    #[test]
    fn both_entries_are_stamped_and_go_on_where_they_did() {
        let file = stamped(&kernel(0)).unwrap();
        assert_eq!(file.number(56, 2).unwrap(), 3);
        let (entry, pvh) = (file.number(24, 8).unwrap(), file.number(256 + 16, 8).unwrap());
        assert_eq!((entry, pvh), (0x100_1000, 0x100_100c));
        assert_eq!(target(&file, entry), 0x100_0000);
        assert_eq!(target(&file, pvh), 0x100_0020);
    }

    #[test]
    fn what_cannot_be_stamped_is_said() {
        let said = |file: &[u8]| stamped(file).unwrap_err().to_string();
        assert!(said(b"MZ").contains("no 64-bit ELF file"));
        assert!(said(&kernel(0)[..70]).contains("ends too early"));
        assert!(said(&kernel(1)).contains("no room for one more program header"));
    }
}
