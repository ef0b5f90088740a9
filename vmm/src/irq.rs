//! Interrupt routes: message-signalled vectors and the lines of the I/O APIC, both raised by irqfd.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nacelle_devices::irq::{Doorbells, MsiController, MsiMessage, MsiVector};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::hypervisor::kvm::IOAPIC_PINS;
use crate::hypervisor::{IoAddress, MsiRoute, Partition};
use crate::{Error, Result};

/// Gives out message-signalled vectors of one machine and keeps their routes.
pub struct MsiRoutes {
    partition: Arc<dyn Partition>,
    table: Arc<Mutex<Table>>,
}

/// One entry a number that was given out.
#[derive(Default)]
struct Table(Vec<Entry>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    /// Its vector is gone; the number may be given out again.
    Free,
    /// Given out, `None` where it is not routed at present.
    Taken(Option<MsiMessage>),
}

impl MsiRoutes {
    /// No vectors yet.
    pub fn new(partition: Arc<dyn Partition>) -> Self {
        MsiRoutes {
            partition,
            table: Arc::default(),
        }
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Table {
    fn take(&mut self) -> usize {
        let index = self
            .0
            .iter()
            .position(|entry| *entry == Entry::Free)
            .unwrap_or(self.0.len());
        self.set(index, Entry::Taken(None));
        index
    }

    fn set(&mut self, index: usize, entry: Entry) {
        match self.0.get_mut(index) {
            Some(place) => *place = entry,
            None => self.0.push(entry),
        }
    }

    fn message(&self, index: usize) -> Option<MsiMessage> {
        match self.0.get(index) {
            Some(Entry::Taken(message)) => *message,
            _ => None,
        }
    }

    fn routes(&self) -> Vec<MsiRoute> {
        let numbered = (0..self.0.len()).zip(IOAPIC_PINS..);
        numbered
            .filter_map(|(index, gsi)| {
                Some(MsiRoute {
                    gsi,
                    message: self.message(index)?,
                })
            })
            .collect()
    }
}

impl MsiController for MsiRoutes {
    fn allocate(&self, count: u16) -> io::Result<Vec<Box<dyn MsiVector>>> {
        let mut vectors: Vec<Box<dyn MsiVector>> = Vec::new();
        for _ in 0..count {
            let eventfd = EventFd::new(EFD_NONBLOCK)?;
            vectors.push(Box::new(Route {
                index: lock(&self.table).take(),
                eventfd,
                partition: Arc::clone(&self.partition),
                table: Arc::clone(&self.table),
            }));
        }
        Ok(vectors)
    }
}

struct Route {
    index: usize,
    eventfd: EventFd,
    partition: Arc<dyn Partition>,
    table: Arc<Mutex<Table>>,
}

impl Route {
    fn gsi(&self) -> u32 {
        IOAPIC_PINS + self.index as u32
    }

    /// Tells the hypervisor; `table` holds the new message already.
    fn apply(
        &self,
        table: &Table,
        before: Option<MsiMessage>,
        after: Option<MsiMessage>,
    ) -> crate::Result<()> {
        match (before, after) {
            // While disconnected, signals stay in the eventfd; KVM delivers them when it is connected again.
            (Some(_), None) => self.partition.remove_irqfd(&self.eventfd, self.gsi()),
            (None, Some(_)) => {
                self.partition.set_msi_routes(&table.routes())?;
                self.partition.add_irqfd(&self.eventfd, self.gsi())
            }
            (Some(_), Some(_)) => self.partition.set_msi_routes(&table.routes()),
            (None, None) => Ok(()),
        }
    }
}

impl MsiVector for Route {
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        let mut table = lock(&self.table);
        let before = table.message(self.index);
        if before == message {
            return Ok(());
        }
        table.set(self.index, Entry::Taken(message));
        self.apply(&table, before, message).map_err(|error| {
            table.set(self.index, Entry::Taken(before));
            io::Error::other(error)
        })
    }

    fn eventfd(&self) -> &EventFd {
        &self.eventfd
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        if let Err(error) = self.route(None) {
            log::warn!("an interrupt stays connected: {error}");
        }
        lock(&self.table).set(self.index, Entry::Free);
    }
}

/// A line of the I/O APIC, edge-triggered: writing the eventfd raises it.
///
/// # Errors
/// When the host has no eventfd left or `gsi` is no pin.
pub fn line(partition: &dyn Partition, gsi: u32) -> Result<EventFd> {
    let fd = EventFd::new(EFD_NONBLOCK).map_err(Error::io("make an eventfd for an interrupt"))?;
    partition.add_irqfd(&fd, gsi)?;
    Ok(fd)
}

/// Doorbells by ioeventfd.
pub struct IoEventDoorbells(pub Arc<dyn Partition>);

impl Doorbells for IoEventDoorbells {
    fn assign(&self, address: u64, kick: &EventFd) -> io::Result<()> {
        self.0
            .add_ioeventfd(kick, IoAddress::Memory(address, None))
            .map_err(io::Error::other)
    }

    fn release(&self, address: u64, kick: &EventFd) -> io::Result<()> {
        self.0
            .remove_ioeventfd(kick, IoAddress::Memory(address, None))
            .map_err(io::Error::other)
    }
}
