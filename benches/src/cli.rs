//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Parser, ValueEnum};

use crate::measure::{DiskKind, Kind};
use crate::peer::{PEERS, Peer};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default());

const EXAMPLES: &str = "\
Examples:
  nacelle-bench boot
      ours and every monitor that is here, five runs of each, in turn
  nacelle-bench boot memory blk net --peer qemu-microvm --json run.json --plot run.svg
      ours and QEMU's microvm; the figures as JSON and drawn, too
  nacelle-bench boot --peer firecracker --peer-path firecracker=/opt/firecracker
      a program that is not on PATH
  nacelle-bench blk --disks tmpfs --operations 20000 --runs 9
      one kind of disk, more of it
  nacelle-bench migrate --peer qemu-microvm --link 50 --runs 1
      a guest that moves over a link of 50 Mbit/s, idle and writing
  nacelle-bench boot --lab --debian --memory 256 --peer nacelle-slim
      Debian's stock kernel, on a complete KVM
  nacelle-bench boot blk --lab
      in the lab, where time is the number of instructions executed: the same figures every time

Exit status: 0; 1 when a run failed (the table says which, and why); 2 for wrong usage or a missing monitor.";

/// Boot, memory and I/O of virtual machine monitors, side by side on the same guest in the same run.
#[derive(Debug, Parser)]
#[command(name = "nacelle-bench", version, styles = STYLES, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    /// What to measure
    #[arg(value_enum, required = true, value_name = "MEASURE")]
    pub measures: Vec<Kind>,
    /// Monitors to compare with, by commas [default: all that are here]; of nacelle-slim (the library in the smallest
    /// program around it), qemu-microvm, qemu-q35, firecracker, cloud-hypervisor, crosvm
    #[arg(long = "peer", value_delimiter = ',', value_parser = peer, value_name = "NAME,...")]
    pub peers: Vec<&'static Peer>,
    /// The program of a monitor, ours (nacelle) included; may be repeated
    #[arg(long = "peer-path", value_parser = peer_path, value_name = "NAME=PATH")]
    pub peer_paths: Vec<(&'static Peer, PathBuf)>,
    /// Leave our own `nacelle run` out
    #[arg(long, requires = "peers")]
    pub without_nacelle: bool,
    /// Runs of each monitor, in turn [default: 5; on a KVM in software, where a boot takes ten seconds, 3; with --lab 2]
    #[arg(long, value_name = "N")]
    pub runs: Option<u32>,
    /// Runs before them that are thrown away
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub warm_up: u32,
    /// Operations of a phase of blk and net; a twentieth of it for a round of exits
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=131072))]
    pub operations: u32,
    /// Memory of a guest, in MiB
    #[arg(long, default_value_t = 128, value_name = "MIB", value_parser = clap::value_parser!(u32).range(64..))]
    pub memory: u32,
    /// Most guests of density
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub count: u32,
    /// Mbit/s of the link of migrate [default: 1000; with --lab 200; on a KVM in software, where no guest writes that fast,
    /// 50]
    #[arg(long, value_name = "MBIT", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub link: Option<u32>,
    /// How fast the guest of migrate writes at each of its moves, in percent of what the link carries, by commas
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "0,65,90",
        value_name = "PERCENT,..."
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(..=1000))]
    pub loads: Vec<u32>,
    /// Disks of blk, by commas [default: all that can be]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND,...")]
    pub disks: Vec<DiskKind>,
    /// A directory on a disk, for `--disks disk`
    #[arg(long, default_value = "/var/tmp", value_name = "DIR")]
    pub disk_dir: PathBuf,
    /// A directory in memory, for everything else
    #[arg(long, default_value = "/dev/shm", value_name = "DIR")]
    pub memory_dir: PathBuf,
    /// Seconds that one run may take (for density: until no further guest is begun)
    #[arg(long, default_value = "180", value_parser = seconds, value_name = "SECONDS")]
    pub limit: Duration,
    /// Seconds that a phase of blk and net may take: then it ends with fewer operations, and the table says how many
    #[arg(long, default_value_t = 3, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub phase_limit: u32,
    /// Seconds after which a measure begins no further run; one of each monitor is taken in any case
    #[arg(long, default_value = "240", value_parser = seconds, value_name = "SECONDS")]
    pub measure_limit: Duration,
    /// Debian's stock kernel instead of the small one: what it has takes more memory, so give --memory 256. QEMU's microvm does
    /// not boot it
    #[arg(long, conflicts_with_all = ["kernel", "initrd"])]
    pub debian: bool,
    /// Another kernel than the small one of tests/guest: an ELF vmlinux with virtio drivers built in
    #[arg(long, value_name = "PATH")]
    pub kernel: Option<PathBuf>,
    /// Another initial RAM disk than ours, whose init must be the benchmark's program
    #[arg(long, value_name = "PATH")]
    pub initrd: Option<PathBuf>,
    /// A statically linked fio (benches/guest/fio builds one): it reads the disks of blk, too, its figures stand beside ours
    #[arg(long, value_name = "PATH")]
    pub fio: Option<PathBuf>,
    /// Write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw them into this file
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// What to print
    #[arg(long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub output: Output,
    /// Measure in the lab (tests/lab), where the clock counts instructions
    #[arg(long)]
    pub lab: bool,
    /// This is the lab: stage what is measured in its memory
    #[arg(long, hide = true)]
    pub in_lab: bool,
}

/// `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table
    Table,
    /// The JSON that --json writes
    Json,
}

fn peer(name: &str) -> Result<&'static Peer, String> {
    Peer::named(name).ok_or_else(|| {
        let names: Vec<_> = PEERS.iter().map(|peer| peer.name).collect();
        format!("there are: {}", names.join(", "))
    })
}

fn peer_path(text: &str) -> Result<(&'static Peer, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("must be NAME=PATH")?;
    Ok((peer(name)?, path.into()))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "must be a number of seconds")?;
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn monitors_are_named_by_commas_and_unknown_ones_refused() {
        let cli = Cli::parse_from(["nacelle-bench", "boot", "net", "--peer", "qemu-microvm,crosvm"]);
        assert_eq!(cli.measures, [Kind::Boot, Kind::Net]);
        assert_eq!(
            cli.peers.iter().map(|peer| peer.name).collect::<Vec<_>>(),
            ["qemu-microvm", "crosvm"]
        );
        let refused = Cli::try_parse_from(["nacelle-bench", "boot", "--peer", "xen"]).unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("there are: nacelle, nacelle-slim, qemu-microvm")
        );
    }
}
