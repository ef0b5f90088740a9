//! How a device reaches the guest's interrupt controllers. Who implements it (KVM's irqfd) is not said here.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// Which of a virtio device's interrupts: its configuration's or one of its queues'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vector {
    /// The configuration space changed (virtio 1.2, §2.4).
    Config,
    /// The queue with this index has used buffers.
    Queue(u16),
}

/// How a running virtio device reaches its driver; MSI-X, a line, or a test's counter.
pub trait Interrupt: Send + Sync {
    /// Raises the interrupt of `vector`.
    ///
    /// # Errors
    /// When the kernel does not take the signal; the guest has not been told.
    fn trigger(&self, vector: Vector) -> io::Result<()>;

    /// The descriptor that raises `vector` when written, for a data path in the kernel (vhost). `None` where
    /// a transport must act on each interrupt itself, as virtio-mmio must.
    fn eventfd(&self, _vector: Vector) -> Option<&EventFd> {
        None
    }

    /// Says that the driver broke the rules in a way that cannot be answered: sets DEVICE_NEEDS_RESET and
    /// tells the driver (virtio 1.2, §2.1.2). The device serves nothing more until it is reset.
    fn needs_reset(&self);
}

/// An MSI message: what a device writes where to interrupt a CPU (PCI 3.0, §6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Where it is written.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// Gives out message-signalled interrupt vectors.
pub trait MsiController: Send + Sync {
    /// `count` vectors, none of them routed yet.
    ///
    /// # Errors
    /// When the host has no more.
    fn allocate(&self, count: u16) -> io::Result<Vec<Box<dyn MsiVector>>>;
}

/// One message-signalled interrupt vector.
pub trait MsiVector: Send + Sync {
    /// From now on a signal sends this message; with `None` (masked) signals are kept in the eventfd's
    /// counter, and sent at the next `Some`.
    ///
    /// # Errors
    /// When the kernel refuses the route; the former one stays.
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()>;

    /// Writing to it raises the interrupt. It does not block: while unrouted, reading it takes what waits.
    fn eventfd(&self) -> &EventFd;
}

/// Lets the kernel signal an eventfd when the guest writes to an address, without leaving to the monitor.
/// An optimisation: a device also takes the same write on the bus.
pub trait Doorbells: Send + Sync {
    /// Writes of any width to `address` signal `kick`.
    ///
    /// # Errors
    /// When the kernel refuses; writes then arrive on the bus.
    fn assign(&self, address: u64, kick: &EventFd) -> io::Result<()>;

    /// Undoes [`Doorbells::assign`].
    ///
    /// # Errors
    /// When there is no such doorbell.
    fn release(&self, address: u64, kick: &EventFd) -> io::Result<()>;
}

/// Doorbells where the hypervisor has none: every write arrives on the bus.
pub struct NoDoorbells;

impl Doorbells for NoDoorbells {
    fn assign(&self, _address: u64, _kick: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn release(&self, _address: u64, _kick: &EventFd) -> io::Result<()> {
        Ok(())
    }
}
