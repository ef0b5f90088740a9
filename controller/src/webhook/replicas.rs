//! What is refused of sets and pools: their templates by the rules of what is made of them, and their own fields.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::SelectorExt;
use nacelle_api::pool::{ScaleInStrategy, SelectionPolicy, StatePreservation, VirtualMachinePoolSpec};
use nacelle_api::{
    Cause, CauseKind, FieldPath, VirtualMachine, VirtualMachineInstanceReplicaSet, VirtualMachinePool,
    defaults, validate,
};
use serde::Deserialize;

use super::mutate::read;
use super::validate::{instance, invalid, machine as judge, refused};
use super::{Question, Verdict};
use crate::pool::rollout::percent;
use crate::replicas;

/// Where a pool's machine is.
const MACHINE: &str = "spec.virtualMachineTemplate.spec";

pub(super) fn set(question: &Question<'_>) -> Verdict {
    let set: VirtualMachineInstanceReplicaSet = match read(question.object) {
        Ok(set) => set,
        Err(cause) => return refused(cause),
    };
    if unchanged(question) {
        return Verdict::default();
    }
    let path = "spec.template.spec";
    let mut spec = set.spec.template.spec;
    defaults::apply(&mut spec);
    let mut verdict = Verdict {
        causes: validate(&spec, &FieldPath::new(path)),
        ..Verdict::default()
    };
    instance(&spec, path, &mut verdict.causes, &mut verdict.warnings);
    verdict
        .causes
        .extend(selects(&set.spec.selector, set.spec.template.metadata.as_ref()));
    verdict
}

pub(super) fn pool(question: &Question<'_>) -> Verdict {
    let pool: VirtualMachinePool = match read(question.object) {
        Ok(pool) => pool,
        Err(cause) => return refused(cause),
    };
    if unchanged(question) {
        return Verdict::default();
    }
    let old = question.old.and_then(|old| old.get("spec"));
    let old = old.and_then(|old| VirtualMachinePoolSpec::deserialize(old).ok());
    let old_machine = old.as_ref().map(|old| &old.virtual_machine_template.spec);
    let mut verdict = judge(machine(&pool), old_machine, question);
    verdict.causes = verdict.causes.into_iter().map(of_template).collect();
    let spec = &pool.spec;
    verdict.causes.extend(selects(
        &spec.selector,
        spec.virtual_machine_template.metadata.as_ref(),
    ));
    if old.is_some_and(|old| old.selector != spec.selector) {
        verdict.causes.push(invalid(
            "spec.selector",
            "selector is immutable after creation.".to_owned(),
        ));
    }
    verdict.causes.extend(own(spec));
    verdict
}

/// The machine of a pool's template.
pub(super) fn machine(pool: &VirtualMachinePool) -> VirtualMachine {
    let template = &pool.spec.virtual_machine_template;
    VirtualMachine {
        metadata: ObjectMeta {
            namespace: pool.metadata.namespace.clone(),
            ..template.metadata.clone().unwrap_or_default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// What is wrong with a machine, told where it stands in the pool.
fn of_template(cause: Cause) -> Cause {
    let field = cause.field.as_str();
    let there = match field.strip_prefix("spec") {
        Some(rest) => format!("{MACHINE}{rest}"),
        None => format!("spec.virtualMachineTemplate.{field}"),
    };
    Cause {
        message: cause.message.replace(field, &there),
        field: FieldPath::new(there),
        ..cause
    }
}

fn unchanged(question: &Question<'_>) -> bool {
    let old = question.old;
    old.is_some_and(|old| old.get("spec") == question.object.get("spec"))
}

/// What is wrong with a selector.
fn selects(selector: &LabelSelector, template: Option<&ObjectMeta>) -> Option<Cause> {
    let labels = template.and_then(|metadata| metadata.labels.clone());
    let labels = labels.unwrap_or_default();
    match replicas::selector(selector) {
        Err(message) => Some(invalid("spec.selector", message)),
        // One that is empty would take everything in the namespace.
        Ok(selector) if selector.selects_all() || !selector.matches(&labels) => Some(invalid(
            "spec.selector",
            "selector does not match labels.".to_owned(),
        )),
        Ok(_) => None,
    }
}

/// What is wrong with a pool's own fields.
fn own(spec: &VirtualMachinePoolSpec) -> Vec<Cause> {
    let mut causes = Vec::new();
    match &spec.max_unavailable {
        Some(IntOrString::String(text)) if percent(text).is_none() => {
            let message = format!("invalid maxUnavailable percentage: {text:?}");
            causes.push(invalid("spec.maxUnavailable", message));
        }
        Some(IntOrString::Int(count)) if *count < 0 => {
            let message = format!("invalid maxUnavailable: {count}");
            causes.push(invalid("spec.maxUnavailable", message));
        }
        _ => {}
    }
    let ScaleInStrategy {
        opportunistic,
        proactive,
        ..
    } = spec.scale_in_strategy.clone().unwrap_or_default();
    let kept = [
        ("opportunistic", opportunistic.and_then(|o| o.state_preservation)),
        ("proactive", proactive.as_ref().and_then(|p| p.state_preservation)),
    ];
    for (name, preservation) in kept {
        if preservation.is_some_and(|preservation| preservation != StatePreservation::Disabled) {
            let field = FieldPath::new(format!("spec.scaleInStrategy.{name}.statePreservation"));
            causes.push(Cause {
                kind: CauseKind::FieldValueNotSupported,
                message: format!("{field} is not supported by this version of Nacelle"),
                field,
            });
        }
    }
    let update = spec
        .update_strategy
        .as_ref()
        .and_then(|update| update.proactive.as_ref());
    let policies = [
        (
            "scaleInStrategy",
            proactive.and_then(|proactive| proactive.selection_policy),
        ),
        (
            "updateStrategy",
            update.and_then(|proactive| proactive.selection_policy.clone()),
        ),
    ];
    for (name, policy) in policies {
        if let Some(policy) = policy {
            causes.extend(policy_of(
                &policy,
                &format!("spec.{name}.proactive.selectionPolicy.selectors"),
            ));
        }
    }
    let failing = spec
        .autohealing
        .as_ref()
        .and_then(|healing| healing.min_failing_to_start_duration.as_deref());
    if let Some(text) = failing
        && let Err(error) = humantime::parse_duration(text)
    {
        let message = format!("{text:?} is no duration, such as 5m: {error}");
        causes.push(invalid("spec.autohealing.minFailingToStartDuration", message));
    }
    causes
}

fn policy_of(policy: &SelectionPolicy, field: &str) -> Vec<Cause> {
    let Some(selectors) = &policy.selectors else {
        return Vec::new();
    };
    let labels = selectors.label_selector.as_ref().and_then(|selector| {
        let message = replicas::selector(selector).err()?;
        Some(invalid(&format!("{field}.labelSelector"), message))
    });
    let requirements = selectors.node_selector_requirement_matcher.iter().flatten();
    let requirements = requirements.filter_map(|requirement| {
        let known = ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
        let operator = requirement.operator.as_str();
        (!known.contains(&operator)).then(|| {
            invalid(
                &format!("{field}.nodeSelectorRequirementMatcher"),
                format!("{operator:?} is not a valid label selector operator"),
            )
        })
    });
    labels.into_iter().chain(requirements).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::{ask, vm, vmi};
    use super::*;

    fn set_of(labels: Value) -> Value {
        json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceReplicaSet",
            "metadata": {"name": "s", "namespace": "n"},
            "spec": {"selector": {"matchLabels": {"app": "a"}},
                "template": {"metadata": {"labels": labels}, "spec": vmi()["spec"]}}})
    }

    fn pool_of() -> Value {
        json!({"apiVersion": "pool.kubevirt.io/v1beta1", "kind": "VirtualMachinePool",
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"selector": {"matchLabels": {"app": "a"}},
                "virtualMachineTemplate": {"metadata": {"labels": {"app": "a"}}, "spec": vm()["spec"]}}})
    }

    fn told(verdict: &Verdict) -> Vec<String> {
        let each = verdict.causes.iter();
        each.map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect()
    }

    #[test]
    fn a_set_whose_selector_would_not_find_its_own_is_refused() {
        assert!(told(&set(&ask(&set_of(json!({"app": "a"})), None, false))).is_empty());
        for labels in [json!({"app": "b"}), json!(null)] {
            let verdict = set(&ask(&set_of(labels), None, false));
            assert_eq!(told(&verdict), ["spec.selector: selector does not match labels."]);
        }
        let mut bad = set_of(json!({"app": "a"}));
        bad["spec"]["template"]["spec"]["domain"]["cpu"] = json!({"model": "Conroe"});
        let verdict = told(&set(&ask(&bad, None, false)));
        assert!(
            verdict[0].starts_with("spec.template.spec.domain.cpu.model"),
            "{verdict:?}"
        );
    }

    #[test]
    fn a_pools_machine_is_judged_as_a_machine_and_told_where_it_stands() {
        assert!(told(&pool(&ask(&pool_of(), None, false))).is_empty());
        let mut bad = pool_of();
        let machine = &mut bad["spec"]["virtualMachineTemplate"]["spec"];
        machine["runStrategy"] = json!("Always");
        machine["template"]["spec"]["domain"]["firmware"] =
            json!({"bootloader": {"efi": {"secureBoot": false}}});
        assert_eq!(
            told(&pool(&ask(&bad, None, false))),
            [
                "spec.virtualMachineTemplate.spec.running: Running and RunStrategy are mutually exclusive. Note that \
                 Running is deprecated, please use RunStrategy instead",
                "spec.virtualMachineTemplate.spec.template.spec.domain.firmware.bootloader: \
                 spec.virtualMachineTemplate.spec.template.spec.domain.firmware.bootloader is not supported by this \
                 version of Nacelle"
            ]
        );
    }

    #[test]
    fn what_a_pool_cannot_keep_or_not_mean_is_refused() {
        let old = pool_of();
        let with = |field: &str, value: Value| {
            let mut new = pool_of();
            new["spec"][field] = value;
            told(&pool(&ask(&new, Some(&old), false)))
        };
        #[rustfmt::skip]
        let table = [
            ("selector", json!({"matchLabels": {"app": "b"}}), "selector is immutable after creation."),
            ("maxUnavailable", json!("many"), "invalid maxUnavailable percentage"),
            ("scaleInStrategy", json!({"proactive": {"statePreservation": "Offline"}}), "is not supported by this version"),
            ("updateStrategy", json!({"proactive": {"selectionPolicy": {"selectors": {"nodeSelectorRequirementMatcher": [
                {"key": "a", "operator": "Near"}]}}}}), "\"Near\" is not a valid label selector operator"),
            ("autohealing", json!({"minFailingToStartDuration": "soon"}), "is no duration"),
        ];
        for (field, value, words) in table {
            let said = with(field, value);
            assert!(said.iter().any(|line| line.contains(words)), "{field}: {said:?}");
        }
        for (field, value) in [
            ("maxUnavailable", json!("25%")),
            ("maxUnavailable", json!(2)),
            ("replicas", json!(3)),
        ] {
            assert!(with(field, value).is_empty(), "{field}");
        }
    }
}
