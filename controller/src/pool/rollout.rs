//! How a changed template reaches machines and their instances. Pure.
//!
//! Each machine and each instance has a label that names the revision of the pool that it is made of. A machine whose
//! revision has another template is changed at once; its instance, which still runs with the old one, is ended when there
//! are enough others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use nacelle_api::pool::{VirtualMachinePoolSpec, VirtualMachineTemplate};
use nacelle_api::{VirtualMachine, VirtualMachineInstance, VirtualMachinePool};

use super::machine::REVISION;
use super::plan::selected;
use crate::replicaset::ready;

/// A machine of the pool, and what runs of it.
pub type Member = (Arc<VirtualMachine>, Option<Arc<VirtualMachineInstance>>);

/// One thing to do.
#[derive(Debug)]
pub enum Step {
    /// The machine gets the template of now.
    Update(Arc<VirtualMachine>),
    /// The instance is ended: the machine starts another with the new template.
    Restart(Arc<VirtualMachineInstance>),
    /// The instance is as its machine would have it: it gets its revision's name.
    Relabel(Arc<VirtualMachineInstance>, String),
    /// The machine has other volumes of its own: another takes its place.
    Replace(Arc<VirtualMachine>),
}

/// Name of the pool's revision as it is now.
pub fn revision(pool: &VirtualMachinePool) -> String {
    let generation = pool.metadata.generation.unwrap_or_default();
    format!("{}-{generation}", pool.name_any())
}

/// The revisions that machines and instances are made of.
pub fn in_use(members: &[Member]) -> BTreeSet<String> {
    let of_vms = members.iter().map(|(vm, _)| vm.labels());
    let of_vmis = members.iter().filter_map(|(_, vmi)| Some(vmi.as_ref()?.labels()));
    of_vms
        .chain(of_vmis)
        .filter_map(|labels| labels.get(REVISION).cloned())
        .collect()
}

/// What to do; `revisions` are those that are in use, as far as there are records of them.
pub fn rollout(
    pool: &VirtualMachinePool,
    members: &[Member],
    revisions: &BTreeMap<String, VirtualMachinePoolSpec>,
) -> Vec<Step> {
    let strategy = pool.spec.update_strategy.clone().unwrap_or_default();
    if strategy.unmanaged.is_some() {
        return Vec::new();
    }
    let policy = strategy
        .proactive
        .and_then(|proactive| proactive.selection_policy);
    let current = revision(pool);
    let template = |name: &str| -> Option<&VirtualMachineTemplate> {
        let spec = if name == current {
            Some(&pool.spec)
        } else {
            revisions.get(name)
        };
        spec.map(|spec| &spec.virtual_machine_template)
    };
    let instances: BTreeMap<_, _> = members
        .iter()
        .filter_map(|(vm, vmi)| Some((vm.name_any(), vmi.as_ref()?)))
        .collect();
    let vms = members
        .iter()
        .map(|(vm, _)| vm.clone())
        .filter(|vm| vm.metadata.deletion_timestamp.is_none());
    let vms = selected(vms.collect(), policy.as_ref());
    let (updated, outdated): (Vec<_>, Vec<_>) = vms.into_iter().partition(|vm| {
        let made_of = vm.labels().get(REVISION).and_then(|name| template(name));
        made_of == Some(&pool.spec.virtual_machine_template)
    });
    let mut steps: Vec<_> = outdated.into_iter().map(Step::Update).collect();
    if strategy.opportunistic.is_some() {
        return steps;
    }

    let available = |vm: &VirtualMachine| {
        let vmi = instances.get(&vm.name_any());
        vmi.is_some_and(|vmi| vmi.metadata.deletion_timestamp.is_none() && ready(vmi))
    };
    let unavailable = updated.iter().filter(|vm| !available(vm)).count();
    let mut room = max_unavailable(pool).saturating_sub(unavailable);
    for vm in updated {
        let Some(vmi) = instances.get(&vm.name_any()) else {
            continue;
        };
        if vmi.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let Some(step) = follow(&vm, vmi, template) else {
            continue;
        };
        // Who is not ready anyway does not wait; a label costs nobody anything.
        if available(&vm) && !matches!(step, Step::Relabel(..)) {
            if room == 0 {
                continue;
            }
            room -= 1;
        }
        steps.push(step);
    }
    steps
}

/// What an instance needs to be as its machine would have it.
fn follow<'a>(
    vm: &Arc<VirtualMachine>,
    vmi: &Arc<VirtualMachineInstance>,
    template: impl Fn(&str) -> Option<&'a VirtualMachineTemplate>,
) -> Option<Step> {
    let wanted = vm.labels().get(REVISION)?;
    let restart = || Some(Step::Restart(vmi.clone()));
    let Some(made_of) = vmi.labels().get(REVISION) else {
        return restart();
    };
    if made_of == wanted {
        return None;
    }
    let new = &template(wanted)?.spec;
    let Some(old) = template(made_of).map(|template| &template.spec) else {
        return restart();
    };
    if old.data_volume_templates != new.data_volume_templates {
        return Some(Step::Replace(vm.clone()));
    }
    let same = old.template == new.template
        && old.instancetype == new.instancetype
        && old.preference == new.preference;
    if same {
        Some(Step::Relabel(vmi.clone(), wanted.clone()))
    } else {
        restart()
    }
}

/// How many machines may be not ready: at least one, else nothing would ever be updated.
fn max_unavailable(pool: &VirtualMachinePool) -> usize {
    let replicas = usize::try_from(pool.spec.replicas.unwrap_or(1)).unwrap_or(0);
    let most = match &pool.spec.max_unavailable {
        None => replicas,
        Some(IntOrString::Int(count)) => usize::try_from(*count).unwrap_or(0),
        Some(IntOrString::String(text)) => replicas.saturating_mul(percent(text).unwrap_or(0)) / 100,
    };
    most.max(1)
}

/// `25%` as a number.
pub fn percent(text: &str) -> Option<usize> {
    text.strip_suffix('%')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use nacelle_api::conditions;
    use nacelle_api::vmi::VirtualMachineInstanceStatus;

    use super::*;

    fn spec(memory: &str, more: &str) -> VirtualMachinePoolSpec {
        serde_saphyr::from_str(&format!(
            "{{selector: {{}}, replicas: 4, virtualMachineTemplate: {{spec: {{runStrategy: Always, template: {{spec: \
             {{domain: {{memory: {{guest: {memory}}}, devices: {{}}}}}}}}}}}}, {more}}}"
        ))
        .unwrap()
    }

    fn pool(memory: &str, more: &str) -> VirtualMachinePool {
        let mut pool = VirtualMachinePool::new("web", spec(memory, more));
        pool.metadata.generation = Some(2);
        pool
    }

    fn revisions() -> BTreeMap<String, VirtualMachinePoolSpec> {
        BTreeMap::from([("web-1".to_owned(), spec("64Mi", ""))])
    }

    /// A machine and its instance, each of a revision.
    fn member(number: u32, of_vm: &str, of_vmi: Option<&str>, is_ready: bool) -> Member {
        let name = format!("web-{number}");
        let mut vm = VirtualMachine::new(&name, Default::default());
        vm.labels_mut().insert(REVISION.into(), of_vm.into());
        vm.metadata.uid = Some(name.clone());
        let vmi = of_vmi.map(|of_vmi| {
            let mut vmi = VirtualMachineInstance::new(&name, Default::default());
            vmi.labels_mut().insert(REVISION.into(), of_vmi.into());
            let mut status = VirtualMachineInstanceStatus::default();
            conditions::set(
                &mut status.conditions,
                "Ready",
                is_ready,
                "",
                "",
                Timestamp::now(),
            );
            vmi.status = Some(status);
            Arc::new(vmi)
        });
        (Arc::new(vm), vmi)
    }

    fn told(steps: &[Step]) -> Vec<String> {
        let each = steps.iter().map(|step| match step {
            Step::Update(vm) => format!("update {}", vm.name_any()),
            Step::Restart(vmi) => format!("restart {}", vmi.name_any()),
            Step::Relabel(vmi, name) => format!("relabel {} {name}", vmi.name_any()),
            Step::Replace(vm) => format!("replace {}", vm.name_any()),
        });
        let mut told: Vec<_> = each.collect();
        told.sort();
        told
    }

    #[test]
    fn machines_are_changed_at_once_and_their_instances_when_there_are_enough_others() {
        let members = [
            member(0, "web-1", Some("web-1"), true),
            member(1, "web-2", Some("web-1"), true),
            member(2, "web-2", Some("web-1"), true),
            member(3, "web-2", Some("web-2"), false),
        ];
        let steps = |more: &str| told(&rollout(&pool("128Mi", more), &members, &revisions()));
        assert_eq!(steps(""), ["restart web-1", "restart web-2", "update web-0"]);
        assert_eq!(
            steps("maxUnavailable: 1"),
            ["update web-0"],
            "web-3 is not ready yet"
        );
        assert_eq!(steps("maxUnavailable: 50%").len(), 2);
        assert_eq!(steps("updateStrategy: {opportunistic: {}}"), ["update web-0"]);
        assert!(steps("updateStrategy: {unmanaged: {}}").is_empty());
        let order = "updateStrategy: {proactive: {selectionPolicy: {sortPolicy: DescendingOrder}}}, maxUnavailable: 2";
        assert_eq!(steps(order), ["restart web-2", "update web-0"]);
    }

    #[test]
    fn who_is_not_ready_anyway_does_not_wait_for_others() {
        let members = [
            member(0, "web-2", Some("web-1"), false),
            member(1, "web-2", Some("web-1"), true),
            member(2, "web-2", None, false),
        ];
        let steps = rollout(&pool("128Mi", "maxUnavailable: 1"), &members, &revisions());
        assert_eq!(told(&steps), ["restart web-0"]);
    }

    #[test]
    fn what_only_changes_the_number_of_machines_restarts_none() {
        let members = [
            member(0, "web-1", Some("web-1"), true),
            member(1, "web-2", Some("web-1"), true),
        ];
        let steps = rollout(&pool("64Mi", "maxUnavailable: 1"), &members, &revisions());
        assert_eq!(told(&steps), ["relabel web-1 web-2"]);
    }

    #[test]
    fn what_cannot_be_compared_is_changed() {
        let members = [
            member(0, "lost", Some("lost"), true),
            member(1, "web-2", Some("lost"), true),
        ];
        let steps = rollout(&pool("64Mi", ""), &members, &revisions());
        assert_eq!(told(&steps), ["restart web-1", "update web-0"]);
    }
}
