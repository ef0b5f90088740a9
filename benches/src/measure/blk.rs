//! Disks, as the guest sees them: it measures the times, the host what the monitor's threads take meanwhile.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use tempfile::NamedTempFile;

use super::{Bench, DiskKind, Measure};
use crate::error::{Error, Result};
use crate::peer::{Disk, Found};
use crate::process::Running;
use crate::record::{Reading, Unit, reading};
use crate::usage;

const SIZE: usize = 64 << 20;
/// What the guest transfers at a time in sequence.
const LARGE: f64 = (1u64 << 20) as f64;

pub(super) struct Blk {
    disks: Vec<(DiskKind, NamedTempFile)>,
}

impl Blk {
    pub fn prepare(bench: &Bench, notes: &mut Vec<String>) -> Result<Blk> {
        let mut disks = Vec::new();
        let wanted = match bench.disks.as_slice() {
            [] if bench.in_lab => &[DiskKind::Tmpfs, DiskKind::Qcow2][..],
            [] => &[DiskKind::Tmpfs, DiskKind::Disk, DiskKind::Qcow2],
            named => named,
        };
        for kind in wanted {
            let file = match kind {
                DiskKind::Tmpfs => filled(&bench.memory_dir)?,
                DiskKind::Disk => filled(&bench.disk_dir)?,
                DiskKind::Qcow2 => match qcow2(&bench.memory_dir) {
                    Err(Error::Io { source, .. })
                        if source.kind() == std::io::ErrorKind::NotFound && bench.disks.is_empty() =>
                    {
                        notes.push(
                            "blk: no qcow2, as there is no qemu-img to make one (package qemu-utils)".into(),
                        );
                        continue;
                    }
                    made => made?,
                },
            };
            disks.push((*kind, file));
        }
        Ok(Blk { disks })
    }
}

impl Measure for Blk {
    fn run(&mut self, bench: &Bench, found: &Found) -> Result<Vec<Reading>> {
        let disks: Vec<_> = self
            .disks
            .iter()
            .filter(|(kind, _)| found.peer.qcow2 || *kind != DiskKind::Qcow2)
            .collect();
        let (mut machine, _directory) = bench.machine(&tasks(bench))?;
        machine.disks = disks
            .iter()
            .map(|(kind, file)| Disk {
                path: file.path().to_owned(),
                qcow2: *kind == DiskKind::Qcow2,
                direct: *kind == DiskKind::Disk,
            })
            .collect();
        let mut run = Running::start(found, &machine, bench.limit)?;
        let mut readings = Vec::new();
        let mut before = usage::Cpu::default();
        loop {
            let (_, said) = run.said_any(&["begin", "blk", "fio", "task-done"])?;
            match said.name() {
                "begin" => before = usage::cpu(run.pid())?,
                "blk" | "fio" => {
                    let index = said.text("disk")?.bytes().last().unwrap_or(0).wrapping_sub(b'a');
                    let (kind, _) = disks
                        .get(usize::from(index))
                        .ok_or_else(|| Error::Misheard(format!("there is no disk {}", said.rest())))?;
                    let name = match kind {
                        DiskKind::Tmpfs => "tmpfs",
                        DiskKind::Disk => "disk",
                        DiskKind::Qcow2 => "qcow2",
                    };
                    if said.name() == "fio" {
                        let name = |what: &str| {
                            said.text("depth")
                                .map(|depth| format!("{name} randread-{depth}, by fio: {what}"))
                        };
                        for percentile in ["p50", "p99"] {
                            let time = said.number(percentile)? * 1000.0;
                            readings.push(reading(name(percentile)?, Unit::Nanoseconds, time));
                        }
                        readings.push(reading(
                            name("operations")?,
                            Unit::PerSecond,
                            said.number("rate")?,
                        ));
                        continue;
                    }
                    let phase = said.text("phase")?;
                    let name = |what: &str| format!("{name} {phase}: {what}");
                    let elapsed = said.number("elapsed")?.max(1.0);
                    if let Ok(bytes) = said.number("bytes") {
                        readings.push(reading(
                            name("throughput"),
                            Unit::BytesPerSecond,
                            bytes / elapsed * 1e9,
                        ));
                        readings.push(reading(name("transfers"), Unit::Sample, bytes / LARGE));
                        continue;
                    }
                    let count = said.number("count")?.max(1.0);
                    for (key, what) in [("p50", "p50"), ("p99", "p99"), ("p999", "p99.9")] {
                        readings.push(reading(name(what), Unit::Nanoseconds, said.number(key)?));
                    }
                    readings.push(reading(
                        name("operations"),
                        Unit::PerSecond,
                        count / elapsed * 1e9,
                    ));
                    readings.push(reading(name("operations done"), Unit::Sample, count));
                    let spent = usage::cpu(run.pid())?;
                    let per = |spent: f64, before: f64| (spent - before) / count * 100_000.0;
                    readings.push(reading(
                        name("monitor's CPU per 100 000"),
                        Unit::Nanoseconds,
                        per(spent.outside, before.outside),
                    ));
                }
                _ if bench.guest.fio && said.rest() == "blk" => {}
                _ => return Ok(readings),
            }
        }
    }
}

/// What the guest is to do: where it has fio, that as well.
fn tasks(bench: &Bench) -> String {
    let ours = bench.blk_task();
    match bench.guest.fio {
        true => format!("{ours},{}", ours.replace("blk", "fio")),
        false => ours,
    }
}

/// A file of 64 MiB in which every block is written, so that nothing is read from holes.
pub(super) fn filled(directory: &Path) -> Result<NamedTempFile> {
    let failed = || format!("write a disk of {} MiB in {}", SIZE >> 20, directory.display());
    let mut file = tempfile::Builder::new()
        .prefix("nacelle-bench-disk-")
        .tempfile_in(directory)
        .map_err(Error::io(failed()))?;
    let mut number = 1u64;
    let mut piece = Vec::with_capacity(1 << 20);
    for _ in 0..SIZE >> 20 {
        piece.clear();
        while piece.len() < 1 << 20 {
            number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
            piece.extend_from_slice(&number.to_le_bytes());
        }
        file.write_all(&piece).map_err(Error::io(failed()))?;
    }
    file.as_file().sync_all().map_err(Error::io(failed()))?;
    Ok(file)
}

/// The same as qcow2, every cluster allocated.
fn qcow2(directory: &Path) -> Result<NamedTempFile> {
    let raw = filled(directory)?;
    let file = NamedTempFile::new_in(directory)
        .map_err(Error::io(format!("make a file in {}", directory.display())))?;
    let output = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .args([raw.path(), file.path()])
        .output()
        .map_err(Error::io("run qemu-img (package qemu-utils)"))?;
    if !output.status.success() {
        return Err(Error::Tool {
            command: "qemu-img convert".into(),
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    Ok(file)
}
