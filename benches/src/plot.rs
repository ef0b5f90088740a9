//! The report as a drawing: for each metric one bar a monitor, as long as its median, a line from least to most.
//! Pure: SVG is text.

use std::fmt::Write;

use crate::compare::{metrics, spread};
use crate::record::{Measured, Report, Unit};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 350.0;
const RIGHT: f64 = 130.0;
const BAR: f64 = 14.0;
const GAP: f64 = 12.0;
/// For ours first, told apart by people who do not see all colours, too.
const COLOURS: [&str; 7] = [
    "#0072b2", "#56b4e9", "#e69f00", "#d55e00", "#009e73", "#cc79a7", "#999999",
];

/// The drawing.
pub fn svg(report: &Report) -> String {
    let mut names: Vec<&str> = Vec::new();
    for peer in report.measures.iter().flat_map(|measured| &measured.peers) {
        if !names.contains(&peer.peer.as_str()) {
            names.push(&peer.peer);
        }
    }
    let colour = |name: &str| {
        let index = names.iter().position(|other| *other == name).unwrap_or(0);
        COLOURS.get(index).copied().unwrap_or("#000000")
    };
    let mut body = String::new();
    let mut y = 30.0;
    text(
        &mut body,
        20.0,
        y,
        "start",
        "font-size=\"16\" font-weight=\"bold\"",
        "nacelle-bench: median, and least to most",
    );
    y += 20.0;
    let host = &report.host;
    let machine = format!("{}, {}, KVM: {}", host.cpu, host.kernel, host.kvm);
    text(&mut body, 20.0, y, "start", "fill=\"#555\"", &machine);
    y += 16.0;
    text(
        &mut body,
        20.0,
        y,
        "start",
        "fill=\"#555\"",
        &format!("time is {}; {}", host.clock, report.taken),
    );
    y += 24.0;
    let mut x = 20.0;
    for name in &names {
        rectangle(&mut body, x, y - 10.0, 12.0, colour(name));
        text(&mut body, x + 17.0, y, "start", "", name);
        x += 35.0 + 7.5 * name.chars().count() as f64;
    }
    for measured in &report.measures {
        y += 34.0;
        text(
            &mut body,
            20.0,
            y,
            "start",
            "font-size=\"15\" font-weight=\"bold\"",
            &measured.measure,
        );
        y += 10.0;
        y = bars(&mut body, y, measured, &colour);
    }
    let height = y + 20.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

/// The metrics of a measure, each on a scale of its own; gives where it ends.
fn bars(body: &mut String, mut y: f64, measured: &Measured, colour: &dyn Fn(&str) -> &'static str) -> f64 {
    for name in metrics(measured) {
        let drawn: Vec<_> = measured
            .peers
            .iter()
            .filter_map(|peer| {
                let metric = peer.metrics.iter().find(|metric| metric.name == name)?;
                if metric.unit == Unit::Sample {
                    return None;
                }
                Some((peer.peer.as_str(), metric.unit, spread(&metric.values)?))
            })
            .collect();
        if drawn.is_empty() {
            continue;
        }
        let most = drawn
            .iter()
            .map(|(_, _, spread)| spread.most)
            .fold(f64::MIN_POSITIVE, f64::max);
        let scale = |value: f64| (value.max(0.0) / most) * (WIDTH - LEFT - RIGHT);
        y += GAP;
        let middle = y + BAR * drawn.len() as f64 / 2.0 + 4.0;
        let better = match drawn.first() {
            Some((_, unit, _)) if unit.more_is_better() => " (more is better)",
            _ => "",
        };
        text(body, LEFT - 10.0, middle, "end", "", &format!("{name}{better}"));
        for (peer, unit, spread) in drawn {
            rectangle(body, LEFT, y, scale(spread.median), colour(peer));
            let (from, to, line) = (
                LEFT + scale(spread.least),
                LEFT + scale(spread.most),
                y + BAR / 2.0 - 1.0,
            );
            let _ = writeln!(
                body,
                "<path d=\"M{from:.1} {line:.1}H{to:.1}\" stroke=\"#222\" stroke-width=\"1.5\"/>"
            );
            text(
                body,
                to + 6.0,
                y + BAR - 4.0,
                "start",
                "",
                &unit.show(spread.median),
            );
            y += BAR;
        }
    }
    y
}

fn rectangle(body: &mut String, x: f64, y: f64, width: f64, fill: &str) {
    let height = BAR - 2.0;
    let _ = writeln!(
        body,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{fill}\"/>"
    );
}

fn text(body: &mut String, x: f64, y: f64, anchor: &str, more: &str, words: &str) {
    let words = words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let _ = writeln!(
        body,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {more}>{words}</text>"
    );
}
