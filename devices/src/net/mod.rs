//! Where a network device's frames come from and go to.

pub mod backend;
pub mod tap;
#[cfg(test)]
pub(crate) mod testbed;

pub use backend::{Frame, HEADER_LEN, Header, NetBackend};
pub use tap::Tap;
