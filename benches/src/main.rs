//! `nacelle-bench`: boot, memory and I/O of our monitor and of others, on the same guest in the same run.

mod cli;
mod compare;
mod error;
mod guest;
mod host;
mod lab;
mod link;
mod measure;
mod network;
mod peer;
mod plot;
mod process;
mod record;
mod rounds;
mod scratch;
mod stamp;
mod table;
mod usage;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;
use cli::{Cli, Output};
use error::{Error, Result};
use guest::Guest;
use measure::Bench;
use peer::{Found, PEERS, Peer};
use record::Report;
use scratch::Scratch;

/// A run failed.
const FAILED: u8 = 1;
/// Nothing was measured.
const UNABLE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(report) => {
            let failed = report
                .measures
                .iter()
                .flat_map(|m| &m.peers)
                .any(|peer| peer.failed.is_some());
            ExitCode::from(if failed { FAILED } else { 0 })
        }
        Err(error) => {
            eprintln!("nacelle-bench: {error}");
            ExitCode::from(UNABLE)
        }
    }
}

fn run(cli: &Cli) -> Result<Report> {
    // What cannot be written is known before an hour of measuring, not after.
    let create = |path: &Option<PathBuf>| {
        let create =
            |path: &PathBuf| File::create(path).map_err(Error::io(format!("write {}", path.display())));
        path.as_ref().map(create).transpose()
    };
    let (mut json, mut plot) = (create(&cli.json)?, create(&cli.plot)?);
    let report = if cli.lab && !cli.in_lab {
        in_lab(cli)
    } else {
        here(cli)
    };
    scratch::settle();
    let report = report?;

    let text = serde_json::to_string_pretty(&report).map_err(|error| Error::Other(error.to_string()))? + "\n";
    let write = |file: &mut Option<File>, path: &Option<PathBuf>, text: &str| match (file, path) {
        (Some(file), Some(path)) => file
            .write_all(text.as_bytes())
            .map_err(Error::io(format!("write {}", path.display()))),
        _ => Ok(()),
    };
    let shown = match cli.output {
        Output::Table => table::table(&report),
        Output::Json => text.clone(),
    };
    std::io::stdout()
        .write_all(shown.as_bytes())
        .map_err(Error::io("print"))?;
    write(&mut json, &cli.json, &text)?;
    write(&mut plot, &cli.plot, &plot::svg(&report))?;
    Ok(report)
}

/// Measures on this machine.
fn here(cli: &Cli) -> Result<Report> {
    let mut notes = Vec::new();
    let found = find(cli, &mut notes)?;
    if cli.in_lab {
        lab::stage(&found)?;
    }
    let scratch = Scratch::make(&cli.memory_dir, &cli.disk_dir)?;
    let bench = Bench {
        guest: Guest::find(cli.debian, cli.kernel.as_deref(), cli.initrd.as_deref())?
            .stamped(scratch.memory(), cli.fio.as_deref())?,
        memory: cli.memory,
        operations: cli.operations,
        phase_limit: cli.phase_limit,
        count: cli.count,
        link: cli.link.unwrap_or(match (cli.in_lab, host::has_hardware_kvm()) {
            (true, _) => 200,
            (false, false) => 50,
            (false, true) => 1000,
        }),
        loads: cli.loads.clone(),
        disks: cli.disks.clone(),
        in_lab: cli.in_lab,
        disk_dir: scratch.disk().to_owned(),
        memory_dir: scratch.memory().to_owned(),
        limit: cli.limit,
        measure_limit: cli.measure_limit,
    };
    let runs = cli.runs.unwrap_or(match (cli.in_lab, host::has_hardware_kvm()) {
        (true, _) => 2,
        (false, false) => 3,
        (false, true) => 5,
    });
    let measures = rounds::measure(&cli.measures, &bench, &found, runs, cli.warm_up, &mut notes)?;
    Ok(Report {
        version: 1,
        taken: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
        host: host::host(cli.in_lab),
        command: std::env::args().collect(),
        notes,
        measures,
    })
}

/// Measures in the lab; programs and guest are made here.
fn in_lab(cli: &Cli) -> Result<Report> {
    let found = find(cli, &mut Vec::new())?;
    let guest = Guest::find(cli.debian, cli.kernel.as_deref(), cli.initrd.as_deref())?;
    // It is stamped in the lab; here only so that a wrong one is known before. And signals end the lab from here on.
    let scratch = Scratch::make(&cli.memory_dir, &cli.disk_dir)?;
    guest.stamped(scratch.memory(), cli.fio.as_deref())?;
    let mut arguments = lab::arguments(std::env::args_os().skip(1));
    for (option, path) in [("--kernel", guest.kernel), ("--initrd", guest.initrd)] {
        arguments.extend([option.into(), path.into()]);
    }
    for found in found {
        arguments.push(format!("--peer-path={}={}", found.peer.name, found.program.display()).into());
    }
    let mut report = lab::run(arguments, 7200)?;
    report.command = std::env::args().collect();
    Ok(report)
}

/// Ours, and the monitors that were asked for: all of them must be there. Where none was asked for, those that are.
fn find(cli: &Cli, notes: &mut Vec<String>) -> Result<Vec<Found>> {
    let named = |peer: &Peer| {
        let mut paths = cli.peer_paths.iter().rev();
        paths
            .find(|(other, _)| other.name == peer.name)
            .map(|(_, path)| path.as_path())
    };
    let wanted: Vec<&'static Peer> = PEERS
        .into_iter()
        .filter(|peer| match peer.name {
            "nacelle" => !cli.without_nacelle,
            "nacelle-slim" => cli.peers.iter().any(|other| other.name == peer.name),
            name => cli.peers.is_empty() || cli.peers.iter().any(|other| other.name == name),
        })
        .collect();
    let path = std::env::var("PATH").unwrap_or_default();
    let built = built(wanted.iter().any(|peer| peer.is_ours() && named(peer).is_none()) && !cli.in_lab)?;
    let mut found = Vec::new();
    for peer in wanted {
        match peer.find(named(peer), &built, &path) {
            Ok(peer) => found.push(peer),
            Err(Error::NoPeer { peer, .. }) if cli.peers.is_empty() && !PEERS[0].name.eq(peer) => {
                notes.push(format!("{peer}: it is not on PATH (--peer-path {peer}=PATH)"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Where our own programs are, as cargo builds them for release; with cargo at hand they are built now.
fn built(now: bool) -> Result<PathBuf> {
    let exe = std::env::current_exe().map_err(Error::io("find this program's file"))?;
    let target = exe.parent().and_then(Path::parent).unwrap_or(Path::new("."));
    if let (true, Some(cargo)) = (now, std::env::var_os("CARGO")) {
        eprintln!("building nacelle for release");
        let status = Command::new(cargo)
            .args(["build", "--release", "--locked", "--quiet", "--target-dir"])
            .arg(target)
            .args(["-p", "nacelle-launcher", "-p", "nacelle-bench", "--bins"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .map_err(Error::io("run cargo"))?;
        if !status.success() {
            return Err(Error::Tool {
                command: "cargo build --release -p nacelle-launcher -p nacelle-bench".into(),
                said: "its words are above".into(),
            });
        }
    }
    Ok(target.join("release"))
}
