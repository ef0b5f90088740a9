//! `pod console-log`: the guest's serial line as the log of a container, for `kubectl logs`.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, copy};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use super::{Root, runtime};
use crate::{Error, Result};

/// How often a machine is looked for that is not there yet.
const LOOK: Duration = Duration::from_millis(20);

/// Copies what the machine says to standard output until it has ended. Once it is there, SIGTERM is its affair alone: what
/// the guest says on its way out is printed too.
pub(super) fn run(root: &Root) -> Result<()> {
    runtime()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(Error::io("handle signals"))?;
        let socket = root.machine();
        let machine = tokio::select! {
            machine = wait_for(&socket) => machine?,
            _ = terminate.recv() => return Ok(()),
        };
        print(machine, &root.console_log()).await
    })
}

/// Prints what is said at `socket`, from when the machine listens there until it does no more.
async fn print(mut machine: UnixStream, socket: &Path) -> Result<()> {
    loop {
        if let Some(mut line) = connect(socket).await? {
            let printed = copy(&mut line, &mut tokio::io::stdout()).await;
            return printed.map(drop).map_err(Error::io("print the guest's console"));
        }
        // It never says anything here: it has ended before it had a line.
        if timeout(LOOK, machine.read_u8()).await.is_ok() {
            return Ok(());
        }
    }
}

async fn wait_for(socket: &Path) -> Result<UnixStream> {
    loop {
        match connect(socket).await? {
            Some(stream) => return Ok(stream),
            None => sleep(LOOK).await,
        }
    }
}

/// A connection, where somebody listens.
async fn connect(socket: &Path) -> Result<Option<UnixStream>> {
    match UnixStream::connect(socket).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
        Err(error) => Err(Error::file("connect to", socket)(error)),
    }
}
