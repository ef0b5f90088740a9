//! An explanation for people. Pure.

use std::fmt::Write;

use k8s_openapi::jiff::Timestamp;

use super::{Explanation, Weight};

/// Writes it out; a blank line parts what is next in the chain.
pub(super) fn text(explanation: &Explanation, now: Timestamp) -> String {
    let mut out = format!("{}: {}\n", explanation.machine, explanation.status);
    let ago = |since: Option<Timestamp>| since.map(|since| age(since, now)).unwrap_or_default();
    for link in &explanation.chain {
        let since = match ago(link.since) {
            ago if ago.is_empty() => ago,
            ago => format!(", for {ago}"),
        };
        let _ = writeln!(out, "\n{} {}: {}{since}", link.kind, link.name, link.state);
        for finding in &link.findings {
            let mark = match finding.weight {
                Weight::Note => '-',
                Weight::Waits => '~',
                Weight::Stuck => '!',
            };
            let since = match ago(finding.since) {
                ago if ago.is_empty() => ago,
                ago => format!(" (for {ago})"),
            };
            let _ = writeln!(out, "  {mark} {}{since}: {}", finding.reason, finding.message);
            if let Some(next) = &finding.next {
                let _ = writeln!(out, "    -> {next}");
            }
        }
    }
    for unseen in &explanation.unseen {
        let _ = writeln!(out, "\nnot looked at: {unseen}");
    }
    out
}

/// How long ago, in the largest unit of which there are two or more.
fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Finding, Link};
    use super::*;

    #[test]
    fn people_read_what_each_waits_for_since_when_and_what_to_do() {
        let at = |second| Timestamp::from_second(second).ok();
        let explanation = Explanation {
            machine: "n/a".into(),
            status: "ErrorUnschedulable".into(),
            chain: vec![Link {
                kind: "Pod",
                name: "virt-launcher-a".into(),
                state: "Pending".into(),
                since: at(880),
                findings: vec![Finding {
                    weight: Weight::Stuck,
                    reason: "Unschedulable".into(),
                    message: "0/2 nodes are available".into(),
                    since: at(990),
                    next: Some("free something".into()),
                }],
            }],
            unseen: vec!["events: forbidden".into()],
        };
        assert_eq!(
            text(&explanation, at(1000).unwrap()),
            "n/a: ErrorUnschedulable\n\nPod virt-launcher-a: Pending, for 2m\n  ! Unschedulable (for 10s): 0/2 nodes are \
             available\n    -> free something\n\nnot looked at: events: forbidden\n"
        );
    }

    #[test]
    fn ages_are_short() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let table = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (7199, "119m"),
            (7200, "2h"),
            (172_800, "2d"),
        ];
        for (seconds, words) in table {
            assert_eq!(age(at(0), at(seconds)), words);
        }
        assert_eq!(age(at(5), at(0)), "0s", "clocks differ");
    }
}
