//! A small virtual machine monitor on `/dev/kvm`, as a library.
//!
//! [`VmConfig`] says what a machine is made of, [`Vm`] is the machine, [`VmEvent`] is what it tells its owner.
//! Nothing here knows of Kubernetes or of an async runtime; there is no global state, so a process may hold
//! many machines.
#![deny(unsafe_code)]

pub mod boot;
mod build;
pub mod config;
pub mod device;
pub mod error;
pub mod events;
pub mod hypervisor;
pub mod irq;
pub mod memory;
pub mod migrate;
mod power;
pub mod sandbox;
pub mod snapshot;
pub mod stats;
pub mod vcpu;
mod vm;

pub use config::VmConfig;
pub use error::{Error, Result};
pub use events::VmEvent;
pub use stats::Stats;
pub use vm::{Vm, VmState};
