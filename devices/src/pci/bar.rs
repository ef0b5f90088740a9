//! Base address registers: 64-bit memory, and the protocol by which software finds their size (PCI 3.0,
//! §6.2.5.1).
//!
//! That protocol needs no code of its own: the address bits below a BAR's size are not writable in
//! configuration space, so that writing ones reads back the size.

use super::config::{ConfigSpace, FIRST_BAR};
use crate::{Error, Result};

/// Bits 2..1 of the register: 64 bits wide; bit 3 clear: not prefetchable, since reads may have effects.
const TYPE_64_BIT: u64 = 0b100;
const FLAGS: u64 = 0xf;
const SMALLEST: u64 = 4096;

/// A stretch of the memory bus where BAR `index` of a function answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarRange {
    /// Number of the (lower) register.
    pub index: u8,
    /// First address.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

/// A 64-bit memory BAR: two registers of configuration space.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    index: u8,
    size: u64,
    home: u64,
}

impl Bar {
    /// Puts a BAR of `size` bytes at registers `index` and `index + 1` of `space`, placed at `home`: there is
    /// no firmware that would place it.
    ///
    /// # Errors
    /// When `size` is no power of two from 4096 on, `home` is not a multiple of it, or the two registers do
    /// not exist.
    pub fn add(space: &mut ConfigSpace, index: u8, size: u64, home: u64) -> Result<Bar> {
        let whole = size.is_power_of_two() && size >= SMALLEST && home.checked_add(size).is_some();
        if !whole || index > 4 || !home.is_multiple_of(size) {
            return Err(Error::Bar {
                index,
                base: home,
                size,
            });
        }
        let bar = Bar { index, size, home };
        space.allow(bar.register(), &(!(size - 1)).to_le_bytes());
        bar.reset(space);
        Ok(bar)
    }

    fn register(&self) -> usize {
        FIRST_BAR + 4 * usize::from(self.index)
    }

    /// Places the BAR where it was at power-on.
    pub fn reset(&self, space: &mut ConfigSpace) {
        space.set(self.register(), &(self.home | TYPE_64_BIT).to_le_bytes());
    }

    /// Where the guest wants the BAR to answer; `None` while memory decoding is off, and where the address
    /// cannot be, as in the middle of sizing.
    pub fn range(&self, space: &ConfigSpace) -> Option<BarRange> {
        let base = space.u64(self.register()) & !FLAGS;
        let possible = space.decodes_memory() && base.checked_add(self.size).is_some();
        possible.then_some(BarRange {
            index: self.index,
            base,
            size: self.size,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::config::{COMMAND, Identity};

    const SIZE: u64 = 0x8000;
    const HOME: u64 = 0x40_0000_0000;

    fn space() -> (ConfigSpace, Bar) {
        let mut space = ConfigSpace::new(Identity {
            vendor: 1,
            device: 2,
            revision: 0,
            class: [0; 3],
            subsystem_vendor: 0,
            subsystem: 0,
        });
        let bar = Bar::add(&mut space, 0, SIZE, HOME).unwrap();
        (space, bar)
    }

    #[test]
    fn writing_ones_reads_back_the_size() {
        let (mut space, _) = space();
        space.write(0x10, &[0xff; 4]);
        space.write(0x14, &[0xff; 4]);
        assert_eq!(space.u64(0x10), !(SIZE - 1) | TYPE_64_BIT);
        assert_eq!(space.u64(0x18), 0, "there is no other BAR");
    }

    #[test]
    fn it_answers_where_it_is_put_while_decoding_is_on() {
        let (mut space, bar) = space();
        assert_eq!(bar.range(&space), None);
        space.write(COMMAND as u16, &[2, 0]);
        let range = |base| {
            Some(BarRange {
                index: 0,
                base,
                size: SIZE,
            })
        };
        assert_eq!(bar.range(&space), range(HOME));
        space.write(0x10, &0x1234_9abc_u32.to_le_bytes());
        assert_eq!(
            bar.range(&space),
            range(HOME | 0x1234_8000),
            "low bits do not count"
        );
        bar.reset(&mut space);
        assert_eq!(bar.range(&space), range(HOME));
    }

    #[test]
    fn the_address_of_sizing_is_nowhere() {
        let (mut space, bar) = space();
        space.write(COMMAND as u16, &[2, 0]);
        space.write(0x10, &[0xff; 8]);
        assert_eq!(bar.range(&space), None);
    }

    #[test]
    fn bars_that_cannot_be_are_refused() {
        let (mut space, _) = space();
        for (index, size, home) in [
            (0, 0x3000, 0),
            (0, 0, 0),
            (0, 2048, 0),
            (0, SIZE, HOME + 0x4000),
            (0, SIZE, u64::MAX - SIZE + 1),
            (5, SIZE, HOME),
        ] {
            assert!(
                Bar::add(&mut space, index, size, home).is_err(),
                "{index} {size:#x} {home:#x}"
            );
        }
    }
}
