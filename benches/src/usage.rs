//! What a process takes of the host, as /proc says it.

use std::fs;

use crate::error::{Error, Result};

/// Processor time in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cpu {
    /// Of all threads; the guest runs in those of its processors.
    pub all: f64,
    /// Of the threads that do not run the guest.
    pub outside: f64,
}

/// Memory beside the guest's, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    /// In RAM.
    pub resident: f64,
    /// The same, where shared with other processes in part.
    pub proportional: f64,
    /// Nobody else's, and lost for the host as long as the process lives.
    pub private_dirty: f64,
}

/// The processor time of a process.
///
/// # Errors
/// When it has ended.
pub fn cpu(pid: u32) -> Result<Cpu> {
    let tasks = format!("/proc/{pid}/task");
    let mut cpu = Cpu::default();
    for task in fs::read_dir(&tasks)
        .map_err(Error::io(format!("read {tasks}")))?
        .flatten()
    {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let time: f64 = read("schedstat")
            .split_whitespace()
            .next()
            .and_then(|time| time.parse().ok())
            .unwrap_or(0.0);
        cpu.all += time;
        if !runs_guest(&read("comm")) {
            cpu.outside += time;
        }
    }
    Ok(cpu)
}

/// Whether this is how a thread is called that runs the guest: `vcpu0`, `fc_vcpu 0`, `crosvm_vcpu0`, `CPU 0/KVM`.
fn runs_guest(name: &str) -> bool {
    name.contains("vcpu") || (name.starts_with("CPU ") && name.trim_end().ends_with("/KVM"))
}

/// Numbers of threads and of open files.
///
/// # Errors
/// When the process has ended.
pub fn threads_and_files(pid: u32) -> Result<(f64, f64)> {
    let count = |what: &str| {
        let path = format!("/proc/{pid}/{what}");
        fs::read_dir(&path)
            .map(|entries| entries.count() as f64)
            .map_err(Error::io(format!("read {path}")))
    };
    Ok((count("task")?, count("fd")?))
}

/// The memory of a process, without the mappings that are the guest's.
///
/// # Errors
/// When it has ended.
pub fn memory(pid: u32, guest: u64) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps");
    let smaps = fs::read_to_string(&path).map_err(Error::io(format!("read {path}")))?;
    Ok(beside(&smaps, guest))
}

/// A mapping that is at least half as large as the guest's memory, and not of a file on disk, is the guest's: no
/// monitor has another of the kind that is touched, and none cuts the guest's into smaller pieces.
///
/// Of a private mapping what is dirty are its anonymous pages: to the kernel, a program's file on a tmpfs is dirty all
/// over, whoever maps it.
fn beside(smaps: &str, guest: u64) -> Memory {
    let mut sum = Memory::default();
    let (mut guests, mut dirty) = (false, "");
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        match first.strip_suffix(':') {
            None => {
                let size = first.split_once('-').and_then(|(from, to)| {
                    let number = |text| u64::from_str_radix(text, 16).ok();
                    number(to)?.checked_sub(number(from)?)
                });
                dirty = match words.next() {
                    Some(rights) if rights.ends_with('p') => "Anonymous",
                    _ => "Private_Dirty",
                };
                let file = words.nth(3).is_some_and(|file| {
                    file.starts_with('/') && !file.starts_with("/memfd:") && !file.starts_with("/dev/shm")
                });
                guests = !file && size.is_some_and(|size| size >= guest / 2);
            }
            Some(key) if !guests => {
                let bytes = words
                    .next()
                    .and_then(|kib| kib.parse::<f64>().ok())
                    .unwrap_or(0.0)
                    * 1024.0;
                match key {
                    "Rss" => sum.resident += bytes,
                    "Pss" => sum.proportional += bytes,
                    key if key == dirty => sum.private_dirty += bytes,
                    _ => {}
                }
            }
            Some(_) => {}
        }
    }
    sum
}

/// Bytes that programs of this host can have.
///
/// # Errors
/// When the host does not say it.
pub fn available() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo").map_err(Error::io("read /proc/meminfo"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.map(|kib| kib * 1024.0)
        .ok_or_else(|| Error::Other("/proc/meminfo has no MemAvailable".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_not_the_monitors() {
        let smaps = "\
55d0c0000000-55d0c0100000 r-xp 00000000 08:01 42    /usr/bin/monitor
Rss:                 100 kB
Pss:                  50 kB
Private_Dirty:       100 kB
Anonymous:             0 kB
7f0000000000-7f0008000000 rw-p 00000000 00:00 0
Rss:              131072 kB
Pss:              131072 kB
Private_Dirty:    131072 kB
7f0010000000-7f0018000000 rw-s 00000000 00:01 7     /memfd:guest (deleted)
Rss:              131072 kB
7f0020000000-7f0028000000 r--p 00000000 08:01 43    /usr/lib/large
Rss:                   8 kB
Pss:                   8 kB
7f0030000000-7f0030001000 rw-p 00000000 00:00 0
Rss:                   4 kB
Pss:                   4 kB
Private_Dirty:         4 kB
Anonymous:             4 kB
VmFlags: rd wr
7f0040000000-7f0040001000 rw-s 00000000 00:0e 9     anon_inode:[io_uring]
Rss:                   2 kB
Pss:                   2 kB
Private_Dirty:         2 kB
Anonymous:             0 kB
";
        let memory = beside(smaps, 128 << 20);
        let kib = |bytes: f64| bytes / 1024.0;
        assert_eq!(kib(memory.resident), 114.0);
        assert_eq!(kib(memory.proportional), 64.0);
        assert_eq!(kib(memory.private_dirty), 6.0);
    }

    #[test]
    fn threads_that_run_the_guest_are_known_by_their_names() {
        for name in ["vcpu0\n", "fc_vcpu 0\n", "crosvm_vcpu0\n", "CPU 0/KVM\n"] {
            assert!(runs_guest(name), "{name}");
        }
        for name in ["io0\n", "nacelle\n", "qemu-system-x86\n", "IO mon_iothread\n"] {
            assert!(!runs_guest(name), "{name}");
        }
    }

    #[test]
    fn a_process_knows_itself() {
        let pid = std::process::id();
        let (threads, files) = threads_and_files(pid).unwrap();
        assert!(threads >= 1.0 && files >= 3.0);
        assert!(memory(pid, 128 << 20).unwrap().resident > 0.0);
        assert!(cpu(pid).unwrap().outside > 0.0);
        assert!(available().unwrap() > 0.0);
    }
}
