//! The port of the agent, as commands and answers: lines of JSON, bounded.

use std::future::pending;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::answers::{self, Nonsense};
use super::commands::{self, DELIMITER};

/// Most bytes before the answer to a sync: what was said before, to nobody.
const STALE: usize = 4 << 20;
/// Most bytes of the answer to a sync.
const SYNC: usize = 4096;
/// What is read at a time.
const CHUNK: usize = 4096;

/// Why a conversation ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The machine has.
    Ended,
    /// The guest begins anew.
    Reset,
    /// No answer came in time.
    Silent,
    /// What came is no answer.
    Nonsense(String),
}

impl From<Nonsense> for Stop {
    fn from(nonsense: Nonsense) -> Self {
        Stop::Nonsense(nonsense.0)
    }
}

/// The port, by lines.
pub(super) struct Port {
    stream: UnixStream,
    /// What was read and is not of a line yet.
    read: Vec<u8>,
}

impl Port {
    pub fn new(stream: UnixStream) -> Port {
        Port {
            stream,
            read: Vec::new(),
        }
    }

    /// Drops what was read of a conversation that is over.
    pub fn forget(&mut self) {
        self.read = Vec::new();
    }

    /// Reads on. Nothing is lost where this is dropped before it returns.
    async fn more(&mut self) -> Result<(), Stop> {
        let mut chunk = [0; CHUNK];
        match self.stream.read(&mut chunk).await {
            Ok(count) if count > 0 => {
                self.read
                    .extend_from_slice(chunk.get(..count).unwrap_or_default());
                Ok(())
            }
            // The machine has let go of its end.
            _ => pending().await,
        }
    }

    /// The next line, of no more than `limit` bytes.
    async fn line(&mut self, limit: usize) -> Result<Vec<u8>, Stop> {
        let mut searched = 0;
        loop {
            let found = self.read.iter().skip(searched).position(|byte| *byte == b'\n');
            if let Some(end) = found {
                let rest = self.read.split_off(searched + end + 1);
                return Ok(std::mem::replace(&mut self.read, rest));
            }
            searched = self.read.len();
            if searched > limit {
                return Err(Stop::Nonsense(format!("a line of more than {limit} bytes")));
            }
            self.more().await?;
        }
    }

    async fn write(&mut self, line: &[u8]) -> Result<(), Stop> {
        match self.stream.write_all(line).await {
            Ok(()) => Ok(()),
            Err(_) => pending().await,
        }
    }

    /// Sends a line and reads the one that answers it.
    pub async fn exchange(&mut self, line: &[u8], limit: usize) -> Result<Vec<u8>, Stop> {
        if !self.read.is_empty() {
            return Err(Stop::Nonsense("an answer to nothing".into()));
        }
        self.write(line).await?;
        self.line(limit).await
    }

    /// Has the agent answer to `id`. All that it said before is passed over.
    pub async fn sync(&mut self, id: u32) -> Result<(), Stop> {
        self.write(&commands::sync(id)).await?;
        let mut stale = 0;
        loop {
            match self.read.iter().position(|byte| *byte == DELIMITER) {
                Some(begin) => {
                    self.read.drain(..=begin);
                    let line = self.line(SYNC).await?;
                    // An older sync may be answered first.
                    if answers::read::<u32>(&line) == Ok(Ok(id)) {
                        return Ok(());
                    }
                    stale += line.len();
                }
                None => {
                    stale += self.read.len();
                    self.read.clear();
                    self.more().await?;
                }
            }
            if stale > STALE {
                return Err(Stop::Nonsense(format!(
                    "{STALE} bytes, and a sync is not answered"
                )));
            }
        }
    }
}
