//! The process around one virtual machine: what `nacelle` is made of, for its tests and its binary.

pub mod admit;
pub mod agent;
pub mod cli;
pub mod convert;
pub mod driver;
pub mod exit;
pub mod explain;
pub mod figures;
pub mod http;
pub mod live;
pub mod logging;
pub mod manage;
mod memory;
pub mod migrate;
pub mod net;
pub mod node;
pub mod origin;
pub mod pod;
pub mod processor;
pub mod run;
pub mod storage;
pub mod terminal;
#[cfg(test)]
mod testing;
pub mod upgrade;

pub use exit::{Error, Result, Status};
