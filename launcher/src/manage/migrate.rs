//! `nacelle migrate`: asks for it, and shows how far it is.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{MissedTickBehavior, interval};

use super::client::Client;
use super::{Format, json, show};
use crate::exit::Result;
use crate::http::api::{Migrate, Migrated, Migration};

/// How often it is looked how far it is.
const LOOK: Duration = Duration::from_millis(200);

/// Moves the machine `name` and gives the words for its end.
pub(super) async fn run(client: &Client, name: &str, asked: &Migrate, format: Format) -> Result<String> {
    let mut shown = Shown::new(format);
    let moved = client.long::<Migrated>("/v1/machine/migrate", Some(asked));
    tokio::pin!(moved);
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let moved = loop {
        tokio::select! {
            moved = &mut moved => break moved,
            _ = looks.tick() => {
                // It may not have begun, or be over.
                if let Ok(migration) = client.get::<Migration>("/v1/machine/migration").await {
                    shown.tell(&migration);
                }
            }
        }
    };
    shown.end();
    let moved = moved?;
    match format {
        Format::Json => json(&moved),
        Format::Table => Ok(words(name, &asked.to, &moved)),
    }
}

/// What is said of a machine that has moved.
pub(super) fn words(name: &str, to: &str, moved: &Migrated) -> String {
    format!(
        "{name} runs at {to}: moved in {}.{:03} s, {} sent, the guest stood still for {}.{} ms\n",
        moved.total_milliseconds / 1000,
        moved.total_milliseconds % 1000,
        show::bytes(moved.sent),
        moved.downtime_microseconds / 1000,
        moved.downtime_microseconds % 1000 / 100,
    )
}

/// Where progress is shown: a bar on a terminal, else lines of JSON on standard error.
enum Shown {
    Bar(ProgressBar),
    Lines(Option<Migration>),
}

impl Shown {
    fn new(format: Format) -> Shown {
        if format == Format::Json || !std::io::stderr().is_terminal() {
            return Shown::Lines(None);
        }
        let bar = ProgressBar::no_length();
        let style = ProgressStyle::with_template("[{bar:30}] {bytes}/{total_bytes} {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Shown::Bar(bar)
    }

    fn tell(&mut self, migration: &Migration) {
        match self {
            Shown::Bar(bar) => {
                bar.set_length(migration.round_of);
                bar.set_position(migration.round_done.min(migration.round_of));
                bar.set_message(status(migration));
            }
            Shown::Lines(last) if last.as_ref() == Some(migration) => {}
            Shown::Lines(last) => {
                if let Ok(line) = serde_json::to_string(migration) {
                    let _ = writeln!(std::io::stderr(), "{line}");
                }
                *last = Some(migration.clone());
            }
        }
    }

    fn end(&self) {
        if let Shown::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn status(migration: &Migration) -> String {
    if migration.rounds == 0 {
        return "all of memory".into();
    }
    let slowed = match migration.throttle {
        0 => String::new(),
        percent => format!(", slowed by {percent} %"),
    };
    format!(
        "round {}, the guest writes {}/s{slowed}, would stand still for {} ms",
        migration.rounds,
        show::bytes(migration.dirty_rate),
        migration.expected_downtime_milliseconds
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_in_a_sentence() {
        let moved = Migrated {
            total_milliseconds: 12_045,
            downtime_microseconds: 20_950,
            rounds: 4,
            sent: 3 << 30,
            throttle: 0,
        };
        assert_eq!(
            words("ledger", "unix:/run/in", &moved),
            "ledger runs at unix:/run/in: moved in 12.045 s, 3Gi sent, the guest stood still for 20.9 ms\n"
        );
    }

    #[test]
    fn progress_says_what_keeps_it_from_ending() {
        let migration = Migration {
            to: "unix:/run/in".into(),
            phase: "Converge".into(),
            rounds: 3,
            round_done: 0,
            round_of: 0,
            sent: 0,
            memory: 0,
            left: 0,
            dirty_rate: 80 << 20,
            rate: 0,
            expected_downtime_milliseconds: 700,
            throttle: 30,
            elapsed_milliseconds: 0,
        };
        let expected = "round 3, the guest writes 80Mi/s, slowed by 30 %, would stand still for 700 ms";
        assert_eq!(status(&migration), expected);
        assert_eq!(
            status(&Migration {
                rounds: 0,
                ..migration
            }),
            "all of memory"
        );
    }
}
