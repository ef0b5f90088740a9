use serde_json::json;

use super::*;

pub(super) fn ask<'a>(object: &'a Value, old: Option<&'a Value>, ours: bool) -> Question<'a> {
    static DEFAULT: std::sync::LazyLock<Configuration> = std::sync::LazyLock::new(Configuration::default);
    static NONE: Result<Types, Cause> = Ok(Types {
        instancetype: None,
        preference: None,
    });
    Question {
        object,
        old,
        ours,
        configuration: &DEFAULT,
        types: &NONE,
    }
}

pub(super) fn vm() -> Value {
    json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "metadata": {"name": "a", "namespace": "n"},
        "spec": {"running": true, "template": {"spec": {
            "domain": {"memory": {"guest": "64Mi"}, "devices": {"disks": [{"name": "root"}]}},
            "volumes": [{"name": "root", "containerDisk": {"image": "i"}}]}}}})
}

pub(super) fn vmi() -> Value {
    let mut vmi = vm();
    vmi["kind"] = json!("VirtualMachineInstance");
    vmi["spec"] = vm()["spec"]["template"]["spec"].clone();
    vmi
}

#[test]
fn a_machine_gets_an_identity_when_it_is_made_and_keeps_it() {
    let object = vm();
    let made = mutate::vm(&ask(&object, None, false)).unwrap();
    let firmware = &made["spec"]["template"]["spec"]["domain"]["firmware"];
    assert_eq!(firmware["uuid"].as_str().unwrap().len(), 36);
    assert_ne!(firmware["uuid"], firmware["serial"]);
    assert_eq!(made["metadata"]["finalizers"], json!([crate::VM_FINALIZER]));
    let changed = mutate::vm(&ask(&made, Some(&made), false)).unwrap();
    assert_eq!(changed, made);
}

#[test]
fn an_instance_is_stored_complete_and_pending() {
    let object = vmi();
    let made = mutate::vmi(&ask(&object, None, false)).unwrap();
    assert_eq!(made["status"]["phase"], "Pending");
    assert_eq!(made["status"]["memory"]["guestAtBoot"], "64Mi");
    assert_eq!(
        made["status"]["currentCPUTopology"],
        json!({"cores": 1, "sockets": 1, "threads": 1})
    );
    assert_eq!(made["spec"]["networks"], json!([{"name": "default", "pod": {}}]));
    assert_eq!(made["metadata"]["finalizers"], json!([crate::VMI_FINALIZER]));
}

#[test]
fn what_a_machine_does_not_say_the_administrator_may() {
    let configuration = Configuration {
        machine_type: Some("pc-q35-rhel9.6.0".into()),
        cpu_model: Some("host-passthrough".into()),
        eviction_strategy: Some("External".into()),
        masquerade: true,
        no_serial_console_log: true,
        ..Configuration::default()
    };
    let completed = |object: &Value, rule: fn(&Question<'_>) -> Result<Value, Cause>| {
        let question = Question {
            configuration: &configuration,
            ..ask(object, None, false)
        };
        rule(&question).unwrap()["spec"].clone()
    };
    let spec = completed(&vmi(), mutate::vmi);
    assert_eq!(spec["domain"]["machine"]["type"], "pc-q35-rhel9.6.0");
    assert_eq!(spec["domain"]["cpu"]["model"], "host-passthrough");
    assert_eq!(spec["evictionStrategy"], "External");
    assert_eq!(
        spec["domain"]["devices"]["interfaces"][0]["masquerade"],
        json!({})
    );
    assert_eq!(spec["domain"]["devices"]["logSerialConsole"], false);
    let spec = completed(&vm(), mutate::vm);
    assert_eq!(
        spec["template"]["spec"]["domain"]["machine"]["type"],
        "pc-q35-rhel9.6.0"
    );

    let mut own = vmi();
    own["spec"]["evictionStrategy"] = json!("None");
    own["spec"]["domain"]["machine"] = json!({"type": "q35"});
    own["spec"]["domain"]["cpu"] = json!({"model": "host-model"});
    own["spec"]["domain"]["devices"]["logSerialConsole"] = json!(true);
    let spec = completed(&own, mutate::vmi);
    assert_eq!(spec["domain"]["machine"]["type"], "q35");
    assert_eq!(spec["domain"]["cpu"]["model"], "host-model");
    assert_eq!(spec["evictionStrategy"], "None");
    assert_eq!(spec["domain"]["devices"]["logSerialConsole"], true);
}

#[test]
fn a_status_is_the_controllers_alone() {
    let mut old = vmi();
    old["status"] = json!({"phase": "Running"});
    let mut new = old.clone();
    new["status"]["phase"] = json!("Failed");
    assert_eq!(mutate::vmi(&ask(&new, Some(&old), false)).unwrap(), old);
    assert_eq!(mutate::vmi(&ask(&new, Some(&old), true)).unwrap(), new);
}

#[test]
fn the_spec_of_an_instance_does_not_change_but_by_the_controller() {
    let old = vmi();
    let mut new = old.clone();
    new["spec"]["domain"]["memory"]["guest"] = json!("128Mi");
    let verdict = validate::vmi(&ask(&new, Some(&old), false));
    assert_eq!(verdict.causes[0].message, "update of VMI object is restricted");
    assert!(validate::vmi(&ask(&new, Some(&old), true)).causes.is_empty());
    let mut labelled = old.clone();
    labelled["metadata"]["labels"] = json!({"team": "a"});
    assert!(
        validate::vmi(&ask(&labelled, Some(&old), false))
            .causes
            .is_empty()
    );
    labelled["metadata"]["labels"] = json!({"kubevirt.io/nodeName": "a"});
    assert_eq!(validate::vmi(&ask(&labelled, Some(&old), false)).causes.len(), 1);
}

#[test]
fn what_this_version_does_not_do_is_refused_and_what_differs_is_said() {
    let mut object = vm();
    let verdict = validate::vm(&ask(&object, None, false));
    assert!(verdict.causes.is_empty(), "{:?}", verdict.causes);
    assert_eq!(verdict.warnings.len(), 2, "{:?}", verdict.warnings);
    assert!(verdict.warnings[0].starts_with("spec.running is deprecated"));
    assert!(verdict.warnings[1].contains("disks[0] has no bus"));
    object["spec"]["running"] = json!(null);
    object["spec"]["runStrategy"] = json!("WaitAsReceiver");
    let verdict = validate::vm(&ask(&object, None, false));
    assert_eq!(verdict.causes.len(), 1, "{:?}", verdict.causes);
}

#[test]
fn a_refusal_lists_ten_causes_and_counts_the_others() {
    let cause = |index: usize| Cause {
        kind: nacelle_api::CauseKind::FieldValueInvalid,
        message: format!("m{index}"),
        field: nacelle_api::FieldPath::new("spec").index(index),
    };
    let causes: Vec<_> = (0..12).map(cause).collect();
    let response = refused(AdmissionResponse::invalid(""), &causes);
    assert_eq!(
        response.result.message,
        "m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, and 2 more validation errors"
    );
    assert_eq!(response.result.code, 422);
    assert_eq!(response.result.details.unwrap().causes[11].field, "spec[11]");
}

fn made_of(instancetype: &str, preference: &str) -> Result<Types, Cause> {
    Ok(Types {
        instancetype: Some(serde_saphyr::from_str(instancetype).unwrap()),
        preference: Some(serde_saphyr::from_str(preference).unwrap()),
    })
}

#[test]
fn a_machine_is_judged_with_its_instance_type_and_preference_written_out() {
    let mut object = vm();
    object["spec"]["instancetype"] = json!({"name": "u1.small"});
    object["spec"]["preference"] = json!({"name": "linux"});
    let judged = |object: &Value, types: &Result<Types, Cause>| {
        let question = Question {
            types,
            ..ask(object, None, false)
        };
        validate::vm(&question)
    };
    let small = "{cpu: {guest: 1}, memory: {guest: 64Mi}}";
    let verdict = judged(&object, &made_of(small, "{}"));
    assert_eq!(verdict.causes.len(), 1);
    assert_eq!(
        verdict.causes[0].message,
        "VM field(s) spec.template.spec.domain.memory.guest conflicts with selected instance type"
    );
    // Without memory of its own it has the instance type's, and its disk the preferred bus.
    object["spec"]["template"]["spec"]["domain"]["memory"] = json!(null);
    let verdict = judged(&object, &made_of(small, "{devices: {preferredDiskBus: virtio}}"));
    assert_eq!(verdict.causes, []);
    assert!(
        !verdict
            .warnings
            .iter()
            .any(|warning| warning.contains("has no bus"))
    );
    let verdict = judged(
        &object,
        &made_of(small, "{firmware: {preferredEfi: {secureBoot: false}}}"),
    );
    assert_eq!(
        verdict.causes[0].message,
        "spec.template.spec.domain.firmware.bootloader is not supported by this version of Nacelle, \
         and the instance type or the preference sets it"
    );
    let verdict = judged(&object, &made_of(small, "{requirements: {cpu: {guest: 2}}}"));
    assert_eq!(
        verdict.causes[0].message,
        "failure checking preference requirements: insufficient CPU resources of 1 vCPU provided by instance type, \
         preference requires 2 vCPU"
    );
    let missing = Cause {
        kind: nacelle_api::CauseKind::FieldValueNotFound,
        message: "Failure to find instancetype: no".into(),
        field: nacelle_api::FieldPath::new("spec.instancetype"),
    };
    assert_eq!(judged(&object, &Err(missing.clone())).causes, [missing]);
}

#[test]
fn a_machine_that_names_no_kind_gets_the_cluster_wide_one() {
    let mut object = vm();
    object["spec"]["instancetype"] = json!({"name": "u1.small"});
    object["spec"]["preference"] = json!({"name": "linux", "kind": "VirtualMachinePreference"});
    let made = mutate::vm(&ask(&object, None, false)).unwrap();
    assert_eq!(
        made["spec"]["instancetype"]["kind"],
        "virtualmachineclusterinstancetype"
    );
    assert_eq!(made["spec"]["preference"]["kind"], "VirtualMachinePreference");
    // The preference may prefer a machine type.
    assert_eq!(made["spec"]["template"]["spec"]["domain"].get("machine"), None);
}

#[test]
fn an_instance_type_has_cpus_and_memory() {
    let judged = |spec: Value| {
        let object = json!({"kind": "VirtualMachineInstancetype", "spec": spec});
        let verdict = validate::instancetype(&ask(&object, None, false));
        let causes: Vec<_> = verdict.causes.iter().map(ToString::to_string).collect();
        causes.join("|")
    };
    let memory = json!({"guest": "1Gi"});
    assert_eq!(judged(json!({"cpu": {"guest": 1}, "memory": memory})), "");
    assert_eq!(
        judged(json!({"cpu": {"guest": 0}, "memory": memory})),
        "spec.cpu.guest must be at least 1"
    );
    assert_eq!(
        judged(json!({"cpu": {"guest": 1}, "memory": {"guest": "1Gi", "overcommitPercent": 101}})),
        "spec.memory.overcommitPercent '101': must be in range between 0 and 100."
    );
    assert_eq!(
        judged(json!({"cpu": {"guest": 1},
            "memory": {"guest": "1Gi", "overcommitPercent": 5, "hugepages": {"pageSize": "2Mi"}}})),
        "spec.memory.overcommitPercent and spec.memory.hugepages should not be requested together."
    );
    assert!(
        judged(json!({"cpu": {"guest": 1}, "memory": {"guest": "much"}})).starts_with("spec.memory.guest")
    );
}
