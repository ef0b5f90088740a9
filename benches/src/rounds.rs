//! The order of runs: ours, theirs, ours, theirs, so that whatever else the machine does hits all alike.

use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::Result;
use crate::measure::{Bench, Kind};
use crate::peer::Found;
use crate::record::{Measured, PeerRuns};

/// Takes all measures of all monitors. A monitor whose run fails has no more of that measure; the others go on.
///
/// # Errors
/// When a measure cannot be prepared.
pub fn measure(
    kinds: &[Kind],
    bench: &Bench,
    peers: &[Found],
    runs: u32,
    warm_up: u32,
    notes: &mut Vec<String>,
) -> Result<Vec<Measured>> {
    let each = |kind: &Kind| {
        let peers = peers.iter().filter(|found| kind.refuses(found.peer).is_none());
        u64::from(kind.runs(runs) + kind.warm_up(warm_up)) * peers.count() as u64
    };
    let progress = bar(kinds.iter().map(each).sum());
    let mut all = Vec::new();
    for kind in kinds {
        let mut measure = kind.prepare(bench, notes)?;
        let mut measured = Measured {
            measure: kind.name().into(),
            peers: Vec::new(),
        };
        for found in peers {
            match kind.refuses(found.peer) {
                None => measured.peers.push(nothing_yet(found)),
                Some(why) => notes.push(format!("{} of {}: {why}", kind.name(), found.peer.name)),
            }
        }
        let peers: Vec<&Found> = peers
            .iter()
            .filter(|found| kind.refuses(found.peer).is_none())
            .collect();
        let warm_up = kind.warm_up(warm_up);
        let begun = Instant::now();
        for round in 0..warm_up + kind.runs(runs) {
            let done = round.saturating_sub(warm_up);
            if done > 0 && begun.elapsed() >= bench.measure_limit {
                let limit = humantime::format_duration(bench.measure_limit);
                notes.push(format!(
                    "{}: {} of {} runs, as {limit} were over (--measure-limit)",
                    kind.name(),
                    kind.runs(runs) - done,
                    kind.runs(runs)
                ));
                progress.inc(u64::from(warm_up + kind.runs(runs) - round) * peers.len() as u64);
                break;
            }
            for (found, gave) in peers.iter().zip(&mut measured.peers) {
                let doing = match round.checked_sub(warm_up) {
                    None => format!("{} of {}, to warm up", kind.name(), found.peer.name),
                    Some(run) => format!("{} of {}, run {}", kind.name(), found.peer.name, run + 1),
                };
                if progress.is_hidden() {
                    eprintln!(
                        "[{}/{}] {doing}",
                        progress.position() + 1,
                        progress.length().unwrap_or(0)
                    );
                }
                progress.set_message(doing);
                if gave.failed.is_none() {
                    match measure.run(bench, found) {
                        Ok(readings) if round >= warm_up => gave.add(readings),
                        Ok(_) => {}
                        Err(error) => gave.failed = Some(error.to_string()),
                    }
                }
                progress.inc(1);
            }
        }
        all.push(measured);
    }
    progress.finish_and_clear();
    Ok(all)
}

fn nothing_yet(found: &Found) -> PeerRuns {
    PeerRuns {
        peer: found.peer.name.into(),
        version: found.version.clone(),
        metrics: Vec::new(),
        failed: None,
    }
}

/// A bar, where standard error is a terminal; elsewhere each run is a line.
fn bar(runs: u64) -> ProgressBar {
    let bar = ProgressBar::new(runs);
    if let Ok(style) =
        ProgressStyle::with_template("{bar:30.cyan} {pos}/{len} {msg} ({elapsed} so far, {eta} to go)")
    {
        bar.set_style(style);
    }
    bar
}
