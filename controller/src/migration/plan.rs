//! What comes next for a migration, and how far it is. Pure.
//!
//! ```text
//! Pending ── claimed, the pod made ── Scheduling ── it runs ── Scheduled ── it listens ── PreparingTarget
//!   ── the instance says where ── TargetReady ── the source sends ── Running ── the source has gone ── Succeeded
//!                  whatever comes between: the source is stopped, the target removed ── Failed
//! ```

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use nacelle_api::migration::{MigrationState, VirtualMachineInstanceMigration};
use nacelle_api::vmi::VirtualMachineInstanceStatus;
use nacelle_api::{VirtualMachineInstance, conditions};

use crate::vmi::moving::{Arrival, ended};
use crate::vmi::status::is_final;

/// How long a target pod may be unschedulable, and how long it may not run for any reason.
const UNSCHEDULABLE: SignedDuration = SignedDuration::from_mins(5);
const PENDING: SignedDuration = SignedDuration::from_mins(15);

/// Phases in their order; the last two are final.
const PHASES: [&str; 8] = [
    "Pending",
    "Scheduling",
    "Scheduled",
    "PreparingTarget",
    "TargetReady",
    "Running",
    "Succeeded",
    "Failed",
];

/// All that counts.
pub struct World<'a> {
    /// The migration.
    pub migration: &'a VirtualMachineInstanceMigration,
    /// The instance.
    pub vmi: Option<&'a VirtualMachineInstance>,
    /// The pod that it is in.
    pub source: Option<&'a Pod>,
    /// The pod that it goes to.
    pub target: Option<&'a Pod>,
    /// Where that listens.
    pub arrival: Option<Arrival>,
    /// Why this one has to wait for others, if it has.
    pub busy: Option<String>,
    /// Now.
    pub now: Timestamp,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// It waits in the queue: why.
    Queue(&'static str, String),
    /// The instance is to say that it moves.
    Claim,
    /// The target pod is to be made.
    Create,
    /// The instance is to say where it goes.
    Announce,
    /// The source is to send.
    Depart,
    /// Others have their turn.
    Await,
    /// The source has the guest no more, and is to go.
    Arrived,
    /// It is to be brought to an end: why.
    Stop(String),
    /// The target pod is to go.
    Clean,
    /// It is over: whether it succeeded, else why not.
    Over(Result<(), String>),
}

/// Whether a phase is final.
pub fn is_over(migration: &VirtualMachineInstanceMigration) -> bool {
    matches!(phase_of(migration), "Succeeded" | "Failed")
}

/// The phase that was written.
pub fn phase_of(migration: &VirtualMachineInstanceMigration) -> &str {
    let status = migration.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

impl World<'_> {
    fn status(&self) -> Option<&VirtualMachineInstanceStatus> {
        self.vmi?.status.as_ref()
    }

    /// What the instance says of this migration.
    pub fn ours(&self) -> Option<&MigrationState> {
        let state = self.status()?.migration_state.as_ref()?;
        let uid = self.migration.metadata.uid.as_ref();
        (state.migration_uid.as_ref() == uid).then_some(state)
    }

    fn aborted(&self) -> bool {
        self.migration.metadata.deletion_timestamp.is_some()
    }

    /// What comes next.
    pub fn next(&self) -> Step {
        let Some(vmi) = self.vmi.filter(|vmi| vmi.metadata.deletion_timestamp.is_none()) else {
            return self.without("the VMI does not exist any more");
        };
        if let Some(state) = self.ours() {
            return self.claimed(vmi, state);
        }
        self.unclaimed()
    }

    fn unclaimed(&self) -> Step {
        let over = |why: &str| Step::Over(Err(why.to_owned()));
        if self.aborted() {
            return over("it was aborted before it began");
        }
        let Some(status) = self.status().filter(|status| !is_final(status)) else {
            return over("Cannot migrate VMI in finalized state.");
        };
        if PHASES
            .iter()
            .skip(1)
            .any(|phase| *phase == phase_of(self.migration))
        {
            return over("another migration of the VMI has begun");
        }
        let list = &status.conditions;
        if let Some(why) = conditions::find(list, "LiveMigratable").filter(|why| why.status == "False") {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            return Step::Over(Err(format!(
                "Cannot migrate VMI, Reason: {}, Message: {}",
                text(&why.reason),
                text(&why.message)
            )));
        }
        let waits = |reason, why: &str| Step::Queue(reason, why.to_owned());
        if status.phase.as_deref() != Some("Running") {
            return waits("NotRunning", "the VMI does not run yet");
        }
        if conditions::is_true(list, "Paused") {
            return waits("Paused", "the VMI is paused");
        }
        if status
            .migration_state
            .as_ref()
            .is_some_and(|state| !state.is_over())
        {
            return waits("AnotherMigration", "another migration of the VMI is under way");
        }
        match &self.busy {
            Some(why) => waits("Limit", why),
            None => Step::Claim,
        }
    }

    fn claimed(&self, vmi: &VirtualMachineInstance, state: &MigrationState) -> Step {
        let status = vmi.status.as_ref();
        if state.completed == Some(true) {
            return Step::Over(Ok(()));
        }
        if state.failed == Some(true) {
            let why = state.failure_reason.as_deref().unwrap_or("it failed");
            return self.without(why);
        }
        if status.is_some_and(is_final) {
            return self.without("Cannot migrate VMI in finalized state.");
        }
        if state.has_arrived() {
            return Step::Arrived;
        }
        if self.source.is_none_or(ended) {
            // The instance's own reconciler finds out where the guest is.
            return Step::Await;
        }
        if self.aborted() {
            return Step::Stop("Live migration aborted".to_owned());
        }
        let stop = |why: &str| Step::Stop(why.to_owned());
        match self.target {
            None if phase_of(self.migration).is_empty() || phase_of(self.migration) == "Pending" => {
                Step::Create
            }
            None => stop("the target pod is gone"),
            Some(pod) if ended(pod) => stop(&format!("the target pod ended: {}", why_ended(pod))),
            Some(pod) if pod.metadata.deletion_timestamp.is_some() => stop("the target pod is being deleted"),
            Some(pod) => match (self.late(pod), &self.arrival) {
                (_, Some(_)) if state.start_timestamp.is_some() => Step::Await,
                (_, Some(arrival)) if state.target_node_address.as_ref() != Some(&arrival.address) => {
                    Step::Announce
                }
                (_, Some(_)) => Step::Depart,
                (Some(why), None) => stop(why),
                (None, None) => Step::Await,
            },
        }
    }

    /// It came to nothing.
    fn without(&self, why: &str) -> Step {
        match self.target {
            // One that ran is the instance's own.
            Some(pod)
                if pod.metadata.deletion_timestamp.is_none()
                    && !ended(pod)
                    && !self.ours().is_some_and(MigrationState::has_arrived) =>
            {
                Step::Clean
            }
            _ => Step::Over(Err(why.to_owned())),
        }
    }

    /// Why a pod that does not run is not waited for any longer.
    fn late(&self, pod: &Pod) -> Option<&'static str> {
        let since = self
            .now
            .duration_since(pod.metadata.creation_timestamp.as_ref()?.0);
        if since > PENDING {
            return Some("the target pod did not run within 15 minutes");
        }
        (unschedulable(pod) && since > UNSCHEDULABLE)
            .then_some("the target pod could not be scheduled within 5 minutes")
    }

    /// The phase that the migration is in; never one before that which was written.
    pub fn phase(&self, step: &Step) -> &'static str {
        let rank = |phase: &str| PHASES.iter().position(|known| *known == phase).unwrap_or(0);
        let now = match (step, self.ours()) {
            (Step::Over(Ok(())), _) => return "Succeeded",
            (Step::Over(Err(_)), _) => return "Failed",
            (_, None) => "Pending",
            (_, Some(state)) => match self.target {
                _ if state.start_timestamp.is_some() => "Running",
                None => "Pending",
                Some(_) if self.arrival.is_some() && state.target_node_address.is_some() => "TargetReady",
                Some(_) if self.arrival.is_some() => "PreparingTarget",
                Some(pod) if runs(pod) => "Scheduled",
                Some(_) => "Scheduling",
            },
        };
        let written = rank(phase_of(self.migration)).min(rank("Running"));
        PHASES.get(rank(now).max(written)).copied().unwrap_or(now)
    }
}

/// Whether the scheduler has found no node.
pub fn unschedulable(pod: &Pod) -> bool {
    let list = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let scheduled = |list: &Vec<k8s_openapi::api::core::v1::PodCondition>| {
        list.iter()
            .any(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
    };
    list.is_some_and(scheduled)
}

fn runs(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

fn why_ended(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let containers = status
        .and_then(|status| status.container_statuses.as_ref())
        .into_iter()
        .flatten();
    let words =
        containers.filter_map(|container| container.state.as_ref()?.terminated.as_ref()?.message.clone());
    let said = status.and_then(|status| status.message.clone());
    words
        .chain(said)
        .next()
        .unwrap_or_else(|| "it does not say why".to_owned())
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn world<T>(
        migration: Value,
        vmi: Value,
        source: Value,
        target: Value,
        look: impl Fn(&World<'_>) -> T,
    ) -> T {
        let migration = serde_json::from_value(migration).unwrap();
        let vmi: Option<VirtualMachineInstance> = serde_json::from_value(vmi).unwrap();
        let source: Option<Pod> = serde_json::from_value(source).unwrap();
        let target: Option<Pod> = serde_json::from_value(target).unwrap();
        let arrival = target.as_ref().and_then(|pod| {
            serde_json::from_str(pod.metadata.annotations.as_ref()?.get("nacelle.io/arrival")?).ok()
        });
        look(&World {
            migration: &migration,
            vmi: vmi.as_ref(),
            source: source.as_ref(),
            target: target.as_ref(),
            arrival,
            busy: None,
            now: Timestamp::from_second(1000).unwrap(),
        })
    }

    fn migration(phase: &str, deleted: bool) -> Value {
        let deleted = deleted.then_some("2026-01-01T00:00:00Z");
        json!({"metadata": {"name": "m", "uid": "m", "deletionTimestamp": deleted}, "spec": {"vmiName": "a"},
            "status": {"phase": phase}})
    }

    fn vmi(state: Value) -> Value {
        json!({"metadata": {"name": "a"}, "spec": {"domain": {"devices": {}}},
            "status": {"phase": "Running", "migrationState": state}})
    }

    fn pod(phase: &str, listens: bool) -> Value {
        let at = r#"{"migration": "m", "address": "10.0.0.1:65520", "certificate": "C"}"#;
        let annotations = if listens {
            json!({"nacelle.io/arrival": at})
        } else {
            json!({})
        };
        json!({"metadata": {"annotations": annotations, "creationTimestamp": "1970-01-01T00:16:00Z"},
            "status": {"phase": phase}})
    }

    #[test]
    fn it_goes_step_by_step_and_its_phase_never_goes_back() {
        let claimed = json!({"migrationUid": "m"});
        let announced = json!({"migrationUid": "m", "targetNodeAddress": "10.0.0.1:65520"});
        let sending = json!({"migrationUid": "m", "targetNodeAddress": "10.0.0.1:65520",
            "startTimestamp": "2026-01-01T00:00:00Z"});
        let mut arrived = sending.clone();
        arrived["targetNodeDomainReadyTimestamp"] = json!("2026-01-01T00:00:00Z");
        let mut done = arrived.clone();
        done["completed"] = json!(true);
        let source = || pod("Running", false);
        let table = [
            ("", Value::Null, Value::Null, Step::Claim, "Pending"),
            ("Pending", claimed.clone(), Value::Null, Step::Create, "Pending"),
            (
                "Pending",
                claimed.clone(),
                pod("Pending", false),
                Step::Await,
                "Scheduling",
            ),
            (
                "Scheduling",
                claimed.clone(),
                pod("Running", false),
                Step::Await,
                "Scheduled",
            ),
            (
                "Scheduled",
                claimed.clone(),
                pod("Running", true),
                Step::Announce,
                "PreparingTarget",
            ),
            (
                "PreparingTarget",
                announced,
                pod("Running", true),
                Step::Depart,
                "TargetReady",
            ),
            (
                "TargetReady",
                sending.clone(),
                pod("Running", true),
                Step::Await,
                "Running",
            ),
            ("Running", claimed, pod("Pending", false), Step::Await, "Running"),
            ("Running", arrived, pod("Running", true), Step::Arrived, "Running"),
            (
                "Running",
                done,
                pod("Running", true),
                Step::Over(Ok(())),
                "Succeeded",
            ),
        ];
        for (phase, state, target, step, next) in table {
            world(migration(phase, false), vmi(state), source(), target, |world| {
                assert_eq!(world.next(), step, "{phase}");
                assert_eq!(world.phase(&step), next, "{phase}");
            });
        }
    }

    #[test]
    fn whatever_happens_the_source_is_stopped_before_it_is_over() {
        let sending = || json!({"migrationUid": "m", "startTimestamp": "2026-01-01T00:00:00Z"});
        let source = || pod("Running", false);
        let step = |migration, state, source, target| {
            world(migration, vmi(state), source, target, |world| world.next())
        };
        let gone = step(migration("Running", false), sending(), source(), Value::Null);
        assert_eq!(gone, Step::Stop("the target pod is gone".into()));
        let dead = step(
            migration("Running", false),
            sending(),
            source(),
            pod("Failed", true),
        );
        assert!(matches!(dead, Step::Stop(why) if why.starts_with("the target pod ended")));
        let aborted = step(
            migration("Running", true),
            sending(),
            source(),
            pod("Running", true),
        );
        assert_eq!(aborted, Step::Stop("Live migration aborted".into()));
        // Who is not claimed has nothing to stop.
        let early = step(migration("Pending", true), Value::Null, source(), Value::Null);
        assert!(matches!(early, Step::Over(Err(_))));
        // The source died: where the guest is must be found out first.
        assert_eq!(
            step(
                migration("Running", true),
                sending(),
                pod("Failed", false),
                pod("Running", true)
            ),
            Step::Await
        );
        let mut failed = sending();
        failed["failed"] = json!(true);
        failed["failureReason"] = json!("why");
        assert_eq!(
            step(
                migration("Running", false),
                failed.clone(),
                source(),
                pod("Running", true)
            ),
            Step::Clean
        );
        assert_eq!(
            step(migration("Running", false), failed, source(), pod("Failed", true)),
            Step::Over(Err("why".into()))
        );
    }

    #[test]
    fn one_migration_of_an_instance_at_a_time() {
        let other = |over: bool| vmi(json!({"migrationUid": "other", "completed": over}));
        let step = |phase, vmi| {
            world(
                migration(phase, false),
                vmi,
                pod("Running", false),
                Value::Null,
                |world| world.next(),
            )
        };
        assert!(matches!(
            step("Pending", other(false)),
            Step::Queue("AnotherMigration", _)
        ));
        assert_eq!(step("Pending", other(true)), Step::Claim);
        // One that was overtaken does not begin again.
        assert!(matches!(step("Running", other(true)), Step::Over(Err(_))));
    }
}
