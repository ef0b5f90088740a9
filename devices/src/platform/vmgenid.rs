//! Generation id: sixteen bytes in guest memory that change when a machine is restored from a snapshot, so
//! that its guest renews what must be unique (Microsoft, Virtual Machine Generation ID).

use vm_memory::{Bytes, GuestAddress};

use crate::memory::Memory;
use crate::{Error, Result};

/// Size of the id in bytes.
pub const SIZE: usize = 16;

/// Writes a new random id to guest memory at `address`, which the tables name.
///
/// # Errors
/// When the host has no randomness or `address` is not in memory.
pub fn renew(memory: &Memory, address: u64) -> Result<()> {
    let mut id = [0; SIZE];
    getrandom::fill(&mut id)
        .map_err(|error| Error::io("make a generation id")(std::io::Error::other(error)))?;
    memory
        .write_slice(&id, GuestAddress(address))
        .map_err(|error| Error::io("write the generation id")(std::io::Error::other(error)))
}
