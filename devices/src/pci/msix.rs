//! MSI-X (PCI 3.0, §6.8.2): the table of messages and the pending bits.
//!
//! A vector is routed while MSI-X is enabled and neither the vector nor the function is masked. What is
//! signalled meanwhile waits in the vector's eventfd: that counter is the pending bit, also for a data path
//! in the kernel.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::config::ConfigSpace;
use crate::irq::{MsiController, MsiMessage, MsiVector};
use crate::state::MsixVectorState;
use crate::{Error, Result};

/// Most vectors of a function here, so that its table fills one page (the standard allows 2048).
pub const MAX_VECTORS: u16 = 256;
/// Bytes of one table entry.
pub const ENTRY_SIZE: u64 = 16;

const CAPABILITY: u8 = 0x11;
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
const VECTOR_MASK: u32 = 1;

struct Entry {
    message: MsiMessage,
    masked: bool,
    routed: Option<MsiMessage>,
}

#[derive(Default)]
struct Table {
    function_masked: bool,
    entries: Vec<Entry>,
}

/// MSI-X of one function. Its state beside the table lies in the capability's message control.
pub struct Msix {
    vectors: Vec<Box<dyn MsiVector>>,
    enabled: AtomicBool,
    table: Mutex<Table>,
}

impl Msix {
    /// `count` vectors of `controller`, all masked.
    ///
    /// # Errors
    /// When the host has no more.
    pub fn new(controller: &dyn MsiController, count: u16) -> Result<Self> {
        let count = count.clamp(1, MAX_VECTORS);
        let vectors = controller
            .allocate(count)
            .map_err(Error::io("allocate MSI-X vectors"))?;
        let msix = Msix {
            table: Mutex::default(),
            vectors,
            enabled: AtomicBool::new(false),
        };
        msix.reset();
        Ok(msix)
    }

    /// Adds the capability to `space`, the table and the pending bits behind BAR `bar`; gives the offset of
    /// its message control.
    ///
    /// # Errors
    /// When configuration space is full.
    pub fn add_capability(&self, space: &mut ConfigSpace, bar: u8, table: u32, pending: u32) -> Result<u16> {
        let mut body = [0; 10];
        let fields = (self.count() - 1)
            .to_le_bytes()
            .into_iter()
            .chain((table | u32::from(bar)).to_le_bytes())
            .chain((pending | u32::from(bar)).to_le_bytes());
        for (to, byte) in body.iter_mut().zip(fields) {
            *to = byte;
        }
        let offset = space.add_capability(CAPABILITY, &body, &(ENABLE | FUNCTION_MASK).to_le_bytes())?;
        Ok(u16::from(offset) + 2)
    }

    /// How many vectors there are: 1 to [`MAX_VECTORS`].
    pub fn count(&self) -> u16 {
        self.vectors.len() as u16
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the guest enabled MSI-X.
    pub fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// The guest wrote message control.
    pub fn set_control(&self, control: u16) {
        let mut table = self.table();
        let enable = control & ENABLE != 0;
        if enable && !self.enabled() {
            // What was signalled before had no message to send.
            self.forget_pending(&table);
        }
        self.enabled.store(enable, Ordering::Release);
        table.function_masked = control & FUNCTION_MASK != 0;
        self.route_all(&mut table);
    }

    /// Raises vector `number`; one that is not there is ignored.
    ///
    /// # Errors
    /// When the kernel does not take the signal.
    pub fn signal(&self, number: u16) -> io::Result<()> {
        self.eventfd(number).map_or(Ok(()), |eventfd| eventfd.write(1))
    }

    /// What raises vector `number` when written.
    pub fn eventfd(&self, number: u16) -> Option<&EventFd> {
        self.vectors
            .get(usize::from(number))
            .map(|vector| vector.eventfd())
    }

    /// The guest reads the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let table = self.table();
        for (i, byte) in (0..).zip(data) {
            let at = offset.saturating_add(i);
            let entry = usize::try_from(at / ENTRY_SIZE)
                .ok()
                .and_then(|i| table.entries.get(i));
            let raw = entry.map_or(0, |entry| {
                u128::from(entry.message.address)
                    | u128::from(entry.message.data) << 64
                    | u128::from(entry.masked) << 96
            });
            *byte = (raw >> (8 * (at % ENTRY_SIZE))) as u8;
        }
    }

    /// The guest writes the table: whole aligned double words, one or two (§6.8.2); others are ignored.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        if !offset.is_multiple_of(4) || !matches!(data.len(), 4 | 8) {
            return;
        }
        let (words, _) = data.as_chunks::<4>();
        let mut table = self.table();
        for (i, word) in (0..).step_by(4).zip(words) {
            self.write_word(&mut table, offset.saturating_add(i), u32::from_le_bytes(*word));
        }
    }

    fn write_word(&self, table: &mut Table, offset: u64, word: u32) {
        let Ok(index) = usize::try_from(offset / ENTRY_SIZE) else {
            return;
        };
        let Some(entry) = table.entries.get_mut(index) else {
            return;
        };
        let message = &mut entry.message;
        match offset % ENTRY_SIZE {
            0 => message.address = message.address & !0xffff_ffff | u64::from(word),
            4 => message.address = message.address & 0xffff_ffff | u64::from(word) << 32,
            8 => message.data = word,
            _ => entry.masked = word & VECTOR_MASK != 0,
        }
        let open = self.enabled() && !table.function_masked;
        self.route(index, entry, open);
    }

    /// The guest reads the pending bits; it cannot write them.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let table = self.table();
        for (i, byte) in (0..).zip(data) {
            let at = offset.saturating_add(i);
            *byte = (0..8)
                .filter(|bit| {
                    let number = at.checked_mul(8).and_then(|first| first.checked_add(*bit));
                    number.is_some_and(|number| self.pending(&table, number))
                })
                .fold(0, |bits, bit| bits | 1 << bit);
        }
    }

    /// A signal waits for vector `number` to be unmasked. The counter is read and put back.
    fn pending(&self, table: &Table, number: u64) -> bool {
        let Ok(index) = usize::try_from(number) else {
            return false;
        };
        let (Some(vector), Some(entry)) = (self.vectors.get(index), table.entries.get(index)) else {
            return false;
        };
        entry.routed.is_none()
            && vector.eventfd().read().is_ok_and(|signals| {
                if let Err(error) = vector.eventfd().write(signals) {
                    log::warn!("MSI-X vector {index}: a pending interrupt is lost: {error}");
                }
                true
            })
    }

    fn forget_pending(&self, table: &Table) {
        for (vector, entry) in self.vectors.iter().zip(&table.entries) {
            if entry.routed.is_none() {
                let _ = vector.eventfd().read();
            }
        }
    }

    /// Forgets what waits: its cause is gone with a reset of the device (§6.8.3.5).
    pub fn clear_pending(&self) {
        self.forget_pending(&self.table());
    }

    fn route_all(&self, table: &mut Table) {
        let open = self.enabled() && !table.function_masked;
        for (index, entry) in table.entries.iter_mut().enumerate() {
            self.route(index, entry, open);
        }
    }

    fn route(&self, index: usize, entry: &mut Entry, open: bool) {
        let message = (open && !entry.masked).then_some(entry.message);
        if message == entry.routed {
            return;
        }
        match self
            .vectors
            .get(index)
            .map_or(Ok(()), |vector| vector.route(message))
        {
            Ok(()) => entry.routed = message,
            Err(error) => log::warn!("MSI-X vector {index} keeps its former route: {error}"),
        }
    }

    /// Brings everything back to how it was at power-on: disabled, every vector masked, nothing pending.
    pub fn reset(&self) {
        let mut table = self.table();
        self.enabled.store(false, Ordering::Release);
        self.route_all(&mut table);
        self.forget_pending(&table);
        let blank = || Entry {
            message: MsiMessage { address: 0, data: 0 },
            masked: true,
            routed: None,
        };
        table.function_masked = false;
        table.entries = self.vectors.iter().map(|_| blank()).collect();
    }

    /// The table and what is pending.
    pub fn save(&self) -> Vec<MsixVectorState> {
        let table = self.table();
        (0..)
            .zip(&table.entries)
            .map(|(number, entry)| MsixVectorState {
                address: entry.message.address,
                data: entry.message.data,
                masked: entry.masked,
                pending: self.pending(&table, number),
            })
            .collect()
    }

    /// Takes up a saved table, with the message control that configuration space holds.
    ///
    /// # Errors
    /// When the state has another number of vectors.
    pub fn restore(&self, device: &'static str, saved: &[MsixVectorState], control: u16) -> Result<()> {
        if saved.len() != self.vectors.len() {
            let reason = format!("{} MSI-X vectors instead of {}", saved.len(), self.vectors.len());
            return Err(Error::State { device, reason });
        }
        self.reset();
        let mut table = self.table();
        for ((entry, saved), vector) in table.entries.iter_mut().zip(saved).zip(&self.vectors) {
            entry.message = MsiMessage {
                address: saved.address,
                data: saved.data,
            };
            entry.masked = saved.masked;
            if saved.pending {
                vector
                    .eventfd()
                    .write(1)
                    .map_err(Error::io("raise a pending interrupt"))?;
            }
        }
        self.enabled.store(control & ENABLE != 0, Ordering::Release);
        table.function_masked = control & FUNCTION_MASK != 0;
        self.route_all(&mut table);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
