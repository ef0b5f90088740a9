//! What the fuzz targets share: a guest's memory and driver ([`guest`]), and the devices with the host's ends
//! of them ([`device`]).
//!
//! A device works on an I/O thread as it does in a machine; [`guest::settle`] waits for that thread, so that a
//! run is the same each time.

pub mod device;
pub mod disk;
pub mod guest;
pub mod msi;
pub mod sparse;
