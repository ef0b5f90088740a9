//! Which instances a set makes and deletes next. Pure.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use kube::ResourceExt;
use nacelle_api::{VirtualMachineInstance, VirtualMachineInstanceReplicaSet, conditions};

use crate::replicas::BURST;
use crate::vmi::build::suffix;

/// Longest name that five more characters still go with.
const BASE_MAX: usize = 58;

/// What to do next.
#[derive(Debug, Default)]
pub struct Plan {
    /// Names of instances to make.
    pub create: Vec<String>,
    /// Instances that are too many.
    pub delete: Vec<Arc<VirtualMachineInstance>>,
    /// Instances that ended: others take their place.
    pub ended: Vec<Arc<VirtualMachineInstance>>,
}

/// Whether an instance counts: it runs, or is about to.
pub fn active(vmi: &VirtualMachineInstance) -> bool {
    !ended(vmi) && vmi.metadata.deletion_timestamp.is_none()
}

/// Whether an instance is ready.
pub fn ready(vmi: &VirtualMachineInstance) -> bool {
    let status = vmi.status.as_ref();
    status.is_some_and(|status| conditions::is_true(&status.conditions, "Ready"))
}

fn ended(vmi: &VirtualMachineInstance) -> bool {
    vmi.status.as_ref().is_some_and(crate::vmi::status::is_final)
}

/// Decides; `taken` are the names of all instances of the namespace.
pub fn plan(
    set: &VirtualMachineInstanceReplicaSet,
    mine: &[Arc<VirtualMachineInstance>],
    taken: &BTreeSet<String>,
) -> Plan {
    if set.spec.paused == Some(true) || set.metadata.deletion_timestamp.is_some() {
        return Plan::default();
    }
    let mut active: Vec<_> = mine.iter().filter(|vmi| active(vmi)).cloned().collect();
    let wanted = usize::try_from(set.spec.replicas.unwrap_or(1)).unwrap_or(0);
    // Who serves nobody goes first, then who serves for the shortest time.
    active.sort_by_cached_key(|vmi| (ready(vmi), Reverse(vmi.creation_timestamp()), vmi.name_any()));
    let too_many = active.len().saturating_sub(wanted).min(BURST);
    let missing = wanted.saturating_sub(active.len()).min(BURST);
    active.truncate(too_many);
    let ended = mine
        .iter()
        .filter(|vmi| ended(vmi) && vmi.metadata.deletion_timestamp.is_none());
    Plan {
        create: names(set)
            .filter(|name| !taken.contains(name))
            .take(missing)
            .collect(),
        delete: active,
        ended: ended.take(BURST).cloned().collect(),
    }
}

/// Names for instances: always the same ones, in the same order.
fn names(set: &VirtualMachineInstanceReplicaSet) -> impl Iterator<Item = String> {
    let template = set.spec.template.metadata.as_ref();
    let given = |name: Option<&String>| name.filter(|name| !name.is_empty()).cloned();
    let base = template
        .and_then(|metadata| given(metadata.name.as_ref()).or_else(|| given(metadata.generate_name.as_ref())))
        .unwrap_or_else(|| set.name_any());
    let base: String = base.chars().take(BASE_MAX).collect();
    let uid = set.uid().unwrap_or_default();
    (0_u32..).map(move |number| format!("{base}{}", suffix(&format!("{uid}/{number}"))))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use nacelle_api::vmi::VirtualMachineInstanceStatus;

    use super::*;

    fn set(replicas: i32) -> VirtualMachineInstanceReplicaSet {
        let mut set = VirtualMachineInstanceReplicaSet::new("web", Default::default());
        set.metadata.uid = Some("u".into());
        set.spec.replicas = Some(replicas);
        set
    }

    fn vmi(name: &str, phase: &str, is_ready: bool, born: i64) -> Arc<VirtualMachineInstance> {
        let at = Timestamp::from_second(born).unwrap();
        let mut vmi = VirtualMachineInstance::new(name, Default::default());
        vmi.metadata.creation_timestamp = Some(Time(at));
        let mut status = VirtualMachineInstanceStatus {
            phase: Some(phase.into()),
            ..VirtualMachineInstanceStatus::default()
        };
        conditions::set(&mut status.conditions, "Ready", is_ready, "", "", at);
        vmi.status = Some(status);
        Arc::new(vmi)
    }

    fn names_of(list: &[Arc<VirtualMachineInstance>]) -> Vec<String> {
        list.iter().map(|vmi| vmi.name_any()).collect()
    }

    #[test]
    fn who_looks_twice_makes_the_same_instances() {
        let first = plan(&set(3), &[], &BTreeSet::new());
        assert_eq!(first.create.len(), 3);
        assert!(
            first
                .create
                .iter()
                .all(|name| name.starts_with("web") && name.len() == 8)
        );
        assert_eq!(first.create, plan(&set(3), &[], &BTreeSet::new()).create);
        // Names that are taken, by whomever, are passed over.
        let taken = BTreeSet::from([first.create[1].clone()]);
        let second = plan(&set(2), &[], &taken).create;
        assert_eq!(second, [first.create[0].clone(), first.create[2].clone()]);
        assert_eq!(plan(&set(9999), &[], &taken).create.len(), BURST);
    }

    #[test]
    fn who_serves_nobody_goes_first_then_the_youngest() {
        let mine = [
            vmi("old", "Running", true, 1),
            vmi("young", "Running", true, 3),
            vmi("starting", "Scheduling", false, 2),
        ];
        let gone = |replicas| names_of(&plan(&set(replicas), &mine, &BTreeSet::new()).delete);
        assert_eq!(gone(2), ["starting"]);
        assert_eq!(gone(1), ["starting", "young"]);
        assert_eq!(gone(0), ["starting", "young", "old"]);
        assert!(gone(3).is_empty());
    }

    #[test]
    fn who_ended_is_replaced_and_who_is_paused_does_nothing() {
        let mine = [vmi("a", "Failed", false, 1), vmi("b", "Running", true, 1)];
        let next = plan(&set(2), &mine, &BTreeSet::new());
        assert_eq!((next.create.len(), next.delete.len()), (1, 0));
        assert_eq!(names_of(&next.ended), ["a"]);
        let mut paused = set(5);
        paused.spec.paused = Some(true);
        let next = plan(&paused, &mine, &BTreeSet::new());
        assert!(next.create.is_empty() && next.ended.is_empty());
    }
}
