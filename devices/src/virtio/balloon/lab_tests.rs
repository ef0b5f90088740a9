//! Memory behind huge pages, which only the lab sets aside: `tests/lab/devices` runs this there.
#![expect(unsafe_code, reason = "memfd_create")]

use std::fs::File;
use std::os::fd::FromRawFd;
use std::sync::Arc;

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

use super::tests::{INFLATE, PAGES, balloon, pfns, send};
use super::*;
use crate::driver::{BUFFERS, Driver, MEMORY};
use crate::memory::{Memory, SharedMemory};

const HUGE: u64 = 2 << 20;

fn free_huge_pages() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = info
        .lines()
        .find(|line| line.starts_with("HugePages_Free"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn memory(shared: bool) -> SharedMemory {
    let size = MEMORY as usize;
    let builder = MmapRegionBuilder::new_with_bitmap(size, AtomicBitmap::new(size, PAGE_SIZE))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    let builder = match shared {
        true => {
            let flags = libc::MFD_CLOEXEC | libc::MFD_HUGETLB;
            // SAFETY: the name ends with a zero; the descriptor is new and nobody else's.
            let file = unsafe { File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), flags)) };
            file.set_len(MEMORY).unwrap();
            builder
                .with_file_offset(FileOffset::new(file, 0))
                .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        }
        false => builder.with_mmap_flags(
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_HUGETLB,
        ),
    };
    let region = GuestRegionMmap::new(builder.build().unwrap(), GuestAddress(0)).unwrap();
    SharedMemory::new(Memory::from_arc_regions(vec![Arc::new(region)]).unwrap())
}

const PAGE_SIZE: std::num::NonZeroUsize = std::num::NonZeroUsize::new(4096).unwrap();

#[test]
#[ignore = "needs the lab: tests/lab/devices"]
fn a_huge_page_goes_back_to_the_host_when_the_guest_gave_all_of_it() {
    for shared in [false, true] {
        let (balloon, _control) = balloon();
        let mut driver = Driver::in_memory(balloon, memory(shared));
        driver.start(PAGE_REPORTING);
        driver.put(PAGES, &vec![7; 6 * HUGE as usize]);
        driver.put(BUFFERS, &[0; 1]);
        let before = free_huge_pages();

        send(&mut driver, INFLATE, &pfns(PAGES..PAGES + HUGE - PAGE));
        assert_eq!(free_huge_pages(), before, "a part of it is the guest's");
        assert_eq!(driver.get(PAGES, 1), [7]);
        send(
            &mut driver,
            INFLATE,
            &pfns(PAGES + HUGE - PAGE..PAGES + HUGE + PAGE),
        );
        assert_eq!(free_huge_pages(), before + 1);

        // Reported memory goes as far as it covers whole pages.
        let range = (PAGES + 2 * HUGE - PAGE, 3 * HUGE as u32, true);
        assert_eq!(driver.request(2, &[range]), 0);
        assert_eq!(free_huge_pages(), before + 3);
        assert_eq!(driver.get(PAGES + 2 * HUGE - 1, 1), [7]);
        assert_eq!(driver.get(PAGES + 4 * HUGE, 1), [7]);
        assert_eq!(driver.get(PAGES + 2 * HUGE, 1), [0]);
    }
}
