//! What there is to say of a machine and what belongs to it. Pure: a file for each of the chain, one for what its disks wait for.

mod guest;
mod pod;
mod storage;
mod vm;

use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use nacelle_api::conditions::{self, Condition};

use super::{Explanation, Finding, Link, Weight, World};

/// Explains what was found.
pub fn explain(world: &World, namespace: &str, name: &str) -> Explanation {
    let mut chain: Vec<Link> = [
        world.vm.as_ref().map(|vm| vm::machine(vm, world)),
        world.vmi.as_ref().map(|vmi| guest::instance(vmi, world)),
        pod::pod(world),
        pod::monitor(world),
    ]
    .into_iter()
    .flatten()
    .collect();
    // Disks hold up the first of these that is not there yet: what is to make it waits for them.
    let waits = chain.iter_mut().rev().find(|link| link.kind != pod::MONITOR);
    if let Some(waits) = waits {
        waits.findings.extend(storage::findings(world));
    }
    let word = |status: Option<&String>| status.cloned().filter(|word| !word.is_empty());
    let of_vm = world.vm.as_ref().and_then(|vm| vm.status.as_ref());
    let of_vmi = world.vmi.as_ref().and_then(|vmi| vmi.status.as_ref());
    let status = word(of_vm.and_then(|status| status.printable_status.as_ref()))
        .or_else(|| word(of_vmi.and_then(|status| status.phase.as_ref())));
    Explanation {
        machine: format!("{namespace}/{name}"),
        status: status
            .unwrap_or_else(|| "nobody has looked at it yet: is nacelle-controller running?".to_owned()),
        chain,
        unseen: world.unseen.clone(),
    }
}

impl Finding {
    fn new(weight: Weight, reason: impl Into<String>, message: impl Into<String>) -> Finding {
        Finding {
            weight,
            reason: reason.into(),
            message: message.into(),
            since: None,
            next: None,
        }
    }

    fn since(mut self, since: Option<&Time>) -> Finding {
        self.since = since.map(|time| time.0);
        self
    }

    fn next(mut self, next: impl Into<String>) -> Finding {
        self.next = Some(next.into());
        self
    }
}

/// The condition of a type that is False.
fn false_<'a>(list: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions::find(list, type_).filter(|condition| condition.status == "False")
}

/// The condition of a type that is True.
fn true_<'a>(list: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions::find(list, type_).filter(|condition| condition.status == "True")
}

/// What a condition says.
fn said(weight: Weight, condition: &Condition) -> Finding {
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let reason = text(&condition.reason).unwrap_or_else(|| condition.type_.clone());
    let message = text(&condition.message).unwrap_or_else(|| reason.clone());
    Finding::new(weight, reason, message).since(condition.last_transition_time.as_ref())
}

/// When an event was last seen.
fn seen(event: &Event) -> Option<Timestamp> {
    let series = event
        .series
        .as_ref()
        .and_then(|series| series.last_observed_time.as_ref());
    let micro = series.or(event.event_time.as_ref()).map(|time| time.0);
    let last = event.last_timestamp.as_ref().or(event.first_timestamp.as_ref());
    last.map(|time| time.0).max(micro)
}

/// The newest event with one of these reasons.
fn newest<'a>(events: &'a [Event], reasons: &[&str]) -> Option<&'a Event> {
    let of_these = events
        .iter()
        .filter(|event| reasons.contains(&event.reason.as_deref().unwrap_or_default()));
    of_these.max_by_key(|event| seen(event))
}

#[cfg(test)]
mod tests;
