//! Log lines on standard error.

use k8s_openapi::jiff::Timestamp;
use log::{LevelFilter, Log, Metadata, Record};

struct Lines;

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries are heard when they warn.
        metadata.target().starts_with("nacelle") || metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let time = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string();
            eprintln!("{time} {:5} {}", record.level(), record.args());
        }
    }

    fn flush(&self) {}
}

/// Starts logging; `verbose` is how often `-v` was said.
pub fn start(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    if log::set_logger(&Lines).is_ok() {
        log::set_max_level(level);
    }
}
