//! The spans of a start. Pure.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use nacelle_api::VirtualMachineInstance;
use serde::Deserialize;

use super::MADE;

/// Most parts of a start that are believed of a launcher.
const PARTS: usize = 16;
/// Longest name of one.
const NAME: usize = 32;

/// What a launcher says of a start: `docs/pod.md`. Times are microseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Start {
    /// When its process began.
    pub began: u64,
    /// Its parts, one after the other, and how long each took.
    pub parts: Vec<(String, u64)>,
    /// When the guest had said its first line.
    pub first_line: u64,
}

/// A part of a start, in microseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// What takes the time.
    pub name: String,
    /// Place of the span that it is a part of; the first span is the whole.
    pub parent: Option<usize>,
    /// When it began.
    pub from: u64,
    /// When it ended.
    pub to: u64,
    /// What else is known of it.
    pub attributes: Vec<(&'static str, String)>,
}

/// The spans of a start: the whole, what the controller, the scheduler, the kubelet, the launcher and the guest took of it, and
/// the parts of the launcher's. Each ends where the next one begins, whatever clocks say.
pub fn spans(vmi: &VirtualMachineInstance, pod: &Pod, start: &Start) -> Vec<Span> {
    let made = |annotation: Option<&String>, created: Option<i64>| {
        let exact = annotation.and_then(|text| text.parse().ok());
        exact
            .or_else(|| u64::try_from(created?).ok())
            .unwrap_or(start.began)
    };
    let of_vmi = vmi.creation_timestamp().map(|time| time.0.as_microsecond());
    let of_pod = pod.creation_timestamp().map(|time| time.0.as_microsecond());
    let begin = made(vmi.annotations().get(MADE), of_vmi);
    let pod_made = made(pod.annotations().get(MADE), of_pod);
    let runs = start
        .parts
        .iter()
        .take(PARTS)
        .fold(start.began, |sum, (_, took)| sum.saturating_add(*took));
    let node = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.node_name.clone())
        .unwrap_or_default();
    let whose = vec![
        ("k8s.namespace.name", vmi.namespace().unwrap_or_default()),
        ("nacelle.vmi.name", vmi.name_any()),
        ("k8s.pod.name", pod.name_any()),
        ("k8s.node.name", node),
    ];
    let mut spans = vec![Span {
        name: "start".to_owned(),
        parent: None,
        from: begin,
        to: start.first_line.max(begin),
        attributes: whose,
    }];
    let ends = [
        ("controller", pod_made),
        ("scheduler", scheduled(pod).unwrap_or(pod_made).max(pod_made)),
        ("kubelet", start.began),
        ("launcher", runs),
        ("guest", start.first_line),
    ];
    let mut from = begin;
    for (index, (name, end)) in ends.iter().enumerate() {
        // What comes later is known better than the scheduler's whole seconds.
        let latest = ends.iter().skip(index).map(|(_, end)| *end).min().unwrap_or(*end);
        let to = (*end).min(latest).max(from);
        let mut attributes = Vec::new();
        if *name == "scheduler" {
            attributes.push(("nacelle.precision", "1s".to_owned()));
        }
        spans.push(Span {
            name: (*name).to_owned(),
            parent: Some(0),
            from,
            to,
            attributes,
        });
        from = to;
    }
    let launcher = spans.iter().position(|span| span.name == "launcher");
    let mut from = spans
        .iter()
        .find(|span| span.name == "launcher")
        .map_or(0, |span| span.from);
    for (name, took) in start.parts.iter().take(PARTS) {
        let to = from.saturating_add(*took);
        spans.push(Span {
            name: name.chars().take(NAME).collect(),
            parent: launcher,
            from,
            to,
            attributes: Vec::new(),
        });
        from = to;
    }
    spans
}

/// The second in which the pod had a node.
fn scheduled(pod: &Pod) -> Option<u64> {
    let list = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = list.iter().find(|condition| condition.type_ == "PodScheduled")?;
    u64::try_from(condition.last_transition_time.as_ref()?.0.as_microsecond()).ok()
}
