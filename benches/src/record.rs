//! What was measured: plain data, which is the JSON, too.

use serde::{Deserialize, Serialize};

/// Everything that one call of the command measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Of this format.
    pub version: u32,
    /// When it was begun, UTC.
    pub taken: String,
    /// Where.
    pub host: Host,
    /// By which command line.
    pub command: Vec<String>,
    /// What was not measured, and why.
    pub notes: Vec<String>,
    /// One for each measure.
    pub measures: Vec<Measured>,
}

/// The machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Model of its processor, and how many of them.
    pub cpu: String,
    /// Its kernel.
    pub kernel: String,
    /// Which KVM it has.
    pub kvm: String,
    /// What time is.
    pub clock: String,
}

/// One measure, of all monitors.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Its name.
    pub measure: String,
    /// Monitors, ours first.
    pub peers: Vec<PeerRuns>,
}

/// What one monitor gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerRuns {
    /// The monitor.
    pub peer: String,
    /// As it says itself.
    pub version: String,
    /// One for each metric, each with a value for each run.
    pub metrics: Vec<Metric>,
    /// Why there are no more runs.
    pub failed: Option<String>,
}

/// A metric over all runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// Its unit.
    pub unit: Unit,
    /// A value a run, in the order of the runs.
    pub values: Vec<f64>,
}

/// Units; what they are told in is chosen by the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Time.
    Nanoseconds,
    /// Memory.
    Bytes,
    /// Things.
    Count,
    /// Operations that other figures are of: no result themselves.
    Sample,
    /// Things a second.
    PerSecond,
    /// Data a second.
    BytesPerSecond,
}

impl Unit {
    /// Whether more is better.
    pub fn more_is_better(self) -> bool {
        matches!(self, Unit::PerSecond | Unit::BytesPerSecond)
    }

    /// A value as people read it.
    pub fn show(self, value: f64) -> String {
        let scaled = |step: f64, names: &[&str]| {
            let mut value = value;
            let mut names = names.iter().peekable();
            let mut name = names.next().copied().unwrap_or_default();
            while value.abs() >= step && names.peek().is_some() {
                value /= step;
                name = names.next().copied().unwrap_or_default();
            }
            let digits = match value.abs() {
                n if n >= 100.0 || n.fract() == 0.0 => 0,
                n if n >= 10.0 => 1,
                _ => 2,
            };
            format!("{value:.digits$}{name}")
        };
        match self {
            Unit::Nanoseconds => scaled(1000.0, &[" ns", " µs", " ms", " s"]),
            Unit::Bytes => scaled(1024.0, &[" B", " KiB", " MiB", " GiB"]),
            Unit::BytesPerSecond => scaled(1000.0, &[" B/s", " kB/s", " MB/s", " GB/s"]),
            Unit::Count | Unit::Sample => scaled(f64::INFINITY, &[""]),
            Unit::PerSecond => scaled(1e6, &["/s", "M/s"]),
        }
    }
}

/// One value of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Name of the metric.
    pub name: String,
    /// Its unit.
    pub unit: Unit,
    /// The value.
    pub value: f64,
}

/// A reading.
pub fn reading(name: impl Into<String>, unit: Unit, value: f64) -> Reading {
    Reading {
        name: name.into(),
        unit,
        value,
    }
}

impl PeerRuns {
    /// Adds what one run gave. A metric that a run lacks ends with it: values of other runs would be paired wrongly.
    pub fn add(&mut self, readings: Vec<Reading>) {
        let first = self.metrics.is_empty();
        for reading in readings {
            match self.metrics.iter_mut().find(|metric| metric.name == reading.name) {
                Some(metric) => metric.values.push(reading.value),
                None if first => self.metrics.push(Metric {
                    name: reading.name,
                    unit: reading.unit,
                    values: vec![reading.value],
                }),
                None => {}
            }
        }
        let runs = self
            .metrics
            .iter()
            .map(|metric| metric.values.len())
            .max()
            .unwrap_or(0);
        self.metrics.retain(|metric| metric.values.len() == runs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_as_people_read_them() {
        for (unit, value, shown) in [
            (Unit::Nanoseconds, 36_120.0, "36.1 µs"),
            (Unit::Nanoseconds, 7_912_345_678.0, "7.91 s"),
            (Unit::Nanoseconds, -1500.0, "-1.50 µs"),
            (Unit::Bytes, 1536.0, "1.50 KiB"),
            (Unit::Bytes, 0.0, "0 B"),
            (Unit::Count, 4.0, "4"),
            (Unit::Sample, 1000.0, "1000"),
            (Unit::PerSecond, 27_000.0, "27000/s"),
            (Unit::BytesPerSecond, 7.1e8, "710 MB/s"),
        ] {
            assert_eq!(unit.show(value), shown);
        }
    }

    #[test]
    fn runs_are_kept_in_step() {
        let mut runs = PeerRuns {
            peer: "x".into(),
            version: String::new(),
            metrics: Vec::new(),
            failed: None,
        };
        runs.add(vec![
            reading("a", Unit::Count, 1.0),
            reading("b", Unit::Count, 2.0),
        ]);
        runs.add(vec![
            reading("a", Unit::Count, 3.0),
            reading("late", Unit::Count, 9.0),
        ]);
        assert_eq!(runs.metrics.len(), 1);
        assert_eq!(runs.metrics[0].values, [1.0, 3.0]);
    }
}
