//! pvpanic: the guest's notice that it panicked (QEMU, docs/specs/pvpanic.rst).

use crate::bus::BusDevice;

/// The port where guests expect it.
pub const PORT: u16 = 0x505;

const PANICKED: u8 = 1;
const CRASH_LOADED: u8 = 2;

/// One byte: read what we understand, write what happened.
pub struct PvPanic {
    panicked: Box<dyn Fn() + Send + Sync>,
}

impl PvPanic {
    /// `panicked` is called at each notice.
    pub fn new(panicked: Box<dyn Fn() + Send + Sync>) -> Self {
        PvPanic { panicked }
    }
}

impl BusDevice for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(PANICKED | CRASH_LOADED);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if let &[value] = data
            && value & (PANICKED | CRASH_LOADED) != 0
        {
            (self.panicked)();
        }
    }
}
