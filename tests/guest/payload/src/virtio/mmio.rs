//! virtio-mmio (virtio 1.2, §4.2): a page of registers for each device, in a row.

use crate::memory::{PAGE, Window};

const FIRST: u64 = 0xd000_0000;
const MAX: u64 = 15;

/// Registers of one device.
pub struct Registers(Window);

impl Registers {
    /// The first device of type `id`.
    pub fn find(id: u32) -> Option<Registers> {
        (0..MAX).find_map(|slot| {
            // SAFETY: the window of virtio-mmio, beyond memory.
            let page = unsafe { Window::new(FIRST + slot * PAGE, PAGE) };
            let here = page.get::<u32>(0) == u32::from_le_bytes(*b"virt")
                && page.get::<u32>(4) == 2
                && page.get::<u32>(8) == id;
            here.then_some(Registers(page))
        })
    }

    /// Where they lie.
    pub fn address(&self) -> u64 {
        self.0.address()
    }

    pub fn status(&self) -> u8 {
        self.0.get::<u32>(0x70) as u8
    }

    pub fn set_status(&self, status: u8) {
        self.0.set(0x70, u32::from(status));
    }

    pub fn features(&self) -> u64 {
        let page = |page: u32| {
            self.0.set(0x14, page);
            u64::from(self.0.get::<u32>(0x10))
        };
        page(0) | page(1) << 32
    }

    pub fn set_features(&self, features: u64) {
        for page in 0..2u32 {
            self.0.set(0x24, page);
            self.0.set(0x20, (features >> (32 * page)) as u32);
        }
    }

    pub fn queue_max(&self, index: u16) -> u16 {
        self.0.set(0x30, u32::from(index));
        self.0.get::<u32>(0x34) as u16
    }

    /// Descriptors, available and used ring lie at `parts`.
    pub fn place_queue(&self, index: u16, size: u16, parts: [u64; 3]) -> u64 {
        self.0.set(0x30, u32::from(index));
        self.0.set(0x38, u32::from(size));
        for (register, part) in [0x80, 0x90, 0xa0].into_iter().zip(parts) {
            self.0.set(register, part as u32);
            self.0.set(register + 4, (part >> 32) as u32);
        }
        self.0.set(0x44, 1u32);
        0
    }

    pub fn ring(&self, index: u16, _doorbell: u64) {
        self.0.set(0x50, u32::from(index));
    }

    /// Why it interrupted; that is settled then.
    pub fn acknowledge(&self) -> u32 {
        let why = self.0.get::<u32>(0x60);
        self.0.set(0x64, why);
        why
    }

    pub fn config(&self) -> Window {
        self.0.part(0x100, PAGE - 0x100)
    }
}
