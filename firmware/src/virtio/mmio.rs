//! virtio-mmio (§4.2): a page of registers for each device, where the ACPI tables say.

use alloc::vec::Vec;

use super::Registers;
use super::queue::Queue;
use crate::machine::paging;
use crate::machine::window::Window;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;

/// A device's registers.
pub struct Page(Window);

/// The devices of type `id` among those at `bases`, in this order.
pub fn find(bases: &[u64], id: u32) -> Vec<Page> {
    let page = |base: &u64| paging::registers(*base, 0x1000);
    let wanted = |page: &Window| {
        let number = |at| page.get::<u32>(at);
        number(0) == MAGIC && number(4) == VERSION && number(8) == id
    };
    bases.iter().filter_map(page).filter(wanted).map(Page).collect()
}

impl Registers for Page {
    fn status(&self) -> u8 {
        self.0.get::<u32>(0x70) as u8
    }

    fn set_status(&self, status: u8) {
        self.0.set(0x70, u32::from(status));
    }

    fn features(&self) -> u64 {
        let page = |page: u32| {
            self.0.set(0x14, page);
            u64::from(self.0.get::<u32>(0x10))
        };
        page(0) | page(1) << 32
    }

    fn set_features(&self, features: u64) {
        for page in 0..2u32 {
            self.0.set(0x24, page);
            self.0.set(0x20, (features >> (32 * page)) as u32);
        }
    }

    fn queue_max(&self) -> u16 {
        self.0.set(0x30, 0u32);
        self.0.get::<u32>(0x34) as u16
    }

    fn set_queue(&self, queue: &Queue) {
        self.0.set(0x30, 0u32);
        self.0.set(0x38, u32::from(super::queue::SIZE));
        for (register, address) in [0x80, 0x90, 0xa0].into_iter().zip(queue.addresses()) {
            self.0.set(register, address as u32);
            self.0.set(register + 4, (address >> 32) as u32);
        }
        self.0.set(0x44, 1u32);
    }

    fn notify(&self) {
        self.0.set(0x50, 0u32);
    }

    fn config(&self, offset: u64) -> u32 {
        self.0.get(0x100 + offset)
    }
}
