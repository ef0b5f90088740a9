//! A machine comes to this pod from another one: the controller says so in `migration.json`, with the certificate of that
//! pod. This one listens for it alone, until it has come.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use nacelle_vmm::VmConfig;
use nacelle_vmm::migrate::Cancel;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::Signal;
use tokio::task::spawn_blocking;

use crate::driver::{self, Started};
use crate::migrate::address::Address;
use crate::migrate::pair::Pair;
use crate::migrate::stream::Listener;
use crate::net::pod::OWN_PORTS;
use crate::{Error, Result};

/// `migration.json`: who comes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Expected {
    /// The UID of the migration.
    pub migration: String,
    /// The certificate of the pod that has the machine, in PEM.
    pub certificate: String,
}

/// Where this pod listens, as the controller is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Arrival {
    /// The UID of the migration.
    pub migration: String,
    /// `HOST:PORT`.
    pub address: String,
    /// Our certificate, in PEM.
    pub certificate: String,
}

/// A pod that waits for its machine.
pub(super) struct Waiting {
    listener: Listener,
    cancel: Cancel,
    /// What the controller is told.
    pub arrival: Arrival,
}

/// Who comes; nobody where the file is not there or empty, as it is in a pod of which the machine begins.
pub(super) fn expected(file: &Path) -> Result<Option<Expected>> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file("read the migration", file)(error)),
    };
    if text.trim().is_empty() {
        return Ok(None);
    }
    let read = serde_json::from_str(&text).map(Some);
    read.map_err(|error| Error::Document {
        path: file.to_owned(),
        reason: error.to_string(),
    })
}

impl Waiting {
    /// Listens at `address`, one of the pod's.
    pub fn listen(expected: &Expected, address: IpAddr) -> Result<Waiting> {
        let pair = Pair::new(&expected.migration, Some(address))?;
        let at = Address::Tcp {
            host: address.to_string(),
            port: *OWN_PORTS.start(),
        };
        let cancel = Cancel::new();
        let listener = Listener::bind(&at, || pair.server(&expected.certificate), cancel.clone())?;
        Ok(Waiting {
            listener,
            cancel,
            arrival: Arrival {
                migration: expected.migration.clone(),
                address: at.to_string(),
                certificate: pair.certificate().to_owned(),
            },
        })
    }

    /// Waits for the machine; whether this pod was told to end meanwhile. One that has come nevertheless runs nowhere else,
    /// so that it must be told, not dropped.
    pub async fn arrive(
        self,
        config: VmConfig,
        options: driver::Options,
        terminate: &mut Signal,
    ) -> Result<(Started, bool)> {
        let Waiting { listener, cancel, .. } = self;
        let wish = cancel.clone();
        let arrival = spawn_blocking(move || {
            driver::receive(config, options, move || listener.accept(), &wish, &mut ())
        });
        tokio::pin!(arrival);
        let mut told = false;
        let arrived = loop {
            tokio::select! {
                arrived = &mut arrival => break arrived,
                _ = terminate.recv() => {
                    told = true;
                    cancel.cancel();
                }
            }
        };
        let started = arrived
            .map_err(|error| Error::io("wait for a machine")(std::io::Error::other(error)))?
            .map_err(Error::NotReceived)?;
        Ok((started, told))
    }
}
