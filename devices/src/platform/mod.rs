//! What a PC has beside virtio devices.

pub mod cmos;
pub mod ged;
pub mod i6300esb;
pub mod i8042;
pub mod pvpanic;
pub mod serial;
pub mod sleep;
pub mod vmgenid;
