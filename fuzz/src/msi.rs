//! Message-signalled interrupts that nobody receives.

use std::io;
use std::sync::Mutex;

use nacelle_devices::irq::{MsiController, MsiMessage, MsiVector};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

struct Vector(EventFd, Mutex<Option<MsiMessage>>);

impl MsiVector for Vector {
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        *self.1.lock().unwrap() = message;
        Ok(())
    }
    fn eventfd(&self) -> &EventFd {
        &self.0
    }
}

/// Gives out as many as are asked for.
pub struct Vectors;

impl MsiController for Vectors {
    fn allocate(&self, count: u16) -> io::Result<Vec<Box<dyn MsiVector>>> {
        let vector = || -> io::Result<Box<dyn MsiVector>> {
            Ok(Box::new(Vector(EventFd::new(EFD_NONBLOCK)?, Mutex::default())))
        };
        (0..count).map(|_| vector()).collect()
    }
}
