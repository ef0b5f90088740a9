//! The report as a table for people. Pure.

use std::fmt::Write;

use crate::compare::{metrics, ratios, spread};
use crate::record::{Measured, Metric, PeerRuns, Report, Unit};

/// The whole report.
pub fn table(report: &Report) -> String {
    let host = &report.host;
    let mut text = format!(
        "{}, {}, KVM: {}; time is {}\n{}\n",
        host.cpu, host.kernel, host.kvm, host.clock, report.taken
    );
    for (name, version) in versions(report) {
        let _ = writeln!(text, "  {name}: {version}");
    }
    for measured in &report.measures {
        text += &measure(measured);
    }
    for note in &report.notes {
        let _ = writeln!(text, "\nNot measured: {note}");
    }
    text
}

fn versions(report: &Report) -> Vec<(&str, &str)> {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for peer in report.measures.iter().flat_map(|measured| &measured.peers) {
        if !peer.version.is_empty() && seen.iter().all(|(name, _)| *name != peer.peer) {
            seen.push((&peer.peer, &peer.version));
        }
    }
    seen
}

fn runs(peer: &PeerRuns) -> usize {
    peer.metrics.first().map_or(0, |metric| metric.values.len())
}

fn measure(measured: &Measured) -> String {
    let counts = measured.peers.iter().map(runs).max().unwrap_or(0);
    let plural = if counts == 1 { "run" } else { "runs" };
    let mut text = format!(
        "\n{}, {counts} {plural} each: median (least–most)\n",
        measured.measure
    );
    let ours = measured.peers.first();
    let mut head = vec![String::new()];
    head.extend(measured.peers.iter().map(|peer| peer.peer.clone()));
    for theirs in measured.peers.iter().skip(1) {
        head.push(format!("ratio to {}", theirs.peer));
    }
    let mut rows = vec![head];
    for name in metrics(measured) {
        let find = |peer: &PeerRuns| peer.metrics.iter().find(|metric| metric.name == name).cloned();
        let mut row = vec![name.clone()];
        row.extend(
            measured
                .peers
                .iter()
                .map(|peer| find(peer).map_or("–".into(), |metric| cell(&metric))),
        );
        for theirs in measured.peers.iter().skip(1) {
            let pair = ours
                .and_then(find)
                .zip(find(theirs))
                .filter(|(ours, _)| ours.unit != Unit::Sample);
            row.push(pair.map_or("–".into(), |(ours, theirs)| ratio(&ours, &theirs)));
        }
        rows.push(row);
    }
    text += &columns(&rows);
    for peer in &measured.peers {
        if let Some(failed) = &peer.failed {
            let _ = writeln!(text, "{} FAILED: {failed}", peer.peer);
        }
    }
    text
}

fn cell(metric: &Metric) -> String {
    let Some(spread) = spread(&metric.values) else {
        return "–".into();
    };
    let show = |value| metric.unit.show(value);
    if spread.least == spread.most {
        return show(spread.median);
    }
    format!(
        "{} ({}–{})",
        show(spread.median),
        show(spread.least),
        show(spread.most)
    )
}

/// Ours over theirs; an arrow where ours is better in every pair.
fn ratio(ours: &Metric, theirs: &Metric) -> String {
    let Some(ratio) = ratios(ours, theirs) else {
        return "–".into();
    };
    let better = match ours.unit.more_is_better() {
        true => ratio.least > 1.0,
        false => ratio.most < 1.0,
    };
    let mark = if better && ours.unit != Unit::Count {
        " ✓"
    } else {
        ""
    };
    format!("{:.2} ({:.2}–{:.2}){mark}", ratio.median, ratio.least, ratio.most)
}

/// Rows as columns, the first to the left, the others to the right.
fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = match index {
                0 => write!(text, "  {cell:<width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        text = text.trim_end().to_owned() + "\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Host;

    #[test]
    fn a_table_has_the_machine_medians_ratios_and_what_failed() {
        let metric = |values: &[f64]| Metric {
            name: "start → init".into(),
            unit: Unit::Nanoseconds,
            values: values.to_vec(),
        };
        let peer = |name: &str, metrics: Vec<Metric>, failed: Option<&str>| PeerRuns {
            peer: name.into(),
            version: format!("{name} 1"),
            metrics,
            failed: failed.map(str::to_owned),
        };
        let report = Report {
            version: 1,
            taken: "2026-11-26T03:00:00Z".into(),
            host: Host {
                cpu: "2 × EPYC".into(),
                kernel: "Linux 6.18".into(),
                kvm: "SVM".into(),
                clock: "the host's".into(),
            },
            command: vec![],
            notes: vec!["crosvm: it is not here".into()],
            measures: vec![Measured {
                measure: "boot".into(),
                peers: vec![
                    peer("nacelle", vec![metric(&[1e6, 2e6, 3e6])], None),
                    peer("qemu-q35", vec![metric(&[4e6, 4e6, 6e6])], None),
                    peer("firecracker", vec![], Some("it did not come up")),
                ],
            }],
        };
        assert_eq!(
            table(&report),
            "\
2 × EPYC, Linux 6.18, KVM: SVM; time is the host's
2026-11-26T03:00:00Z
  nacelle: nacelle 1
  qemu-q35: qemu-q35 1
  firecracker: firecracker 1

boot, 3 runs each: median (least–most)
                         nacelle          qemu-q35  firecracker   ratio to qemu-q35  ratio to firecracker
  start → init  2 ms (1 ms–3 ms)  4 ms (4 ms–6 ms)            –  0.50 (0.25–0.50) ✓                     –
firecracker FAILED: it did not come up

Not measured: crosvm: it is not here
"
        );
    }
}
