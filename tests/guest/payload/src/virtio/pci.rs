//! virtio-pci (virtio 1.2, §4.1): found through configuration space, registers where its capabilities say.

use crate::memory::Window;

const ECAM: u64 = 0xe000_0000;
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u32 = 0x1040;
const SLOTS: u64 = 32;
/// Capabilities: vendor-specific, MSI-X.
const CAP_VIRTIO: u8 = 0x09;
const CAP_MSIX: u8 = 0x11;

fn config_space(slot: u64) -> Window {
    // SAFETY: configuration space of bus 0, beyond memory; without a bus it reads as ones.
    unsafe { Window::new(ECAM + (slot << 15), 0x1000) }
}

/// Whether there is a bus.
pub fn present() -> bool {
    config_space(0).get::<u16>(0) != 0xffff
}

/// A virtio device on the bus.
pub struct Function {
    common: Window,
    notify: Window,
    multiplier: u64,
    config: Window,
    pub msix: Msix,
}

/// Its message-signalled interrupts (PCI 3.0, §6.8.2).
pub struct Msix {
    space: Window,
    /// Offset of the capability.
    at: u64,
    table: Window,
    pending: Window,
}

impl Function {
    /// The first device of type `id`, its memory and its messages switched on, all vectors masked.
    pub fn find(id: u32) -> Option<Function> {
        let slot = (0..SLOTS).find(|&slot| {
            let space = config_space(slot);
            space.get::<u16>(0) == VENDOR && u32::from(space.get::<u16>(2)) == FIRST_DEVICE + id
        })?;
        let space = config_space(slot);
        // Memory space and bus master.
        space.set(4, space.get::<u16>(4) | 6);
        let bar = |index: u8| -> u64 {
            let at = 0x10 + 4 * u64::from(index);
            let low: u32 = space.get(at);
            // A 64-bit BAR has its upper half in the next one.
            let high = if low & 6 == 4 { space.get::<u32>(at + 4) } else { 0 };
            u64::from(low & !0xf) | u64::from(high) << 32
        };
        // SAFETY: registers where the device says that its BAR lies, beyond memory.
        let window =
            |index: u8, offset: u32, len: u64| unsafe { Window::new(bar(index) + u64::from(offset), len) };

        let (mut common, mut notify, mut config, mut msix) = (None, None, None, None);
        let mut multiplier = 0;
        let mut at = u64::from(space.get::<u8>(0x34));
        while at != 0 {
            match (space.get::<u8>(at), space.get::<u8>(at + 3)) {
                (CAP_VIRTIO, kind) => {
                    let (offset, len) = (space.get::<u32>(at + 8), space.get::<u32>(at + 12));
                    let found = || Some(window(space.get(at + 4), offset, len.into()));
                    match kind {
                        1 => common = found(),
                        2 => {
                            notify = found();
                            multiplier = u64::from(space.get::<u32>(at + 16));
                        }
                        4 => config = found(),
                        _ => {}
                    }
                }
                (CAP_MSIX, _) => {
                    let vectors = u64::from(space.get::<u16>(at + 2) & 0x7ff) + 1;
                    let place = |register: u64, len: u64| {
                        let value: u32 = space.get(register);
                        window(value as u8 & 7, value & !7, len)
                    };
                    let table = place(at + 4, 16 * vectors);
                    let pending = place(at + 8, vectors.div_ceil(64) * 8);
                    space.set(at + 2, 0x8000u16);
                    msix = Some(Msix {
                        space,
                        at,
                        table,
                        pending,
                    });
                }
                _ => {}
            }
            at = u64::from(space.get::<u8>(at + 1));
        }
        Some(Function {
            common: common?,
            notify: notify?,
            multiplier,
            config: config?,
            msix: msix?,
        })
    }

    pub fn status(&self) -> u8 {
        self.common.get(0x14)
    }

    pub fn set_status(&self, status: u8) {
        self.common.set(0x14, status);
    }

    pub fn features(&self) -> u64 {
        let page = |page: u32| {
            self.common.set(0, page);
            u64::from(self.common.get::<u32>(4))
        };
        page(0) | page(1) << 32
    }

    pub fn set_features(&self, features: u64) {
        for page in 0..2u32 {
            self.common.set(8, page);
            self.common.set(0xc, (features >> (32 * page)) as u32);
        }
    }

    pub fn queue_max(&self, index: u16) -> u16 {
        self.common.set(0x16, index);
        self.common.get(0x18)
    }

    /// The configuration has vector 0, queue n has vector n + 1.
    /// Descriptors, available and used ring lie at `parts`; gives its doorbell.
    pub fn place_queue(&self, index: u16, size: u16, parts: [u64; 3]) -> u64 {
        self.common.set(0x10, 0u16);
        self.common.set(0x16, index);
        self.common.set(0x18, size);
        self.common.set(0x1a, index + 1);
        for (register, part) in [0x20, 0x28, 0x30].into_iter().zip(parts) {
            self.common.set(register, part as u32);
            self.common.set(register + 4, (part >> 32) as u32);
        }
        let doorbell = u64::from(self.common.get::<u16>(0x1e)) * self.multiplier;
        self.common.set(0x1c, 1u16);
        doorbell
    }

    pub fn ring(&self, index: u16, doorbell: u64) {
        self.notify.set(doorbell, index);
    }

    /// Its configuration space.
    pub fn space(&self) -> Window {
        self.msix.space
    }

    /// The registers that all its queues share.
    pub fn common(&self) -> Window {
        self.common
    }

    /// Messages say where they come from.
    pub fn acknowledge(&self) -> u32 {
        0
    }

    pub fn config(&self) -> Window {
        self.config
    }
}

impl Msix {
    /// How many vectors there are.
    pub fn len(&self) -> u16 {
        (self.table.len() / 16) as u16
    }

    /// Has `vector` send `data` to `address`.
    pub fn route(&self, vector: u16, address: u64, data: u32) {
        let entry = 16 * u64::from(vector);
        self.table.set(entry, address as u32);
        self.table.set(entry + 4, (address >> 32) as u32);
        self.table.set(entry + 8, data);
    }

    /// Holds messages of `vector` back, or lets them go.
    pub fn mask(&self, vector: u16, masked: bool) {
        self.table.set(16 * u64::from(vector) + 12, u32::from(masked));
    }

    /// Whether its messages are held back.
    pub fn is_masked(&self, vector: u16) -> bool {
        self.table.get::<u32>(16 * u64::from(vector) + 12) & 1 != 0
    }

    /// Whether `vector` holds a message back.
    pub fn pending(&self, vector: u16) -> bool {
        self.pending.get::<u64>(u64::from(vector / 64) * 8) >> (vector % 64) & 1 != 0
    }

    /// Holds messages of all vectors back, or lets them go.
    pub fn mask_all(&self, masked: bool) {
        self.space
            .set(self.at + 2, if masked { 0xc000u16 } else { 0x8000 });
    }
}
