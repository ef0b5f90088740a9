//! What an ELF file asks for beyond its bytes: memory that is zero at the start. Memory that was used before a
//! reset is not.

use nacelle_devices::memory::Memory;
use vm_memory::{Bytes, GuestAddress};

const PT_LOAD: u32 = 1;
const PAGE: usize = 4096;

/// A range of guest memory: start and end.
type Range = (u64, u64);

fn number(bytes: &[u8], offset: usize, len: usize) -> Option<u64> {
    let bytes = bytes.get(offset..offset.checked_add(len)?)?;
    let number = |value, &byte: &u8| value << 8 | u64::from(byte);
    Some(bytes.iter().rev().fold(0, number))
}

/// Where the program headers lie in a file with this header of 64 bytes: offset, size of one, number.
pub(super) fn program_headers(header: &[u8]) -> Option<(u64, usize, usize)> {
    let (offset, size, count) = (
        number(header, 32, 8)?,
        number(header, 54, 2)?,
        number(header, 56, 2)?,
    );
    Some((offset, size as usize, count as usize))
}

/// The ranges that must be zero, by program headers of `size` bytes each.
pub(super) fn zero_ranges(headers: &[u8], size: usize) -> Vec<Range> {
    let range = |header: &[u8]| {
        if number(header, 0, 4)? != u64::from(PT_LOAD) {
            return None;
        }
        let (address, in_file, in_memory) = (
            number(header, 24, 8)?,
            number(header, 32, 8)?,
            number(header, 40, 8)?,
        );
        let range = (address.checked_add(in_file)?, address.checked_add(in_memory)?);
        (range.0 < range.1).then_some(range)
    };
    headers.chunks(size.max(1)).filter_map(range).collect()
}

/// Clears a range; `None` when some of it is no memory. What is zero is left alone, so that the host need not
/// have memory for it.
pub(super) fn clear(memory: &Memory, (start, end): Range) -> Option<()> {
    let mut page = [0; PAGE];
    let mut at = start;
    while at < end {
        let len = (end - at).min(PAGE as u64);
        let bytes = page.get_mut(..len as usize)?;
        memory.read_slice(bytes, GuestAddress(at)).ok()?;
        if bytes.iter().any(|byte| *byte != 0) {
            bytes.fill(0);
            memory.write_slice(bytes, GuestAddress(at)).ok()?;
        }
        at += len;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u32, address: u64, in_file: u64, in_memory: u64) -> Vec<u8> {
        let mut header = vec![0; 56];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        for (at, value) in [(24, address), (32, in_file), (40, in_memory)] {
            header[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        header
    }

    #[test]
    fn what_a_segment_has_beyond_its_file_must_be_zero() {
        let headers = [
            header(4, 0x1000, 0, 0x1000),
            header(PT_LOAD, 0x2000, 0x10, 0x20),
            header(PT_LOAD, 0x3000, 0x10, 0x10),
            header(PT_LOAD, u64::MAX, 1, 2),
            header(PT_LOAD, 0x4000, 0, 0x1800),
        ]
        .concat();
        assert_eq!(zero_ranges(&headers, 56), [(0x2010, 0x2020), (0x4000, 0x5800)]);
        assert_eq!(zero_ranges(&headers[..100], 56), []);
        assert_eq!(zero_ranges(&headers, 0), []);
    }

    #[test]
    fn only_the_range_is_cleared_and_only_where_memory_is() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        memory.write_slice(&[1; 0x4000], GuestAddress(0)).unwrap();
        clear(&memory, (0x0ffe, 0x3002)).unwrap();
        let mut bytes = [0; 0x4000];
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        assert!((0..0x4000).all(|at| bytes[at] == u8::from(!(0xffe..0x3002).contains(&at))));
        assert!(clear(&memory, (0x3000, 0x4001)).is_none());
        assert!(clear(&memory, (0, u64::MAX)).is_none());
    }
}
