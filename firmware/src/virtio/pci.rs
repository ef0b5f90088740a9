//! virtio-pci (§4.1): found through configuration space, registers where its capabilities say. The monitor has placed
//! the BARs.

use alloc::vec::Vec;
use core::cell::Cell;

use super::Registers;
use super::queue::Queue;
use crate::machine::paging;
use crate::machine::window::Window;

const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u32 = 0x1040;
const SLOTS: u64 = 32;
/// A vendor-specific capability, which virtio uses.
const CAPABILITY: u8 = 0x09;
/// Memory space and bus master.
const COMMAND: u16 = 6;
const NO_VECTOR: u16 = 0xffff;
/// More capabilities than fit.
const MAX_CAPABILITIES: u32 = 48;

/// A virtio device on the bus.
pub struct Function {
    common: Window,
    notify: Window,
    multiplier: u64,
    /// Where in `notify` the queue's doorbell is.
    doorbell: Cell<u64>,
    config: Window,
}

/// The devices of type `id` on bus 0, whose configuration space lies at `ecam`, in the order of their slots.
pub fn find(ecam: u64, id: u32) -> Vec<Function> {
    let space = |slot: u64| paging::registers(ecam + (slot << 15), 0x1000);
    let wanted =
        |space: &Window| space.get::<u16>(0) == VENDOR && u32::from(space.get::<u16>(2)) == FIRST_DEVICE + id;
    let spaces = (0..SLOTS).filter_map(space).filter(wanted);
    spaces.filter_map(|space| Function::at(&space)).collect()
}

impl Function {
    fn at(space: &Window) -> Option<Function> {
        space.set(4, space.get::<u16>(4) | COMMAND);
        let window = |at: u64| {
            let index = u64::from(space.get::<u8>(at + 4)).min(5);
            let bar: u32 = space.get(0x10 + 4 * index);
            // A 64-bit BAR has its upper half in the next one.
            let high: u32 = if bar & 6 == 4 && index < 5 {
                space.get(0x14 + 4 * index)
            } else {
                0
            };
            let base = u64::from(bar & !0xf) | u64::from(high) << 32;
            let offset = base.checked_add(space.get::<u32>(at + 8).into())?;
            paging::registers(offset, space.get::<u32>(at + 12).into())
        };
        let (mut common, mut notify, mut config, mut multiplier) = (None, None, None, 0);
        let mut at = u64::from(space.get::<u8>(0x34));
        for _ in 0..MAX_CAPABILITIES {
            match (at, space.get::<u8>(at), space.get::<u8>(at + 3)) {
                (0, ..) => break,
                (_, CAPABILITY, 1) => common = window(at),
                (_, CAPABILITY, 2) => {
                    notify = window(at);
                    multiplier = space.get::<u32>(at + 16).into();
                }
                (_, CAPABILITY, 4) => config = window(at),
                _ => {}
            }
            at = space.get::<u8>(at + 1).into();
        }
        Some(Function {
            common: common?,
            notify: notify?,
            multiplier,
            doorbell: Cell::new(0),
            config: config?,
        })
    }
}

/// Registers of the common configuration (§4.1.4.3).
impl Registers for Function {
    fn status(&self) -> u8 {
        self.common.get(0x14)
    }

    fn set_status(&self, status: u8) {
        self.common.set(0x14, status);
    }

    fn features(&self) -> u64 {
        let page = |page: u32| {
            self.common.set(0, page);
            u64::from(self.common.get::<u32>(4))
        };
        page(0) | page(1) << 32
    }

    fn set_features(&self, features: u64) {
        for page in 0..2u32 {
            self.common.set(8, page);
            self.common.set(0xc, (features >> (32 * page)) as u32);
        }
    }

    fn queue_max(&self) -> u16 {
        self.common.set(0x16, 0u16);
        self.common.get(0x18)
    }

    fn set_queue(&self, queue: &Queue) {
        self.common.set(0x16, 0u16);
        self.common.set(0x18, super::queue::SIZE);
        self.common.set(0x1a, NO_VECTOR);
        for (register, address) in [0x20, 0x28, 0x30].into_iter().zip(queue.addresses()) {
            self.common.set(register, address as u32);
            self.common.set(register + 4, (address >> 32) as u32);
        }
        self.doorbell
            .set(u64::from(self.common.get::<u16>(0x1e)) * self.multiplier);
        self.common.set(0x1c, 1u16);
    }

    fn notify(&self) {
        self.notify.set(self.doorbell.get(), 0u16);
    }

    fn config(&self, offset: u64) -> u32 {
        self.config.get(offset)
    }
}
