//! What a pod's machine is worth counting, as its launcher tells the node agent (`docs/pod.md`): a line of JSON.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::agent::FsInfo;
use crate::http::api::Stats;

/// What the node agent sends when it wants to know.
pub const ASK: &str = "figures\n";
/// The node agent's socket ([`crate::node::sockets`]).
pub const SOCKET: &str = "metrics.sock";
/// Most bytes of a line.
pub const LINE_MAX: u64 = 256 * 1024;

/// The figures of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Namespace of the instance.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID; a launcher of another version may not tell it.
    #[serde(default)]
    pub uid: String,
    /// Counters of the machine and of its process.
    #[serde(flatten)]
    pub stats: Stats,
    /// Processor time of the process.
    pub time: Time,
    /// Each vCPU.
    pub each_vcpu: Vec<Vcpu>,
    /// The guest's file systems, where its agent tells of them.
    pub filesystems: FsInfo,
    /// How far it is on its way to another monitor, while it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<Migration>,
}

/// How far a migration is, in bytes, and bytes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Migration {
    /// Guest memory.
    pub total: u64,
    /// What went over the network.
    pub processed: u64,
    /// What of this round has not gone yet.
    pub remaining: u64,
    /// What the guest writes.
    pub dirty_rate: u64,
    /// What the connection moves.
    pub rate: u64,
}

/// Processor time of a process, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Time {
    /// In programs, the guest among them.
    pub user: f64,
    /// In the kernel.
    pub system: f64,
}

/// Time of a vCPU's thread, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Vcpu {
    /// Its number.
    pub id: u32,
    /// It ran.
    pub running: f64,
    /// It could have run, and waited for a processor; absent where the kernel does not count it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delayed: Option<f64>,
}

/// Processor time of this process and of its vCPUs.
pub fn own_time() -> (Time, Vec<Vcpu>) {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let time = processor_time(&read("/proc/self/stat"), ticks).unwrap_or_default();
    let mut vcpus: Vec<_> = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| {
            let task = task.path();
            let comm = fs::read_to_string(task.join("comm")).ok()?;
            let id = comm.trim().strip_prefix("vcpu")?.parse().ok()?;
            let time = processor_time(&fs::read_to_string(task.join("stat")).ok()?, ticks)?;
            let (running, delayed) = fs::read_to_string(task.join("schedstat"))
                .ok()
                .and_then(|text| scheduled(&text))
                .unzip();
            Some(Vcpu {
                id,
                running: running.unwrap_or(time.user + time.system),
                delayed,
            })
        })
        .collect();
    vcpus.sort_by_key(|vcpu| vcpu.id);
    (time, vcpus)
}

/// The times in `/proc/PID/stat`, whose second word is a name in brackets that may hold anything (proc(5)).
fn processor_time(stat: &str, ticks: f64) -> Option<Time> {
    let (_, words) = stat.rsplit_once(')')?;
    let mut words = words.split_whitespace().skip(11);
    let mut seconds = || Some(words.next()?.parse::<u64>().ok()? as f64 / ticks);
    Some(Time {
        user: seconds()?,
        system: seconds()?,
    })
}

/// The times in `/proc/PID/schedstat`: running, and waiting for a processor.
fn scheduled(schedstat: &str) -> Option<(f64, f64)> {
    let mut words = schedstat.split_whitespace();
    let mut seconds = || Some(words.next()?.parse::<u64>().ok()? as f64 / 1e9);
    Some((seconds()?, seconds()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_a_name_that_may_hold_anything() {
        let stat = "7 (a ) b (c) S 1 2 3 4 5 6 7 8 9 10 250 30 0 0 20 0 9";
        assert_eq!(
            processor_time(stat, 100.0),
            Some(Time {
                user: 2.5,
                system: 0.3
            })
        );
        assert_eq!(processor_time("7 (a", 100.0), None);
        assert_eq!(scheduled("1500000000 250000000 42\n"), Some((1.5, 0.25)));
    }

    #[test]
    fn a_thread_that_works_is_counted_under_its_number() {
        let busy = std::thread::Builder::new().name("vcpu3".into()).spawn(|| {
            loop {
                for number in 0..100_000_u64 {
                    std::hint::black_box(number);
                }
                let (time, vcpus) = own_time();
                let own = vcpus.iter().find(|vcpu| vcpu.id == 3).unwrap();
                if own.running > 0.0 && time.user + time.system > 0.0 {
                    return;
                }
            }
        });
        busy.unwrap().join().unwrap();
    }
}
