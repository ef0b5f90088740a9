//! The machine's memory, and where in it a kernel goes (pure).

use alloc::vec::Vec;

use crate::{Error, Result};

/// What a range of addresses is (ACPI 6.5, §15, E820).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// Memory to be used.
    Ram,
    /// Anything else, by its number.
    Other(u32),
}

impl From<u32> for RangeKind {
    fn from(number: u32) -> RangeKind {
        match number {
            1 => RangeKind::Ram,
            other => RangeKind::Other(other),
        }
    }
}

impl From<RangeKind> for u32 {
    fn from(kind: RangeKind) -> u32 {
        match kind {
            RangeKind::Ram => 1,
            RangeKind::Other(number) => number,
        }
    }
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What it is.
    pub kind: RangeKind,
}

impl Range {
    fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// Where a kernel and its initial RAM disk go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Where the kernel's protected-mode part is loaded.
    pub kernel: u64,
    /// Where the initial RAM disk is loaded.
    pub initrd: u64,
}

/// What a kernel says of its place, in its setup header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Where it would like to be.
    pub preferred: u64,
    /// Whether it runs elsewhere, too.
    pub relocatable: bool,
    /// What its address is a multiple of.
    pub alignment: u64,
    /// Memory that it needs from there on.
    pub size: u64,
    /// Last address that an initial RAM disk may have.
    pub initrd_max: u64,
}

const PAGE: u64 = 4096;
/// Only what the firmware has mapped can be loaded to.
const MAPPED: u64 = 4 << 30;

/// Places a kernel at `free` or above (below lies the firmware), its initial RAM disk of `initrd` bytes as high as it
/// may lie.
///
/// # Errors
/// When there is no room.
pub fn place(map: &[Range], free: u64, wish: &Wish, initrd: u64) -> Result<Placement> {
    let usable: Vec<(u64, u64)> = map
        .iter()
        .filter(|range| range.kind == RangeKind::Ram)
        .map(|range| (range.start.max(free), range.end().min(MAPPED)))
        .filter(|(start, end)| start < end)
        .collect();
    let alignment = wish.alignment.max(PAGE);
    let fits = |at: u64| {
        let end = at.checked_add(wish.size)?;
        let inside = |(start, last): &(u64, u64)| *start <= at && end <= *last;
        usable.iter().any(inside).then_some(at)
    };
    let elsewhere = || {
        let starts = usable
            .iter()
            .map(|(start, _)| start.checked_next_multiple_of(alignment));
        starts.flatten().find_map(fits)
    };
    let kernel = match fits(wish.preferred) {
        Some(at) => Some(at),
        None if wish.relocatable => elsewhere(),
        None => None,
    };
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let kernel = kernel.ok_or_else(|| {
        Error::does_not_fit(format_args!(
            "the kernel needs {} MiB of memory from {} MiB on; give the machine more memory",
            mib(wish.size),
            mib(wish.preferred)
        ))
    })?;
    let kernel_end = kernel + wish.size;
    let highest = |(start, end): &(u64, u64)| {
        let end = (*end).min(wish.initrd_max.saturating_add(1));
        let at = end.checked_sub(initrd)? & !(PAGE - 1);
        let lowest = if (*start..end).contains(&kernel) {
            kernel_end
        } else {
            *start
        };
        (at >= lowest).then_some(at)
    };
    let initrd = usable.iter().filter_map(highest).max().ok_or_else(|| {
        Error::does_not_fit(format_args!(
            "the initial RAM disk needs {} MiB of memory beside the kernel's {}; give the machine more memory",
            mib(initrd),
            mib(wish.size)
        ))
    })?;
    Ok(Placement { kernel, initrd })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn map(mib: u64) -> [Range; 3] {
        let range = |start, len, kind| Range { start, len, kind };
        [
            range(0, 0xa_0000, RangeKind::Ram),
            range(0xa_0000, 0x6_0000, RangeKind::Other(2)),
            range(MIB, (mib - 1) * MIB, RangeKind::Ram),
        ]
    }

    const LINUX: Wish = Wish {
        preferred: 16 * MIB,
        relocatable: true,
        alignment: 2 * MIB,
        size: 40 * MIB,
        initrd_max: 0x7fff_ffff,
    };

    #[test]
    fn a_kernel_gets_its_place_and_its_ram_disk_the_end_of_memory() {
        let placed = place(&map(128), 16 * MIB, &LINUX, 5 * MIB + 1).unwrap();
        assert_eq!(placed.kernel, 16 * MIB);
        assert_eq!(placed.initrd, 123 * MIB - PAGE);
        let high = place(&map(3000), 16 * MIB, &LINUX, MIB).unwrap();
        assert_eq!(high.initrd, 2047 * MIB);
    }

    #[test]
    fn a_kernel_that_wants_to_be_where_the_firmware_is_goes_elsewhere_if_it_can() {
        let wish = Wish {
            preferred: MIB,
            ..LINUX
        };
        assert_eq!(place(&map(128), 16 * MIB, &wish, 0).unwrap().kernel, 16 * MIB);
        let wish = Wish {
            relocatable: false,
            ..wish
        };
        assert!(place(&map(128), 16 * MIB, &wish, 0).is_err());
    }

    #[test]
    fn too_little_memory_is_said_in_numbers() {
        let text = |mib, initrd| {
            use alloc::string::ToString;
            place(&map(mib), 16 * MIB, &LINUX, initrd)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            text(48, 0),
            "the kernel needs 40 MiB of memory from 16 MiB on; give the machine more memory"
        );
        assert_eq!(
            text(64, 9 * MIB),
            "the initial RAM disk needs 9 MiB of memory beside the kernel's 40; give the machine more memory"
        );
    }

    #[test]
    fn numbers_at_the_end_of_what_numbers_can_be_are_refused() {
        let wish = Wish {
            preferred: u64::MAX - 10,
            size: u64::MAX,
            ..LINUX
        };
        assert!(place(&map(128), 16 * MIB, &wish, u64::MAX).is_err());
        let wish = Wish {
            initrd_max: u64::MAX,
            ..LINUX
        };
        assert!(place(&map(128), 16 * MIB, &wish, u64::MAX).is_err());
    }
}
