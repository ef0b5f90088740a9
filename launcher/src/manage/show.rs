//! What the commands show to people. Pure.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

use crate::admit::State;
use crate::agent::{FreezeStatus, Said};
use crate::http::api::{Machine, Saved, Stats};

/// One line a machine.
pub fn machines(machines: &[Machine]) -> String {
    let rows = machines.iter().map(|machine| {
        [
            machine.name.clone(),
            state_of(machine),
            machine.vcpus.to_string(),
            bytes(machine.memory),
            duration(machine.uptime_seconds),
            machine.pid.to_string(),
        ]
    });
    let head = ["NAME", "STATE", "VCPUS", "MEMORY", "UPTIME", "PID"].map(String::from);
    columns(&[head].into_iter().chain(rows).collect::<Vec<_>>())
}

/// One machine and what its guest's agent says, a line for each thing.
pub fn machine(machine: &Machine, said: &Said) -> String {
    let mut rows = vec![
        ("Name".into(), machine.name.clone()),
        ("State".into(), state_of(machine)),
        ("vCPUs".into(), machine.vcpus.to_string()),
        ("Memory".into(), bytes(machine.memory)),
        ("Uptime".into(), duration(machine.uptime_seconds)),
        ("Resets".into(), machine.resets.to_string()),
        ("Process".into(), machine.pid.to_string()),
    ];
    if let Some(error) = &machine.disk_error {
        let advice = match machine.state {
            State::Paused => "; nacelle resume tries again",
            _ => "",
        };
        rows.push(("Failed".into(), format!("{error}{advice}")));
    }
    for disk in &machine.plugged {
        let leaving = match disk.leaving {
            true => ", which the guest is to let go of",
            false => "",
        };
        rows.push(("Attached".into(), format!("disk {}{leaving}", disk.name)));
    }
    rows.extend(guest(said));
    pairs(&rows)
}

/// What an agent says that people ask first.
fn guest(said: &Said) -> Vec<(String, String)> {
    if !said.connected {
        return Vec::new();
    }
    let addresses = said
        .interfaces
        .iter()
        .flat_map(|interface| interface.ip_addresses.iter());
    let addresses = addresses.filter(|address| {
        let address = address.ip_address.parse::<IpAddr>();
        address.is_ok_and(|address| !address.is_loopback())
    });
    let addresses: Vec<&str> = addresses.map(|address| &*address.ip_address).collect();
    let frozen = (said.fs_freeze_status == Some(FreezeStatus::Frozen))
        .then(|| "frozen: nacelle unfreeze thaws them".into());
    let rows = [
        (
            "System",
            said.os
                .pretty_name
                .as_ref()
                .or(said.os.name.as_ref())
                .map(ToString::to_string),
        ),
        ("Host name", said.hostname.as_ref().map(ToString::to_string)),
        ("Addresses", (!addresses.is_empty()).then(|| addresses.join(", "))),
        ("File systems", frozen),
        ("Guest agent", Some(said.guest_agent_version.to_string())),
    ];
    let rows = rows
        .into_iter()
        .filter_map(|(name, value)| Some((name.into(), value?)));
    rows.collect()
}

/// What a machine is doing now.
pub fn state(machine: &Machine) -> String {
    format!("{}: {}\n", machine.name, state_of(machine))
}

/// How a snapshot went.
pub fn saved(name: &str, directory: &Path, saved: &Saved) -> String {
    format!(
        "{name} is in {}: {} written in {}.{:03} s, the guest stood still for {}.{} ms\n",
        directory.display(),
        bytes(saved.written),
        saved.total_milliseconds / 1000,
        saved.total_milliseconds % 1000,
        saved.downtime_microseconds / 1000,
        saved.downtime_microseconds % 1000 / 100,
    )
}

/// Counters, a line each.
pub fn stats(stats: &Stats) -> String {
    let machine = &stats.machine;
    let (seconds, rest) = (stats.cpu_milliseconds / 1000, stats.cpu_milliseconds % 1000);
    let mut rows = vec![
        ("vCPUs".into(), machine.vcpus.to_string()),
        ("Guest memory".into(), bytes(machine.memory)),
        ("Held of the host".into(), bytes(stats.resident)),
        ("Processor time".into(), format!("{seconds}.{rest:03} s")),
    ];
    if let Some(balloon) = &machine.balloon {
        let (actual, target) = (bytes(balloon.actual), bytes(balloon.target));
        rows.push(("Balloon".into(), format!("{actual} of {target} asked for")));
        let said = [
            ("free", balloon.free),
            ("available", balloon.available),
            ("of", balloon.total),
        ];
        let said: Vec<_> = said
            .iter()
            .filter_map(|(what, value)| value.map(|value| format!("{what} {}", bytes(value))))
            .collect();
        if !said.is_empty() {
            rows.push(("Guest says".into(), said.join(", ")));
        }
    }
    for disk in &machine.disks {
        let (read, write) = (&disk.read, &disk.write);
        let errors = read.errors + write.errors + disk.flush.errors;
        let line = format!(
            "read {} in {}, wrote {} in {}, errors {errors}",
            bytes(read.bytes),
            read.operations,
            bytes(write.bytes),
            write.operations
        );
        rows.push((format!("Disk {}", disk.id), line));
    }
    for net in &machine.nets {
        let line = format!(
            "received {} in {}, sent {} in {}, dropped {}",
            bytes(net.rx.bytes),
            net.rx.packets,
            bytes(net.tx.bytes),
            net.tx.packets,
            net.rx.dropped + net.tx.dropped
        );
        rows.push((format!("Interface {}", net.id), line));
    }
    pairs(&rows)
}

fn state_of(machine: &Machine) -> String {
    match (machine.guest_panicked, &machine.disk_error) {
        (_, Some(_)) => format!("{:?} (disk error)", machine.state),
        (true, None) => format!("{:?} (guest panicked)", machine.state),
        (false, None) => format!("{:?}", machine.state),
    }
}

/// As Kubernetes writes it, in the largest unit of which there are whole ones, or with one digit behind it.
pub(super) fn bytes(bytes: u64) -> String {
    for (unit, size) in [("Gi", 1u64 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)] {
        if bytes >= size {
            return match bytes.is_multiple_of(size) {
                true => format!("{}{unit}", bytes / size),
                false => format!("{:.1}{unit}", bytes as f64 / size as f64),
            };
        }
    }
    bytes.to_string()
}

fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match () {
        () if days > 0 => format!("{days}d{}h", hours % 24),
        () if hours > 0 => format!("{hours}h{}m", minutes % 60),
        () if minutes > 0 => format!("{minutes}m{}s", seconds % 60),
        () => format!("{seconds}s"),
    }
}

fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}   ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn pairs(pairs: &[(String, String)]) -> String {
    let rows: Vec<_> = pairs
        .iter()
        .map(|(name, value)| [format!("{name}:"), value.clone()])
        .collect();
    columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Machine {
        Machine {
            name: "ledger".into(),
            state: State::Running,
            pid: 4711,
            uptime_seconds: 3725,
            vcpus: 2,
            memory: 4 << 30,
            resets: 0,
            guest_panicked: false,
            disk_error: None,
            plugged: Vec::new(),
        }
    }

    #[test]
    fn a_list_is_in_columns() {
        let other = Machine {
            name: "a-longer-name".into(),
            state: State::Paused,
            uptime_seconds: 7,
            memory: 512 << 20,
            ..ledger()
        };
        assert_eq!(
            machines(&[ledger(), other]),
            "\
NAME            STATE     VCPUS   MEMORY   UPTIME   PID
ledger          Running   2       4Gi      1h2m     4711
a-longer-name   Paused    2       512Mi    7s       4711
"
        );
    }

    #[test]
    fn sizes_and_times_are_short() {
        let sizes = [0, 1023, 1536, 1 << 20, (1 << 30) + (1 << 29)];
        assert_eq!(sizes.map(bytes), ["0", "1023", "1.5Ki", "1Mi", "1.5Gi"]);
        let times = [0, 59, 60, 3600, 90_000];
        assert_eq!(times.map(duration), ["0s", "59s", "1m0s", "1h0m", "1d1h"]);
    }

    #[test]
    fn a_panicked_guest_shows() {
        let panicked = Machine {
            guest_panicked: true,
            ..ledger()
        };
        assert_eq!(state(&panicked), "ledger: Running (guest panicked)\n");
    }

    #[test]
    fn a_disk_that_failed_shows_with_what_helps() {
        let stopped = Machine {
            state: State::Paused,
            disk_error: Some("disk data: No space left on device (os error 28)".into()),
            ..ledger()
        };
        assert_eq!(state(&stopped), "ledger: Paused (disk error)\n");
        let last =
            "Failed:    disk data: No space left on device (os error 28); nacelle resume tries again\n";
        assert!(
            machine(&stopped, &Said::default()).ends_with(last),
            "{}",
            machine(&stopped, &Said::default())
        );
    }
}
