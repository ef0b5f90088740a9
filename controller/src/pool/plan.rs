//! How many machines a pool makes and deletes, and which. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::NodeSelectorRequirement;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::core::SelectorExt;
use nacelle_api::pool::{Autohealing, SelectionPolicy, Selectors, SortPolicy};
use nacelle_api::{VirtualMachine, VirtualMachinePool, conditions};
use sha2::{Digest, Sha256};

use super::machine::{index, name};
use crate::replicas::{self, BURST};

/// Failures in a row after which a machine is replaced, where the pool does not say.
const FAILURES: i32 = 3;
/// How long a machine may fail to start, where the pool does not say.
pub const FAILING: Duration = Duration::from_secs(5 * 60);
/// Words of machines that do not start.
const FAILING_WORDS: [&str; 6] = [
    "CrashLoopBackOff",
    "ErrorUnschedulable",
    "DataVolumeError",
    "ErrorPvcNotFound",
    "ErrImagePull",
    "ImagePullBackOff",
];

/// What to do about the number of machines.
#[derive(Debug, Default)]
pub struct Scale {
    /// Numbers of machines to make.
    pub create: Vec<u32>,
    /// Machines to delete.
    pub delete: Vec<Arc<VirtualMachine>>,
}

/// Decides; `taken` are the names of all machines of the namespace. A machine that is being deleted counts until it is gone,
/// and then another has its name.
pub fn scale(
    pool: &VirtualMachinePool,
    mine: &[Arc<VirtualMachine>],
    taken: &BTreeSet<String>,
    now: Timestamp,
) -> Scale {
    let wanted = usize::try_from(pool.spec.replicas.unwrap_or(1)).unwrap_or(0);
    let missing = wanted.saturating_sub(mine.len()).min(BURST);
    let create = (0_u32..)
        .filter(|index| !taken.contains(&name(pool, *index)))
        .take(missing)
        .collect();
    let (going, staying): (Vec<_>, Vec<_>) = mine
        .iter()
        .cloned()
        .partition(|vm| vm.metadata.deletion_timestamp.is_some());
    let (mut delete, staying): (Vec<_>, Vec<_>) = staying
        .into_iter()
        .partition(|vm| heals(pool.spec.autohealing.as_ref(), vm, now));
    let too_many = mine
        .len()
        .saturating_sub(wanted)
        .saturating_sub(going.len() + delete.len());
    let strategy = pool.spec.scale_in_strategy.clone().unwrap_or_default();
    if strategy.unmanaged.is_none() && strategy.opportunistic.is_none() {
        let policy = strategy
            .proactive
            .and_then(|proactive| proactive.selection_policy);
        delete.extend(selected(staying, policy.as_ref()).into_iter().take(too_many));
    }
    delete.truncate(BURST);
    Scale { create, delete }
}

/// Whether a machine does not start, and is to be replaced for it.
fn heals(autohealing: Option<&Autohealing>, vm: &VirtualMachine, now: Timestamp) -> bool {
    let (Some(autohealing), Some(status)) = (autohealing, &vm.status) else {
        return false;
    };
    let failures = status
        .start_failure
        .as_ref()
        .and_then(|failure| failure.consecutive_fail_count);
    if failures.unwrap_or(0) >= autohealing.start_up_failure_threshold.unwrap_or(FAILURES) {
        return true;
    }
    let word = status.printable_status.as_deref().unwrap_or_default();
    let text = autohealing.min_failing_to_start_duration.as_deref();
    let patience = text
        .and_then(|text| humantime::parse_duration(text).ok())
        .unwrap_or(FAILING);
    let since = conditions::find(&status.conditions, "Ready")
        .filter(|ready| ready.status == "False")
        .and_then(|ready| ready.last_transition_time.as_ref());
    FAILING_WORDS.contains(&word)
        && since.is_some_and(|since| {
            Duration::try_from(now.duration_since(since.0)).is_ok_and(|failing| failing >= patience)
        })
}

/// The machines that a policy selects, in its order. Even an order that means nothing is always the same.
pub fn selected(
    mut vms: Vec<Arc<VirtualMachine>>,
    policy: Option<&SelectionPolicy>,
) -> Vec<Arc<VirtualMachine>> {
    if let Some(selectors) = policy.and_then(|policy| policy.selectors.as_ref()) {
        vms.retain(|vm| selects(selectors, vm));
    }
    match policy.and_then(|policy| policy.sort_policy).unwrap_or_default() {
        SortPolicy::AscendingOrder => vms.sort_by_key(|vm| index(vm)),
        SortPolicy::DescendingOrder => vms.sort_by_key(|vm| Reverse(index(vm))),
        SortPolicy::Newest => vms.sort_by_key(|vm| (Reverse(vm.creation_timestamp()), index(vm))),
        SortPolicy::Oldest => vms.sort_by_key(|vm| (vm.creation_timestamp(), index(vm))),
        SortPolicy::Random => {
            vms.sort_by_cached_key(|vm| Sha256::digest(vm.uid().unwrap_or_default()).to_vec());
        }
    }
    vms
}

fn selects(selectors: &Selectors, vm: &VirtualMachine) -> bool {
    let template = &vm.spec.template;
    let none = BTreeMap::new();
    let labels = template.metadata.as_ref().and_then(|m| m.labels.as_ref());
    let by_labels = selectors.label_selector.as_ref().is_none_or(|selector| {
        replicas::selector(selector).is_ok_and(|selector| selector.matches(labels.unwrap_or(&none)))
    });
    let requirements = selectors.node_selector_requirement_matcher.iter().flatten();
    by_labels
        && requirements
            .into_iter()
            .all(|requirement| meets(requirement, &template.spec.node_selector))
}

/// Whether a node selector is as required; what admission refuses is met by none.
fn meets(requirement: &NodeSelectorRequirement, selector: &BTreeMap<String, String>) -> bool {
    let value = selector.get(&requirement.key);
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: &String| text.parse::<i64>().ok();
    let compared =
        |than: fn(i64, i64) -> bool| match (value.and_then(number), values.first().and_then(number)) {
            (Some(value), Some(bound)) => than(value, bound),
            _ => false,
        };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared(|value, bound| value > bound),
        "Lt" => compared(|value, bound| value < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use nacelle_api::pool::VirtualMachinePoolSpec;
    use nacelle_api::vm::{StartFailure, VirtualMachineStatus};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pool(replicas: i32, strategy: &str) -> VirtualMachinePool {
        let spec: VirtualMachinePoolSpec = serde_saphyr::from_str(&format!(
            "{{selector: {{}}, virtualMachineTemplate: {{}}, replicas: {replicas}, {strategy}}}"
        ))
        .unwrap();
        VirtualMachinePool::new("web", spec)
    }

    fn vm(number: u32, born: i64) -> VirtualMachine {
        let mut vm = VirtualMachine::new(&format!("web-{number}"), Default::default());
        vm.metadata.uid = Some(format!("u{number}"));
        vm.metadata.creation_timestamp = Some(Time(at(born)));
        vm
    }

    fn three() -> Vec<Arc<VirtualMachine>> {
        let mut picky = vm(2, 20);
        let template = &mut picky.spec.template;
        template.spec.node_selector.insert("disks".into(), "4".into());
        template.metadata.get_or_insert_default().labels = Some([("old".into(), "yes".into())].into());
        [vm(0, 30), vm(1, 10), picky].map(Arc::new).into()
    }

    fn gone(pool: &VirtualMachinePool, mine: &[Arc<VirtualMachine>]) -> Vec<String> {
        let scale = scale(pool, mine, &BTreeSet::new(), at(1000));
        scale.delete.iter().map(|vm| vm.name_any()).collect()
    }

    #[test]
    fn names_are_numbered_and_gaps_are_filled_first() {
        let taken = BTreeSet::from(["web-1".to_owned(), "other-0".to_owned()]);
        let mine = [Arc::new(vm(1, 1))];
        assert_eq!(scale(&pool(3, ""), &mine, &taken, at(1)).create, [0, 2]);
        let default: VirtualMachinePool = VirtualMachinePool::new("web", VirtualMachinePoolSpec::default());
        assert_eq!(scale(&default, &[], &taken, at(1)).create, [0]);
    }

    #[test]
    fn which_machines_go_is_for_the_pool_to_say() {
        let with = |replicas, policy: &str| {
            pool(
                replicas,
                &format!("scaleInStrategy: {{proactive: {{selectionPolicy: {{{policy}}}}}}}"),
            )
        };
        #[rustfmt::skip]
        let table: [(&str, &[&str]); 8] = [
            ("sortPolicy: AscendingOrder", &["web-0", "web-1"]),
            ("sortPolicy: DescendingOrder", &["web-2", "web-1"]),
            ("sortPolicy: Newest", &["web-0", "web-2"]),
            ("sortPolicy: Oldest", &["web-1", "web-2"]),
            ("selectors: {labelSelector: {matchLabels: {old: 'yes'}}}", &["web-2"]),
            ("selectors: {nodeSelectorRequirementMatcher: [{key: disks, operator: Gt, values: ['3']}]}", &["web-2"]),
            ("selectors: {nodeSelectorRequirementMatcher: [{key: disks, operator: Lt, values: ['3']}]}", &[]),
            ("sortPolicy: AscendingOrder, selectors: {nodeSelectorRequirementMatcher: [{key: disks, operator: DoesNotExist}]}", &["web-0", "web-1"]),
        ];
        for (policy, names) in table {
            assert_eq!(gone(&with(1, policy), &three()), names, "{policy}");
        }
        // Any: but for who looks again, the same.
        let random = gone(&pool(1, ""), &three());
        assert_eq!(random.len(), 2);
        assert_eq!(random, gone(&pool(1, ""), &three()));
        for strategy in ["unmanaged: {}", "opportunistic: {}"] {
            let pool = pool(1, &format!("scaleInStrategy: {{{strategy}}}"));
            assert!(gone(&pool, &three()).is_empty(), "{strategy}");
        }
    }

    #[test]
    fn who_is_going_already_counts_until_gone() {
        let mut mine = three();
        Arc::make_mut(&mut mine[0]).metadata.deletion_timestamp = Some(Time(at(1)));
        assert!(gone(&pool(2, ""), &mine).is_empty());
        assert_eq!(gone(&pool(1, ""), &mine).len(), 1);
        assert!(
            scale(&pool(3, ""), &mine, &BTreeSet::new(), at(1))
                .create
                .is_empty()
        );
    }

    #[test]
    fn a_machine_that_does_not_start_is_replaced_where_the_pool_says_so() {
        let failing = |failures: i32, word: &str, since: i64| {
            let mut vm = vm(0, 1);
            let mut status = VirtualMachineStatus {
                printable_status: Some(word.into()),
                start_failure: Some(StartFailure {
                    consecutive_fail_count: Some(failures),
                    ..StartFailure::default()
                }),
                ..VirtualMachineStatus::default()
            };
            conditions::set(&mut status.conditions, "Ready", false, "", "", at(since));
            vm.status = Some(status);
            [Arc::new(vm)]
        };
        let heals = |autohealing: &str, mine: &[Arc<VirtualMachine>]| {
            !gone(&pool(1, &format!("autohealing: {autohealing}")), mine).is_empty()
        };
        assert!(heals("{}", &failing(3, "Stopped", 1000)));
        assert!(!heals("{}", &failing(2, "Stopped", 1)));
        assert!(!heals(
            "{startUpFailureThreshold: 4}",
            &failing(3, "Stopped", 1000)
        ));
        assert!(heals("{}", &failing(0, "ErrImagePull", 700)));
        assert!(!heals("{}", &failing(0, "ErrImagePull", 701)));
        assert!(heals(
            "{minFailingToStartDuration: 1m0s}",
            &failing(0, "ErrImagePull", 940)
        ));
        assert!(!heals("{}", &failing(0, "Running", 1)));
        assert!(
            gone(&pool(1, ""), &failing(9, "ErrImagePull", 1)).is_empty(),
            "not asked to"
        );
    }
}
