//! The machine below the firmware: how it is entered and left, its memory, its ports, the tables that describe it.

pub mod acpi;
pub mod heap;
pub mod paging;
pub mod ports;
pub mod pvh;
pub mod ring0;
pub mod serial;
pub mod stages;
pub mod window;
