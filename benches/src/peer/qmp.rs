//! QEMU's machine protocol, as much of it as a migration takes: a line of JSON each way, and events between them.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Error, Result};

/// A connection to a QEMU.
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
    until: Instant,
    limit: Duration,
}

impl Qmp {
    /// Connects; all that is then asked for has `limit`.
    pub fn connect(socket: &Path, limit: Duration) -> Result<Qmp> {
        let stream = UnixStream::connect(socket);
        let stream = stream.map_err(Error::io(format!("connect to QEMU at {}", socket.display())))?;
        let mut qmp = Qmp {
            stream: BufReader::new(stream),
            until: Instant::now() + limit,
            limit,
        };
        qmp.next("QEMU's greeting")?;
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Asks for something: what it answers.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({"execute": command, "arguments": arguments}).to_string() + "\n";
        let stream = self.stream.get_mut();
        stream
            .write_all(line.as_bytes())
            .map_err(Error::io(format!("ask QEMU for {command}")))?;
        loop {
            let mut said = self.next(command)?;
            if let Some(error) = said.pointer("/error/desc") {
                return Err(refused(command, error));
            }
            if let Some(answer) = said.get_mut("return") {
                return Ok(answer.take());
            }
        }
    }

    /// Waits until a migration is over.
    pub fn migrated(&mut self) -> Result<()> {
        loop {
            let said = self.next("the end of the migration")?;
            let status = said.pointer("/data/status").and_then(Value::as_str);
            match (said.get("event").and_then(Value::as_str), status) {
                (Some("MIGRATION"), Some("completed")) => return Ok(()),
                (Some("MIGRATION"), Some("failed" | "cancelled")) => {
                    let went = self.ask("query-migrate", json!({}))?;
                    return Err(refused("migrate", went.get("error-desc").unwrap_or(&went)));
                }
                _ => {}
            }
        }
    }

    fn next(&mut self, awaited: &str) -> Result<Value> {
        let late = || Error::Late {
            awaited: format!("QEMU's answer to {awaited}"),
            limit: self.limit,
            said: String::new(),
        };
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        let mut line = String::new();
        let read = self
            .stream
            .get_ref()
            .set_read_timeout(Some(left))
            .and_then(|()| self.stream.read_line(&mut line));
        match read {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Err(late()),
            read => {
                read.map_err(Error::io(format!("hear QEMU's answer to {awaited}")))?;
                serde_json::from_str(&line).map_err(|_| Error::Tool {
                    command: format!("QEMU's {awaited}"),
                    said: match line.is_empty() {
                        true => "it closed the connection".into(),
                        false => line,
                    },
                })
            }
        }
    }
}

fn refused(command: &str, why: &Value) -> Error {
    Error::Tool {
        command: format!("QEMU's {command}"),
        said: why.as_str().map_or_else(|| why.to_string(), str::to_owned),
    }
}
