//! What the launcher says of itself: on standard error, for people or as JSON, a line each.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use clap::ValueEnum;
use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::convert::Names;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// `warning: text`, in colour on a terminal.
    #[default]
    Human,
    /// One JSON object a line: `time`, `level`, `target`, `message`, and in a pod `namespace`, `name`, `uid` of its machine.
    Json,
}

static INSTANCE: OnceLock<Names> = OnceLock::new();

/// Says whose lines follow; there is one machine in a process.
pub fn instance(instance: Names) {
    // The second time it is the same.
    let _ = INSTANCE.set(instance);
}

fn fields(instance: &Names) -> [(&'static str, &str); 3] {
    [
        ("namespace", &instance.namespace),
        ("name", &instance.name),
        ("uid", &instance.uid),
    ]
}

/// While a terminal is raw, a line ends with a carriage return too.
static RAW: AtomicBool = AtomicBool::new(false);

/// Says that the terminal is in raw mode, or no longer.
pub fn raw_terminal(raw: bool) {
    RAW.store(raw, Ordering::Relaxed);
}

struct Logger {
    format: Format,
    colour: bool,
}

/// Starts logging; later calls change nothing.
pub fn start(format: Format, level: LevelFilter) {
    let colour = format == Format::Human
        && std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if log::set_boxed_logger(Box::new(Logger { format, colour })).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Our own crates; libraries only where something is wrong.
        metadata.target().starts_with("nacelle") || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let mut line = self.line(record, INSTANCE.get(), SystemTime::now());
            line.push('\n');
            if RAW.load(Ordering::Relaxed) {
                line = line.replace('\n', "\r\n");
            }
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

impl Logger {
    fn line(&self, record: &Record<'_>, instance: Option<&Names>, now: SystemTime) -> String {
        let fields = instance.iter().flat_map(|names| fields(names));
        match self.format {
            Format::Json => {
                let mut line = serde_json::Map::new();
                let time = humantime::format_rfc3339_millis(now).to_string();
                line.insert("time".into(), time.into());
                line.insert(
                    "level".into(),
                    record.level().as_str().to_ascii_lowercase().into(),
                );
                line.insert("target".into(), record.target().into());
                line.insert("message".into(), record.args().to_string().into());
                line.extend(fields.map(|(field, value)| (field.to_owned(), value.into())));
                serde_json::Value::Object(line).to_string()
            }
            Format::Human => {
                let (word, colour) = match record.level() {
                    Level::Error => ("error: ", "31"),
                    Level::Warn => ("warning: ", "33"),
                    Level::Info => ("", ""),
                    Level::Debug | Level::Trace => ("debug: ", "2"),
                };
                let mut line = String::from("nacelle: ");
                if self.colour && !word.is_empty() {
                    let _ = write!(line, "\x1b[{colour}m{word}\x1b[0m");
                } else {
                    line.push_str(word);
                }
                let _ = write!(line, "{}", record.args());
                for (field, value) in fields {
                    let _ = write!(line, " {field}={value}");
                }
                line
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn lines_for_people_and_for_programs() {
        let line = |format, instance: Option<&Names>| {
            let logger = Logger {
                format,
                colour: false,
            };
            let mut record = Record::builder();
            record.level(Level::Warn).target("nacelle::run");
            logger.line(
                &record.args(format_args!("say \"{}\"", 1)).build(),
                instance,
                UNIX_EPOCH,
            )
        };
        let instance = Names {
            namespace: "n".into(),
            name: "a".into(),
            uid: "u".into(),
        };
        assert_eq!(line(Format::Human, None), "nacelle: warning: say \"1\"");
        assert_eq!(
            line(Format::Human, Some(&instance)),
            "nacelle: warning: say \"1\" namespace=n name=a uid=u"
        );
        let object: serde_json::Value = serde_json::from_str(&line(Format::Json, Some(&instance))).unwrap();
        assert_eq!(
            object,
            serde_json::json!({"time": "1970-01-01T00:00:00.000Z", "level": "warn", "target": "nacelle::run",
                "message": "say \"1\"", "namespace": "n", "name": "a", "uid": "u"})
        );
        let object: serde_json::Value = serde_json::from_str(&line(Format::Json, None)).unwrap();
        assert!(object.get("uid").is_none(), "{object}");
    }
}
