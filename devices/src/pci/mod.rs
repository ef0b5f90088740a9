//! A PCI bus: what a function shows of itself, where its memory lies, how it interrupts (PCI 3.0; the
//! enhanced configuration access of PCI Express 3.0, §7.2.2).
//!
//! [`root`] is the bus; what is plugged into it is a [`PciFunction`]. A guest moves a function's memory and
//! switches it on and off through configuration space; the bus then moves the ranges.
//!
//! There is no interrupt line (INTx): functions have MSI-X only, their interrupt pin reads 0.

pub mod bar;
pub mod config;
pub mod hotplug;
pub mod msix;
pub mod root;

use bar::BarRange;

/// A function (always function 0 of its device) on the bus.
///
/// Several vCPUs may call at once. No call may reach back into the bus.
pub trait PciFunction: Send + Sync {
    /// Reads configuration space; bytes that are not there read as zero.
    fn read_config(&self, offset: u16, data: &mut [u8]);
    /// Writes configuration space; what is read-only or not there is ignored.
    fn write_config(&self, offset: u16, data: &[u8]);
    /// Where the function answers at present, as the guest set it up: none while memory decoding is off. The
    /// bus keeps what cannot be off.
    fn bars(&self) -> Vec<BarRange>;
    /// Reads memory behind BAR `bar`.
    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]);
    /// Writes memory behind BAR `bar`.
    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]);
    /// `range` is on the bus now: doorbells in it may be assigned.
    fn mapped(&self, _range: BarRange) {}
    /// `range` leaves the bus: what [`PciFunction::mapped`] did is undone.
    fn unmapped(&self, _range: BarRange) {}
    /// Brings the function back to how it was at power-on.
    fn reset(&self);
}
