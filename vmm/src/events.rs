//! What a machine tells its owner.

use crate::Error;

/// Something that happened to a running machine; its owner decides what follows.
#[derive(Debug)]
pub enum VmEvent {
    /// The guest asks for a reset. Its vCPUs wait: [`crate::Vm::reset`] or the end follows.
    Reset,
    /// The guest powered off. Its vCPUs wait.
    Shutdown,
    /// The guest says that it panicked (pvpanic); it may go on, to write a dump.
    Panicked,
    /// The guest did not feed its watchdog ([`crate::VmConfig::watchdog`]) and goes on; what its user wants done follows.
    Watchdog,
    /// A vCPU cannot go on. The others wait.
    VcpuFailed {
        /// Which vCPU.
        vcpu: u8,
        /// Why.
        error: Error,
    },
    /// A disk failed whose configuration says to stop ([`crate::config::ErrorPolicy`]). What failed is held, and the
    /// guest waits for it: [`crate::Vm::pause`] and, when the cause is removed, [`crate::Vm::resume`] follow, which
    /// tries again. Told once until then. (Where only a flush failed, the guest was told, too.)
    DiskFailed {
        /// Which disk, by its [`crate::config::DeviceConfig::id`].
        id: String,
        /// Why.
        error: std::io::Error,
    },
    /// A device has left the bus, as [`crate::Vm::detach`] asked; [`crate::Vm::remove`] closes its files.
    Detached {
        /// Which device.
        id: String,
    },
}
