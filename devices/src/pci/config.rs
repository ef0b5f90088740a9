//! Configuration space of a function (PCI 3.0, §6): bytes, and which of their bits the guest may write.

use crate::{Error, Result};

/// Bytes of conventional configuration space. What ECAM has beyond reads as zero: no extended capabilities.
pub const CONFIG_SIZE: usize = 256;

/// Offset of the command register.
pub const COMMAND: usize = 0x04;
/// Command: answer memory accesses.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: may act as bus master.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// Offset of the first BAR.
pub const FIRST_BAR: usize = 0x10;

const COMMAND_NO_INTX: u16 = 1 << 10;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const CACHE_LINE_SIZE: usize = 0x0c;
const LATENCY_TIMER: usize = 0x0d;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const HEADER_SIZE: usize = 0x40;

/// What a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Base class, sub-class, programming interface (PCI 3.0, appendix D).
    pub class: [u8; 3],
    /// Vendor of the board.
    pub subsystem_vendor: u16,
    /// The board.
    pub subsystem: u16,
}

/// Configuration space with a type 0 header.
pub struct ConfigSpace {
    bytes: [u8; CONFIG_SIZE],
    writable: [u8; CONFIG_SIZE],
    /// Where the next capability goes.
    free: usize,
    /// The byte that will point to the next capability.
    link: usize,
}

impl ConfigSpace {
    /// The header of a function without BARs and capabilities. The guest may write the command register
    /// (memory, bus master, no INTx) and the bytes that are for software's own use.
    pub fn new(identity: Identity) -> Self {
        let mut space = ConfigSpace {
            bytes: [0; CONFIG_SIZE],
            writable: [0; CONFIG_SIZE],
            free: HEADER_SIZE,
            link: CAPABILITIES,
        };
        let [base, sub, interface] = identity.class;
        space.set(0x00, &identity.vendor.to_le_bytes());
        space.set(0x02, &identity.device.to_le_bytes());
        space.set(0x08, &[identity.revision, interface, sub, base]);
        space.set(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.set(0x2e, &identity.subsystem.to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_NO_INTX;
        space.allow(COMMAND, &command.to_le_bytes());
        for offset in [CACHE_LINE_SIZE, LATENCY_TIMER, INTERRUPT_LINE] {
            space.allow(offset, &[0xff]);
        }
        space
    }

    /// Adds a capability with this body (what follows identifier and link), of which the guest may write the
    /// bits set in `writable`; gives its offset.
    ///
    /// # Errors
    /// When configuration space is full.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u8> {
        let at = self.free;
        let offset = u8::try_from(at).map_err(|_| Error::Capabilities)?;
        let end = at.saturating_add(2).saturating_add(body.len());
        if end > CONFIG_SIZE {
            return Err(Error::Capabilities);
        }
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        self.set(self.link, &[offset]);
        self.link = at + 1;
        self.free = end.next_multiple_of(4);
        let status = self.u16(STATUS) | STATUS_CAPABILITIES;
        self.set(STATUS, &status.to_le_bytes());
        Ok(offset)
    }

    /// Sets bytes, whatever the guest may write; beyond the end is ignored.
    pub fn set(&mut self, offset: usize, bytes: &[u8]) {
        for (to, byte) in self.bytes.iter_mut().skip(offset).zip(bytes) {
            *to = *byte;
        }
    }

    /// Lets the guest write the bits set in `mask`.
    pub fn allow(&mut self, offset: usize, mask: &[u8]) {
        for (to, byte) in self.writable.iter_mut().skip(offset).zip(mask) {
            *to = *byte;
        }
    }

    /// The `N` bytes at `offset`; zero beyond the end.
    pub fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut data = [0; N];
        for (to, byte) in data.iter_mut().zip(self.bytes.iter().skip(offset)) {
            *to = *byte;
        }
        data
    }

    /// The 16 bits at `offset`.
    pub fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.get(offset))
    }

    /// The 32 bits at `offset`.
    pub fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.get(offset))
    }

    /// The 64 bits at `offset`.
    pub fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.get(offset))
    }

    /// Whether the guest lets the function answer memory accesses.
    pub fn decodes_memory(&self) -> bool {
        self.u16(COMMAND) & COMMAND_MEMORY != 0
    }

    /// The guest reads; zero beyond the end.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0);
        for (to, byte) in data.iter_mut().zip(self.bytes.iter().skip(usize::from(offset))) {
            *to = *byte;
        }
    }

    /// The guest writes; read-only bits stay.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let bytes = self.bytes.iter_mut().zip(&self.writable);
        for ((byte, mask), value) in bytes.skip(usize::from(offset)).zip(data) {
            *byte = *byte & !mask | value & mask;
        }
    }

    /// Clears all that the guest may write; BARs are placed again by who placed them.
    pub fn reset(&mut self) {
        for (byte, mask) in self.bytes.iter_mut().zip(&self.writable) {
            *byte &= !mask;
        }
    }

    /// All bytes, as the guest reads them.
    pub fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Takes up what the guest wrote into a space like this one.
    ///
    /// # Errors
    /// When the space saved is another: the guest knows that layout, so it must be the same here.
    pub fn restore(&mut self, device: &'static str, saved: &[u8]) -> Result<()> {
        let refuse = |reason: String| Error::State { device, reason };
        let saved: &[u8; CONFIG_SIZE] = saved
            .try_into()
            .map_err(|_| refuse(format!("{} bytes of PCI configuration space", saved.len())))?;
        for (offset, ((ours, theirs), mask)) in self.bytes.iter().zip(saved).zip(&self.writable).enumerate() {
            if (ours ^ theirs) & !mask != 0 {
                return Err(refuse(format!(
                    "byte {offset:#x} of PCI configuration space is {theirs:#x} there and {ours:#x} here"
                )));
            }
        }
        self.bytes = *saved;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity {
        vendor: 0x1af4,
        device: 0x1042,
        revision: 1,
        class: [1, 0, 0],
        subsystem_vendor: 0x1af4,
        subsystem: 0x1042,
    };

    #[test]
    fn a_guest_reads_who_the_function_is() {
        let space = ConfigSpace::new(IDENTITY);
        assert_eq!(space.u32(0), 0x1042_1af4);
        assert_eq!(space.u32(8), 0x0100_0001);
        assert_eq!(space.u32(0x2c), 0x1042_1af4);
        assert_eq!(space.u16(0x3c) >> 8, 0, "no interrupt pin");
    }

    #[test]
    fn only_what_is_writable_is_written() {
        let mut space = ConfigSpace::new(IDENTITY);
        for offset in (0..CONFIG_SIZE as u16).step_by(4) {
            space.write(offset, &[0xff; 4]);
        }
        assert_eq!(space.u32(0), 0x1042_1af4);
        assert_eq!(space.u32(COMMAND), 0x0406);
        assert_eq!(space.u32(0x0c), 0xffff);
        assert_eq!(space.u32(0x3c), 0xff);
        space.reset();
        assert_eq!(space.save(), ConfigSpace::new(IDENTITY).save());
    }

    #[test]
    fn capabilities_are_a_list_that_ends() {
        let mut space = ConfigSpace::new(IDENTITY);
        assert_eq!(space.u16(STATUS), 0);
        let first = space.add_capability(0x09, &[1, 2, 3], &[]).unwrap();
        let second = space.add_capability(0x11, &[4; 10], &[0xff]).unwrap();
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(space.u16(STATUS), STATUS_CAPABILITIES);
        assert_eq!(space.get::<1>(CAPABILITIES), [0x40]);
        assert_eq!(space.get::<5>(0x40), [0x09, 0x48, 1, 2, 3]);
        assert_eq!(space.get::<3>(0x48), [0x11, 0, 4]);
        space.write(0x4a, &[9, 9]);
        assert_eq!(space.get::<2>(0x4a), [9, 4]);
    }

    #[test]
    fn capabilities_that_do_not_fit_are_refused() {
        let mut space = ConfigSpace::new(IDENTITY);
        assert!(space.add_capability(9, &[0; 191], &[]).is_err());
        space.add_capability(9, &[0; 190], &[]).unwrap();
        assert!(space.add_capability(9, &[], &[]).is_err());
    }

    #[test]
    fn accesses_beyond_the_end_find_zeroes() {
        let mut space = ConfigSpace::new(IDENTITY);
        for offset in [254, 255, 256, 0x800, 0xfff, u16::MAX] {
            space.write(offset, &[0xff; 8]);
            let mut data = [0xaa; 8];
            space.read(offset, &mut data);
            assert_eq!(data, [0; 8]);
        }
    }

    #[test]
    fn another_layout_is_refused() {
        let mut space = ConfigSpace::new(IDENTITY);
        let mut saved = space.save();
        saved[COMMAND] = 6;
        space.restore("blk", &saved).unwrap();
        assert!(space.decodes_memory());

        saved[8] = 2;
        assert_eq!(
            space.restore("blk", &saved).unwrap_err().to_string(),
            "blk: the saved state does not fit: byte 0x8 of PCI configuration space is 0x2 there and 0x1 here"
        );
        assert!(space.restore("blk", &[0; 3]).is_err());
    }
}
