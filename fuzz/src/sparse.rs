//! A disk of which most is zeros, as the firmware reads one.

use std::collections::BTreeMap;
use std::rc::Rc;

use nacelle_firmware::Result;
use nacelle_firmware::io::{ReadAt, Source};

/// Bytes of a sector, in front of which the input has its number (`tests/fuzz` makes seeds so).
const SECTOR: usize = 512;
const RECORD: usize = 4 + SECTOR;
/// Larger than any image that seeds are made of.
const LEN: u64 = 512 << 20;

struct Sparse(BTreeMap<u64, Vec<u8>>);

impl ReadAt for Sparse {
    fn len(&self) -> u64 {
        LEN
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<()> {
        self.check(at, into.len())?;
        into.fill(0);
        let end = at + into.len() as u64;
        for (&sector, bytes) in self.0.range(at / SECTOR as u64..end.div_ceil(SECTOR as u64)) {
            for (place, byte) in (sector * SECTOR as u64..).zip(bytes) {
                if (at..end).contains(&place) {
                    into[(place - at) as usize] = *byte;
                }
            }
        }
        Ok(())
    }
}

/// The disk that `input` describes.
pub fn disk(input: &[u8]) -> Source {
    let record = |record: &[u8]| {
        let (number, bytes) = record.split_at(4);
        let number = u32::from_le_bytes(number.try_into().unwrap());
        (u64::from(number), bytes.to_vec())
    };
    Rc::new(Sparse(input.chunks_exact(RECORD).map(record).collect()))
}
