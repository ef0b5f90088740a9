//! How long a start takes, in parts: for the log, and for who asks for traces.

use std::fmt;
use std::future::pending;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::http::console::Console;

/// How long each part of the start took.
pub(super) struct Spans {
    began: SystemTime,
    clock: Instant,
    parts: Vec<(&'static str, Duration)>,
}

/// What the controller is told of it. Times are microseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Start {
    began: u64,
    parts: Vec<(&'static str, u64)>,
    first_line: u64,
}

impl Spans {
    pub fn begin() -> Spans {
        Spans {
            began: SystemTime::now(),
            clock: Instant::now(),
            parts: Vec::new(),
        }
    }

    /// Ends the part that began when the one before it ended.
    pub fn end(&mut self, part: &'static str) {
        let before: Duration = self.parts.iter().map(|(_, took)| *took).sum();
        self.parts
            .push((part, self.clock.elapsed().saturating_sub(before)));
    }

    fn until(&self, first_line: SystemTime) -> Start {
        let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Start {
            began: micros(since(self.began)),
            parts: self
                .parts
                .iter()
                .map(|(part, took)| (*part, micros(*took)))
                .collect(),
            first_line: micros(since(first_line)),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The whole start, when the guest has said its first line; never where nobody wants to know, or it says none.
pub(super) async fn told(spans: Option<Spans>, console: Console) -> Start {
    let Some(spans) = spans else {
        return pending().await;
    };
    match console.first_line().await {
        Some(time) => spans.until(time),
        None => pending().await,
    }
}

impl fmt::Display for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Duration = self.parts.iter().map(|(_, took)| *took).sum();
        write!(f, "{:.1} ms", all.as_secs_f64() * 1e3)?;
        for (part, took) in &self.parts {
            write!(f, ", {part} {:.1}", took.as_secs_f64() * 1e3)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn a_start_lasts_until_the_guests_first_line() {
        let (host, mut guest) = UnixStream::pair().unwrap();
        let (console, _serving) = Console::start(host, None).unwrap();
        let mut spans = Spans::begin();
        spans.end("machine");
        guest.write_all(b"no line").unwrap();
        guest.write_all(b" yet\n").unwrap();
        let start = told(Some(spans), console).await;
        assert!(start.first_line >= start.began, "{start:?}");
        let json = serde_json::to_value(&start).unwrap();
        assert_eq!(json["parts"][0][0], "machine", "{json}");
        assert!(json["firstLine"].is_u64() && json["began"].is_u64(), "{json}");
    }
}
