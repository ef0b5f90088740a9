//! `nacelle attach`, `nacelle detach`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use nacelle_vmm::config::DiskFormat;
use serde_json::json;
use tokio::time::sleep;

use super::client::Client;
use crate::exit::{Error, Result};
use crate::http::api::{Attach, Detach, Machine};

/// How often it is looked whether a disk has left.
const LOOK: Duration = Duration::from_millis(100);

/// A disk to attach.
#[derive(Args, Clone, Debug)]
pub struct DiskArgs {
    /// Its name, by which it is detached again
    #[arg(value_name = "DISK")]
    pub disk: String,
    /// An image file, a block device or a directory with a disk.img
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// What is in the file
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
    /// Serial number that the guest reads
    #[arg(long, value_name = "TEXT")]
    serial: Option<String>,
    /// The guest may not write
    #[arg(long)]
    read_only: bool,
    /// As `cache` of a disk: none, writethrough, writeback [default: none, or writethrough where that cannot be]
    #[arg(long, value_name = "MODE")]
    cache: Option<String>,
    /// As `errorPolicy` of a disk: stop, report, ignore, enospace [default: stop]
    #[arg(long, value_name = "WHAT")]
    error_policy: Option<String>,
}

/// `--format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The disk itself, byte by byte
    #[default]
    Raw,
    /// QEMU's copy-on-write format
    Qcow2,
}

impl DiskArgs {
    /// The request.
    ///
    /// # Errors
    /// When its path cannot be made absolute.
    pub fn asked(&self) -> Result<Attach> {
        let file = std::path::absolute(&self.path).map_err(Error::file("find", &self.path))?;
        Ok(Attach {
            disk: json!({
                "name": self.disk,
                "serial": self.serial,
                "cache": self.cache,
                "errorPolicy": self.error_policy,
                "disk": {"readonly": self.read_only},
            }),
            file: Some(file),
            format: match self.format {
                Format::Raw => DiskFormat::Raw,
                Format::Qcow2 => DiskFormat::Qcow2,
            },
            handover: None,
        })
    }
}

/// Has `disk` let go of, and says so when it has been.
///
/// # Errors
/// When the machine refuses, or ends.
pub async fn detach(client: &Client, disk: String, no_wait: bool) -> Result<String> {
    let mut machine: Machine = client
        .put_body("/v1/machine/detach", &Detach { disk: disk.clone() })
        .await?;
    if no_wait {
        return Ok(format!(
            "{}: the guest is asked to let go of disk {disk}\n",
            machine.name
        ));
    }
    while machine.plugged.iter().any(|plugged| plugged.name == disk) {
        sleep(LOOK).await;
        machine = client.get("/v1/machine").await?;
    }
    Ok(format!("{}: disk {disk} has left\n", machine.name))
}
