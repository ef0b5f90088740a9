//! `pod init`: the machine's interface, and what the one that runs the machine is told of it.

use std::fs;
use std::path::Path;

use super::{Root, instance, runtime};
use crate::net::pod::{self, Interface};
use crate::{Error, Result};

pub(super) fn run(root: &Root) -> Result<()> {
    let plan = instance::read(&root.instance())?;
    let interfaces = runtime()?.block_on(pod::make(&plan.nets))?;
    for interface in &interfaces {
        log::info!(
            "network {}: tap {}, the guest is told {}",
            interface.network,
            interface.tap,
            interface.lease.address
        );
    }
    let file = root.net();
    let text = serde_json::to_vec(&interfaces).map_err(|error| Error::Document {
        path: file.clone(),
        reason: error.to_string(),
    })?;
    fs::write(&file, text).map_err(Error::file("write", &file))
}

/// What `pod init` made.
pub(super) fn read(file: &Path) -> Result<Vec<Interface>> {
    let text = fs::read(file).map_err(Error::file("read what `nacelle pod init` made from", file))?;
    serde_json::from_slice(&text).map_err(|error| Error::Document {
        path: file.to_owned(),
        reason: error.to_string(),
    })
}
