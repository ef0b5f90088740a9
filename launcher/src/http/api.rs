//! What is said on a machine's socket, as JSON. `openapi.json` describes it for others; a test holds the two
//! together.

use std::time::Duration;

use nacelle_vmm::config::DiskFormat;
use nacelle_vmm::migrate::Report;
use nacelle_vmm::snapshot;
use serde::{Deserialize, Serialize};

pub use super::failure::{Code, Failure};
use crate::admit::State;
use crate::agent;
use crate::driver::{Moving, Plugged, Then};
use crate::migrate::address::Address;
use crate::migrate::tls::Files;
use crate::migrate::{CompressionArg, Credentials, Plan, TimeoutArg, Wanted};

/// What a machine is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: State,
    /// Process that holds it.
    pub pid: u32,
    /// Seconds since it was started.
    pub uptime_seconds: u64,
    /// vCPUs.
    pub vcpus: u8,
    /// Bytes of guest memory.
    pub memory: u64,
    /// How often it was reset.
    pub resets: u32,
    /// The guest said that it panicked, and was not reset since.
    pub guest_panicked: bool,
    /// The disk that failed, and why; a machine that is paused for it tries again when it is resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_error: Option<String>,
    /// Disks that were attached while it ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plugged: Vec<Plugged>,
}

/// Asks for a disk to be plugged in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Attach {
    /// The disk, as `domain.devices.disks[]` of a manifest has it.
    pub disk: serde_json::Value,
    /// Its file or block device, or a directory with a `disk.img`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<std::path::PathBuf>,
    /// What is in the file.
    #[serde(default)]
    pub format: DiskFormat,
    /// In a pod, instead of a file: the word by which the node agent knows who has it open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover: Option<String>,
}

/// Asks for a disk to be let go of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Detach {
    /// Its name.
    pub disk: String,
}

/// Counters of a machine and of the process that holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// The machine's.
    #[serde(flatten)]
    pub machine: nacelle_vmm::Stats,
    /// Bytes of the host's memory that the process holds, the guest's among them.
    pub resident: u64,
    /// Milliseconds of processor time that the process used, the guest's among them.
    pub cpu_milliseconds: u64,
}

/// Asks for a stop.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stop {
    /// Seconds that the guest has to power off; the machine's own where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<u32>,
}

/// Asks for a freeze of the guest's file systems.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Freeze {
    /// When they are thawed at the latest, as Kubernetes writes a time: `5m0s`, which is where it is not said; `0s` is never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfreeze_timeout: Option<String>,
}

impl Freeze {
    /// The same as a time, `None` for never.
    ///
    /// # Errors
    /// When it is none.
    pub fn timeout(&self) -> Result<Option<Duration>, Failure> {
        let Some(text) = &self.unfreeze_timeout else {
            return Ok(Some(agent::UNFREEZE));
        };
        let invalid = |error| {
            let message = format!("unfreezeTimeout: {text:?} is no time: {error}");
            Failure::new(
                Code::Invalid,
                message,
                "write it as 5m0s, or as 0s to leave it to unfreeze",
            )
        };
        let time = humantime::parse_duration(text).map_err(invalid)?;
        Ok((!time.is_zero()).then_some(time))
    }
}

/// Asks for a command in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Exec {
    /// Its program and its arguments.
    pub command: Vec<String>,
    /// Seconds that it may take.
    #[serde(default = "Exec::timeout")]
    pub timeout_seconds: u32,
}

impl Exec {
    fn timeout() -> u32 {
        1
    }
}

/// Asks for memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Balloon {
    /// Bytes of its memory that the guest shall leave to the host.
    pub bytes: u64,
}

/// Asks for a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Migrate {
    /// Where to: `HOST:PORT` or `unix:PATH`.
    pub to: String,
    /// Directory with `ca.pem`, `cert.pem` and `key.pem`, for `HOST:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<std::path::PathBuf>,
    /// Milliseconds that the guest may stand still.
    #[serde(default = "Migrate::downtime")]
    pub downtime_milliseconds: u64,
    /// Milliseconds that all of it may take.
    #[serde(default = "Migrate::timeout")]
    pub timeout_milliseconds: u64,
    /// What follows then.
    #[serde(default)]
    pub on_timeout: TimeoutArg,
    /// Disks that are copied to those that the target has prepared, beside those that end with the machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copy_disks: Vec<String>,
    /// Let the guest go on there at once, and its memory follow as it needs it.
    #[serde(default)]
    pub post_copy: bool,
    /// Slow the guest down when it writes faster than can be sent.
    #[serde(default = "Migrate::auto_converge")]
    pub auto_converge: bool,
    /// Most bytes a second while the guest runs here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<u64>,
    /// Connections that carry memory, 1 to 16.
    #[serde(default = "Migrate::streams")]
    pub streams: u16,
    /// Whether memory is compressed.
    #[serde(default)]
    pub compression: CompressionArg,
}

impl Migrate {
    fn downtime() -> u64 {
        50
    }

    fn timeout() -> u64 {
        300_000
    }

    fn auto_converge() -> bool {
        true
    }

    fn streams() -> u16 {
        1
    }

    /// What is asked for on the command line.
    pub fn new(to: &Address, tls: Option<&Files>, wanted: &Wanted) -> Migrate {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Migrate {
            to: to.to_string(),
            tls: tls.map(|files| files.directory().to_owned()),
            downtime_milliseconds: milliseconds(wanted.downtime),
            timeout_milliseconds: milliseconds(wanted.timeout),
            on_timeout: wanted.on_timeout,
            copy_disks: wanted.copy_disks.clone(),
            post_copy: wanted.post_copy,
            auto_converge: !wanted.no_auto_converge,
            bandwidth: wanted.bandwidth,
            streams: wanted.streams,
            compression: wanted.compression,
        }
    }

    /// The same for the machine's driver.
    ///
    /// # Errors
    /// What cannot be, in words.
    pub fn plan(&self) -> Result<Plan, String> {
        if !(1..=16).contains(&self.streams) {
            return Err(format!("{} streams, 1 to 16 can be", self.streams));
        }
        if self.bandwidth == Some(0) {
            return Err("a bandwidth of 0 moves nothing".into());
        }
        let wanted = Wanted {
            downtime: Duration::from_millis(self.downtime_milliseconds),
            timeout: Duration::from_millis(self.timeout_milliseconds),
            on_timeout: self.on_timeout,
            copy_disks: self.copy_disks.clone(),
            post_copy: self.post_copy,
            no_auto_converge: !self.auto_converge,
            bandwidth: self.bandwidth,
            streams: self.streams,
            compression: self.compression,
        };
        Ok(Plan {
            to: self.to.parse()?,
            tls: self.tls.as_deref().map(Files::new).map(Credentials::Files),
            options: wanted.options(),
            copied: self
                .copy_disks
                .iter()
                .map(|name| format!("disk-{name}"))
                .collect(),
        })
    }
}

/// How far a migration is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Migration {
    /// Where to.
    pub to: String,
    /// What is being done.
    pub phase: String,
    /// Rounds that have ended.
    pub rounds: u32,
    /// Bytes of guest memory of this round that are on their way.
    pub round_done: u64,
    /// Bytes of guest memory that this round is about.
    pub round_of: u64,
    /// Bytes that were sent.
    pub sent: u64,
    /// Bytes of guest memory.
    pub memory: u64,
    /// Bytes of guest memory that are to be sent.
    pub left: u64,
    /// Bytes a second that the guest writes.
    pub dirty_rate: u64,
    /// Bytes of guest memory a second that are sent.
    pub rate: u64,
    /// Milliseconds that the guest would stand still now.
    pub expected_downtime_milliseconds: u64,
    /// Percent of their time that the guest's processors are held still.
    pub throttle: u8,
    /// Milliseconds since it began, as of the last round.
    pub elapsed_milliseconds: u64,
}

impl From<Moving> for Migration {
    fn from(moving: Moving) -> Self {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let Moving {
            to,
            phase,
            sending: (round_done, round_of),
            progress,
        } = moving;
        Migration {
            to,
            phase: format!("{phase:?}"),
            rounds: match progress.round.took.is_zero() {
                true => 0,
                false => progress.round.number + 1,
            },
            round_done,
            round_of,
            sent: progress.wire,
            memory: progress.memory,
            left: progress.round.dirty,
            dirty_rate: progress.dirty_rate,
            rate: progress.round.rate,
            expected_downtime_milliseconds: milliseconds(progress.downtime),
            throttle: progress.round.throttle,
            elapsed_milliseconds: milliseconds(progress.elapsed),
        }
    }
}

/// How a migration went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Migrated {
    /// Milliseconds from its begin to the guest's going on elsewhere.
    pub total_milliseconds: u64,
    /// Microseconds that the guest stood still.
    pub downtime_microseconds: u64,
    /// Rounds.
    pub rounds: u32,
    /// Bytes that were sent.
    pub sent: u64,
    /// Percent of their time that the guest's processors were held still at last.
    pub throttle: u8,
}

impl From<Report> for Migrated {
    fn from(report: Report) -> Self {
        let number = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
        Migrated {
            total_milliseconds: number(report.total.as_millis()),
            downtime_microseconds: number(report.downtime.as_micros()),
            rounds: report.rounds,
            sent: report.wire,
            throttle: report.throttle,
        }
    }
}

/// Asks for another program under the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Upgrade {
    /// The program, a nacelle.
    pub binary: std::path::PathBuf,
}

/// Asks for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Snapshot {
    /// Directory for it, which must not be there or be empty.
    pub directory: std::path::PathBuf,
    /// Only what was written since the last one, which must have tracked it.
    #[serde(default)]
    pub incremental: bool,
    /// Keep account of what is written from now on.
    #[serde(default)]
    pub track: bool,
    /// What follows.
    #[serde(default)]
    pub then: Then,
}

/// How a snapshot went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    /// Milliseconds that it took.
    pub total_milliseconds: u64,
    /// Microseconds that the guest stood still.
    pub downtime_microseconds: u64,
    /// Bytes of guest memory that were written.
    pub written: u64,
}

impl From<snapshot::Report> for Saved {
    fn from(report: snapshot::Report) -> Self {
        let number = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
        Saved {
            total_milliseconds: number(report.total.as_millis()),
            downtime_microseconds: number(report.downtime.as_micros()),
            written: report.written,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_is_for_a_time_as_kubernetes_writes_it() {
        let timeout = |text: Option<&str>| {
            let asked = Freeze {
                unfreeze_timeout: text.map(str::to_owned),
            };
            asked.timeout().map_err(|failure| failure.code)
        };
        for (text, seconds) in [
            ("5m0s", 300),
            ("1h0m0s", 3600),
            ("1m30s", 90),
            ("90s", 90),
            ("2m", 120),
        ] {
            assert_eq!(
                timeout(Some(text)),
                Ok(Some(Duration::from_secs(seconds))),
                "{text}"
            );
        }
        assert_eq!(timeout(Some("500ms")), Ok(Some(Duration::from_millis(500))));
        assert_eq!(timeout(None), Ok(Some(agent::UNFREEZE)));
        for never in ["0s", "0"] {
            assert_eq!(timeout(Some(never)), Ok(None), "{never}");
        }
        for wrong in ["", "soon", "-5m", "5"] {
            assert_eq!(timeout(Some(wrong)), Err(Code::Invalid), "{wrong}");
        }
    }
}
