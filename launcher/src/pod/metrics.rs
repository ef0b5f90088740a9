//! Tells the node agent what it asks: the machine's figures, which it gives to Prometheus.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::sleep;

use crate::admit::Command;
use crate::agent::Agent;
use crate::convert::Names;
use crate::driver::{Answer, Driver};
use crate::figures::{ASK, Figures, Migration, own_time};
use crate::http::route::process;

/// Until an agent that is not there, or went, is looked for again.
const AGAIN: Duration = Duration::from_secs(5);

/// Whose figures they are.
#[derive(Clone)]
pub(super) struct Whose {
    pub names: Names,
    pub driver: Driver,
    pub agent: Agent,
}

/// Answers for as long as it is let.
pub(super) async fn serve(socket: &Path, whose: &Whose) -> Infallible {
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => {
                if let Err(error) = answer(stream, whose).await {
                    log::debug!("the node agent: {error}");
                }
            }
            Err(error) => log::debug!("{}: {error}", socket.display()),
        }
        sleep(AGAIN).await;
    }
}

/// Answers one agent until it goes, or asks for what we do not know.
async fn answer(stream: UnixStream, whose: &Whose) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        let most = ASK.len() as u64;
        (&mut stream).take(most).read_line(&mut line).await?;
        if line != ASK {
            return Ok(());
        }
        let Some(figures) = whose.figures().await else {
            return Ok(());
        };
        let mut bytes = serde_json::to_vec(&figures)?;
        bytes.push(b'\n');
        stream.write_all(&bytes).await?;
    }
}

impl Whose {
    /// `None` when there is no machine any more.
    async fn figures(&self) -> Option<Figures> {
        let Ok(Answer::Stats(stats)) = self.driver.ask(Command::Stats).await else {
            return None;
        };
        let stats = process(*stats).ok()?;
        let (time, each_vcpu) = own_time();
        Some(Figures {
            namespace: self.names.namespace.clone(),
            name: self.names.name.clone(),
            uid: self.names.uid.clone(),
            stats,
            time,
            each_vcpu,
            filesystems: self.agent.said().fs_info,
            migration: self.driver.moving().map(|moving| Migration {
                total: moving.progress.memory,
                processed: moving.progress.wire,
                remaining: moving.sending.1.saturating_sub(moving.sending.0),
                dirty_rate: moving.progress.dirty_rate,
                rate: moving.progress.round.rate,
            }),
        })
    }
}
