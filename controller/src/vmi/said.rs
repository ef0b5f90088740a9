//! What people are told of an instance: an event for each change that somebody waits for. Pure.

use nacelle_api::conditions::{self, Condition};
use nacelle_api::migration::MigrationState;
use nacelle_api::vmi::VirtualMachineInstanceStatus;

use super::status::CREDENTIALS;

/// Whether it is a warning, a word, a sentence.
type Event = (bool, String, String);

/// The events of a change.
pub(super) fn said(old: &VirtualMachineInstanceStatus, new: &VirtualMachineInstanceStatus) -> Vec<Event> {
    let entered = |phase: &str| {
        let before = |status: &VirtualMachineInstanceStatus| {
            status
                .phase_transition_timestamps
                .iter()
                .any(|transition| transition.phase == phase)
        };
        before(new) && !before(old)
    };
    let paused = |status: &VirtualMachineInstanceStatus| conditions::is_true(&status.conditions, "Paused");
    let of_move = |holds: fn(&MigrationState) -> bool| {
        let state =
            |status: &VirtualMachineInstanceStatus| status.migration_state.clone().unwrap_or_default();
        let (before, now) = (state(old), state(new));
        holds(&now) && !(before.migration_uid == now.migration_uid && holds(&before))
    };
    let arrived = of_move(MigrationState::has_arrived);
    let node = new.node_name.as_deref().unwrap_or_default();
    let changes = [
        (
            of_move(|state| state.target_node_address.is_some()),
            false,
            "PreparingTarget",
            "VirtualMachineInstance Migration Target Prepared.".to_owned(),
        ),
        (
            of_move(|state| state.start_timestamp.is_some()),
            false,
            "Migrating",
            "VirtualMachineInstance is migrating.".to_owned(),
        ),
        (
            arrived,
            false,
            "Migrated",
            format!("The VirtualMachineInstance migrated to node {node}."),
        ),
        (
            entered("Scheduled"),
            false,
            "Created",
            "VirtualMachineInstance defined.".to_owned(),
        ),
        (
            entered("Running"),
            false,
            "Started",
            "VirtualMachineInstance started.".to_owned(),
        ),
        (
            paused(new) && !paused(old),
            false,
            "Paused",
            "VirtualMachineInstance paused.".to_owned(),
        ),
        (
            paused(old) && !paused(new),
            false,
            "Unpaused",
            "VirtualMachineInstance is not paused any more.".to_owned(),
        ),
        (
            entered("Succeeded"),
            false,
            "Stopped",
            "The VirtualMachineInstance was shut down.".to_owned(),
        ),
        (
            entered("Failed"),
            true,
            "Stopped",
            "The VirtualMachineInstance crashed.".to_owned(),
        ),
    ];
    let changes = changes.into_iter().filter(|(so, ..)| *so);
    of_hindrances(old, new)
        .chain(changes.map(|(_, warning, reason, message)| (warning, reason.to_owned(), message)))
        .chain(of_credentials(old, new))
        .collect()
}

/// What holds it up, told when it begins to: the condition's own words.
fn of_hindrances(
    old: &VirtualMachineInstanceStatus,
    new: &VirtualMachineInstanceStatus,
) -> impl Iterator<Item = Event> {
    let found = |status: &VirtualMachineInstanceStatus, type_: &str| {
        conditions::find(&status.conditions, type_)
            .filter(|condition| condition.status == "False")
            .cloned()
    };
    let told = |type_: &str, warning: bool| {
        let now = found(new, type_)?;
        let before = found(old, type_);
        let new = before.is_none_or(|before| what(&before) != what(&now));
        let Condition { reason, message, .. } = now;
        new.then(|| {
            (
                warning,
                reason.unwrap_or_else(|| type_.to_owned()),
                message.unwrap_or_default(),
            )
        })
    };
    let all = [
        told("DataVolumesReady", false),
        told("PodScheduled", true),
        told("Synchronized", true),
    ];
    all.into_iter().flatten()
}

/// What is no news as long as it is the same. The scheduler counts nodes anew all the time, and the kubelet alternates between
/// two words for an image that does not come.
fn what(condition: &Condition) -> (&str, &str) {
    let reason = condition.reason.as_deref().unwrap_or_default();
    let message = condition.message.as_deref().unwrap_or_default();
    match (condition.type_.as_str(), reason) {
        ("PodScheduled", reason) => (reason, ""),
        (_, "ErrImagePull" | "ImagePullBackOff") => ("ImagePullBackOff", ""),
        (_, reason) => (reason, message),
    }
}

/// The same of keys and passwords.
fn of_credentials(old: &VirtualMachineInstanceStatus, new: &VirtualMachineInstanceStatus) -> Option<Event> {
    let of = |status: &VirtualMachineInstanceStatus| {
        let condition = conditions::find(&status.conditions, CREDENTIALS)?;
        Some((condition.status.clone(), condition.message.clone()))
    };
    let now = of(new).filter(|now| of(old).as_ref() != Some(now))?;
    Some(match now {
        (state, _) if state == "True" => (
            false,
            "AccessCredentialsSyncSuccess".to_owned(),
            "Access credentials sync successful.".to_owned(),
        ),
        (_, why) => (
            true,
            "AccessCredentialsSyncFailed".to_owned(),
            format!("Access credentials sync failed: {}", why.unwrap_or_default()),
        ),
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    use super::super::status::enter;
    use super::*;

    fn words(old: &VirtualMachineInstanceStatus, new: &VirtualMachineInstanceStatus) -> Vec<String> {
        said(old, new).into_iter().map(|(_, word, _)| word).collect()
    }

    #[test]
    fn people_are_told_of_each_change_once() {
        let now = Timestamp::UNIX_EPOCH;
        let words = |old: &_, new: &_| {
            said(old, new)
                .into_iter()
                .map(|(_, word, _)| word)
                .collect::<Vec<_>>()
        };
        let old = VirtualMachineInstanceStatus::default();
        let mut new = old.clone();
        enter(&mut new, "Scheduled", now);
        enter(&mut new, "Running", now);
        assert_eq!(
            words(&old, &new),
            ["Created", "Started"],
            "a report may be before the kubelet"
        );
        assert!(words(&new, &new).is_empty());
        let mut paused = new.clone();
        conditions::set(&mut paused.conditions, "Paused", true, "PausedByUser", "", now);
        assert_eq!(words(&new, &paused), ["Paused"]);
        assert_eq!(words(&paused, &new), ["Unpaused"]);
        let mut failed = paused.clone();
        enter(&mut failed, "Failed", now);
        assert_eq!(
            said(&new, &failed),
            [(
                true,
                "Stopped".to_owned(),
                "The VirtualMachineInstance crashed.".to_owned()
            )]
        );
    }

    #[test]
    fn what_holds_it_up_is_told_when_it_begins_to_and_in_its_own_words() {
        let with = |type_: &str, reason: &str, message: &str| {
            let mut status = VirtualMachineInstanceStatus::default();
            conditions::set(
                &mut status.conditions,
                type_,
                false,
                reason,
                message,
                Timestamp::UNIX_EPOCH,
            );
            status
        };
        let none = VirtualMachineInstanceStatus::default();
        let unscheduled = with("PodScheduled", "Unschedulable", "0/2 nodes are available");
        assert_eq!(
            said(&none, &unscheduled),
            [(
                true,
                "Unschedulable".to_owned(),
                "0/2 nodes are available".to_owned()
            )]
        );
        let recounted = with("PodScheduled", "Unschedulable", "0/3 nodes are available");
        assert!(words(&unscheduled, &recounted).is_empty());
        assert!(words(&unscheduled, &none).is_empty());
        let pull = |reason| with("Synchronized", reason, reason);
        assert_eq!(words(&none, &pull("ErrImagePull")), ["ErrImagePull"]);
        assert!(words(&pull("ErrImagePull"), &pull("ImagePullBackOff")).is_empty());
        let refused = |message| with("Synchronized", "FailedCreate", message);
        assert_eq!(words(&refused("a"), &refused("b")), ["FailedCreate"]);
        let filling = with(
            "DataVolumesReady",
            "NotAllDVsReady",
            "not filled yet: DataVolume d",
        );
        assert!(!said(&none, &filling)[0].0, "no warning");
    }

    #[test]
    fn each_step_of_a_move_is_told_once_for_each_move() {
        let state = |uid: &str, address: bool, began: bool, there: bool| {
            let time = |so: bool| so.then_some(Time(Timestamp::UNIX_EPOCH));
            VirtualMachineInstanceStatus {
                node_name: Some("node2".to_owned()),
                migration_state: Some(MigrationState {
                    migration_uid: Some(uid.to_owned()),
                    target_node_address: address.then(|| "10.0.0.2".to_owned()),
                    start_timestamp: time(began),
                    target_node_domain_ready_timestamp: time(there),
                    target_node_domain_detected: Some(there),
                    ..MigrationState::default()
                }),
                ..VirtualMachineInstanceStatus::default()
            }
        };
        let steps = [
            state("1", false, false, false),
            state("1", true, false, false),
            state("1", true, true, false),
            state("1", true, true, true),
            state("2", true, false, false),
        ];
        let told: Vec<_> = steps.windows(2).flat_map(|two| words(&two[0], &two[1])).collect();
        assert_eq!(
            told,
            ["PreparingTarget", "Migrating", "Migrated", "PreparingTarget"]
        );
        let last = said(&steps[2], &steps[3]);
        assert_eq!(last[0].2, "The VirtualMachineInstance migrated to node node2.");
    }
}
