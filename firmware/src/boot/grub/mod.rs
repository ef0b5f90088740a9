//! `grub.cfg`: the part of GRUB's language that grub-mkconfig and cloud images write.

mod env;
mod menu;
mod parse;
mod run;
mod test;

pub use env::{Variables, block};
pub use menu::read;

/// Where a distribution has its `grub.cfg` and `grubenv`.
pub const PLACES: [&str; 4] = ["/boot/grub", "/boot/grub2", "/grub", "/grub2"];
