use std::collections::BTreeSet;

use nacelle_api::defaults;
use serde_json::Value;

use super::*;
use crate::vmi::build::volumes::AUDIENCE;

const CLASSIC: &str = r"
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: ledger, namespace: prod, uid: 6a1e7a0c-0001, labels: {app: ledger}}
spec:
  terminationGracePeriodSeconds: 180
  domain:
    cpu: {cores: 2}
    memory: {guest: 1Gi}
    devices:
      disks: [{name: root, disk: {bus: virtio}}, {name: data, disk: {bus: virtio}}, {name: init, disk: {bus: virtio}}]
      interfaces: [{name: default, masquerade: {}}]
  networks: [{name: default, pod: {}}]
  volumes:
  - {name: root, containerDisk: {image: 'registry/ledger:1'}}
  - {name: data, persistentVolumeClaim: {claimName: ledger-data}}
  - {name: init, cloudInitNoCloud: {userData: '#cloud-config'}}
";

fn made(text: &str, block: &[&str]) -> Result<Value, String> {
    configured(text, block, &Configuration::default())
}

fn configured(text: &str, block: &[&str], configuration: &Configuration) -> Result<Value, String> {
    logging(text, block, configuration, Format::default())
}

fn logging(text: &str, block: &[&str], configuration: &Configuration, log: Format) -> Result<Value, String> {
    let mut vmi: VirtualMachineInstance = serde_saphyr::from_str(text).unwrap();
    defaults::apply(&mut vmi.spec);
    let valid = Valid {
        vmi: &vmi,
        block_volumes: block
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<BTreeSet<_>>(),
    };
    let installation = Installation {
        image: "nacelle:1".to_owned(),
        image_pull_policy: "IfNotPresent".to_owned(),
        report: "{}".into(),
        configuration: Arc::new(configuration.clone()),
        log,
    };
    pod(&valid, &installation).map(|pod| serde_json::to_value(pod).unwrap())
}

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    list.as_array()
        .unwrap()
        .iter()
        .find(|item| item["name"] == name)
        .unwrap_or(&Value::Null)
}

#[test]
fn the_classic_machine_is_a_pod_with_the_names_that_people_know() {
    let pod = made(CLASSIC, &[]).unwrap();
    let name = pod["metadata"]["name"].as_str().unwrap();
    assert!(
        name.starts_with("virt-launcher-ledger-") && name.len() == "virt-launcher-ledger-".len() + 5,
        "{name}"
    );
    assert_eq!(
        pod["metadata"]["labels"]["kubevirt.io/created-by"],
        "6a1e7a0c-0001"
    );
    assert_eq!(pod["metadata"]["labels"]["app"], "ledger");
    let names = |list: &str| -> Vec<String> {
        let list = pod["spec"][list].as_array().unwrap().iter();
        list.map(|container| container["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names("initContainers"), ["init"]);
    assert_eq!(
        names("containers"),
        ["compute", "volumeroot", "guest-console-log"]
    );
    assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 210);
    assert_eq!(pod["spec"]["automountServiceAccountToken"], false);
}

#[test]
fn the_same_instance_is_the_same_pod_and_another_run_another() {
    assert_eq!(made(CLASSIC, &[]), made(CLASSIC, &[]));
    let again = made(&CLASSIC.replace("6a1e7a0c-0001", "6a1e7a0c-0002"), &[]).unwrap();
    assert_ne!(
        made(CLASSIC, &[]).unwrap()["metadata"]["name"],
        again["metadata"]["name"]
    );
}

#[test]
fn nothing_runs_as_root_or_with_a_capability_but_what_makes_the_network() {
    let pod = made(CLASSIC, &[]).unwrap();
    let lists = [&pod["spec"]["initContainers"], &pod["spec"]["containers"]];
    for container in lists.into_iter().flat_map(|list| list.as_array().unwrap()) {
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["capabilities"]["drop"][0], "ALL");
        if container["name"] == "init" {
            assert_eq!(context["capabilities"]["add"], serde_json::json!(["NET_ADMIN"]));
        } else {
            assert_eq!(
                (&context["capabilities"]["add"], &context["runAsUser"]),
                (&Value::Null, &107.into())
            );
        }
    }
    assert_eq!(
        pod["spec"]["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
}

#[test]
fn the_machine_gets_its_memory_and_our_overhead() {
    let pod = made(CLASSIC, &[]).unwrap();
    let resources = &pod["spec"]["containers"][0]["resources"];
    // 16 MiB, 2 MiB of page tables for 1 GiB, 1 MiB for each of two vCPUs.
    assert_eq!(
        resources["requests"]["memory"],
        ((1024 + 16 + 2 + 2) << 20).to_string()
    );
    assert_eq!(resources["requests"]["cpu"], "200m");
    assert_eq!(resources["limits"]["devices.kubevirt.io/kvm"], "1");
    assert_eq!(resources["limits"]["devices.kubevirt.io/tun"], "1");
    assert_eq!(resources["limits"]["memory"], Value::Null);
    let limited = CLASSIC.replace(
        "memory: {guest: 1Gi}",
        "resources: {limits: {memory: 1Gi, cpu: 2}}",
    );
    let limited = made(&limited, &[]).unwrap();
    let resources = &limited["spec"]["containers"][0]["resources"];
    assert_eq!(resources["limits"]["memory"], resources["requests"]["memory"]);
    assert_eq!(resources["requests"]["cpu"], "2");
}

#[test]
fn what_goes_before_the_machine_has_no_more_rights_than_it_needs_and_is_not_there_for_nothing() {
    let alone = "      interfaces: []\n      autoattachPodInterface: false\n";
    let alone = CLASSIC
        .replace("      interfaces: [{name: default, masquerade: {}}]\n", alone)
        .replace("  networks: [{name: default, pod: {}}]\n", "");
    let pod = made(&alone, &[]).unwrap();
    let init = &pod["spec"]["initContainers"][0];
    assert_eq!(init["securityContext"]["runAsUser"], 107);
    assert_eq!(init["command"][3], "--serve-file");
    let none = alone.replace(
        "containerDisk: {image: 'registry/ledger:1'}",
        "emptyDisk: {capacity: 1Gi}",
    );
    assert_eq!(made(&none, &[]).unwrap()["spec"]["initContainers"], Value::Null);
    let quiet = none.replace("    devices:\n", "    devices:\n      logSerialConsole: false\n");
    let containers = made(&quiet, &[]).unwrap()["spec"]["containers"].clone();
    assert_eq!(containers.as_array().unwrap().len(), 1);
    assert_eq!(
        containers[0]["command"],
        serde_json::json!(["/usr/bin/nacelle", "pod", "run"])
    );
}

#[test]
fn the_administrators_settings_count_for_every_pod() {
    let configuration = Configuration {
        image_pull_policy: Some("Always".into()),
        node_selector: BTreeMap::from([("disk".into(), "fast".into())]),
        cpu_allocation_ratio: 4,
        memory_overcommit: 200,
        overhead_ratio: 1.5,
        no_free_page_reporting: true,
        launcher_log: Some(log::LevelFilter::Trace),
        ..Configuration::default()
    };
    let pod = configured(CLASSIC, &[], &configuration).unwrap();
    let compute = &pod["spec"]["containers"][0];
    assert_eq!(compute["imagePullPolicy"], "Always");
    assert_eq!(compute["command"][1], "-vv");
    let words = compute["command"].as_array().unwrap();
    assert!(!words.contains(&"--log".into()), "{words:?}");
    let pod = logging(CLASSIC, &[], &Configuration::default(), Format::Json).unwrap();
    let words = &pod["spec"]["containers"][0]["command"];
    assert_eq!((&words[1], &words[2]), (&"--log".into(), &"json".into()));
    let pod = configured(CLASSIC, &[], &configuration).unwrap();
    let compute = &pod["spec"]["containers"][0];
    assert_eq!(pod["spec"]["nodeSelector"]["disk"], "fast");
    assert_eq!(compute["resources"]["requests"]["cpu"], "500m");
    // Half of the guest's memory, and one and a half times 16 + 2 + 2 MiB.
    let requested = ((512 + 30) << 20).to_string();
    assert_eq!(compute["resources"]["requests"]["memory"], requested);
    let vmi = pod["metadata"]["annotations"][INSTANCE].as_str().unwrap();
    assert!(vmi.contains(NO_FREE_PAGE_REPORTING));
    // Who asks for memory gets what was asked for.
    let own = CLASSIC.replace(
        "memory: {guest: 1Gi}",
        "memory: {guest: 1Gi}\n    resources: {requests: {memory: 1Gi}}",
    );
    let pod = configured(&own, &[], &configuration).unwrap();
    let requested = ((1024 + 30) << 20).to_string();
    assert_eq!(
        pod["spec"]["containers"][0]["resources"]["requests"]["memory"],
        requested
    );
}

#[test]
fn a_claim_is_a_directory_or_a_device() {
    let pod = made(CLASSIC, &[]).unwrap();
    let mounts = &pod["spec"]["containers"][0]["volumeMounts"];
    assert_eq!(
        named(mounts, "data")["mountPath"],
        "/var/run/kubevirt-private/vmi-disks/data"
    );
    let pod = made(CLASSIC, &["data"]).unwrap();
    let devices = &pod["spec"]["containers"][0]["volumeDevices"];
    assert_eq!(named(devices, "data")["devicePath"], "/dev/data");
    assert_eq!(
        named(&pod["spec"]["volumes"], "data")["persistentVolumeClaim"]["claimName"],
        "ledger-data"
    );
}

#[test]
fn secrets_of_cloud_init_come_as_files_under_either_key() {
    let text = CLASSIC.replace("userData: '#cloud-config'", "secretRef: {name: s}");
    let pod = made(&text, &[]).unwrap();
    let sources = named(&pod["spec"]["volumes"], "init")["projected"]["sources"]
        .as_array()
        .unwrap();
    let keys: Vec<_> = sources
        .iter()
        .map(|source| source["secret"]["items"][0]["key"].as_str().unwrap())
        .collect();
    assert_eq!(keys, ["userdata", "userData"]);
    let mounts = &pod["spec"]["containers"][0]["volumeMounts"];
    assert_eq!(
        named(mounts, "init")["mountPath"],
        "/var/run/kubevirt-private/cloud-init/init"
    );
}

#[test]
fn the_launcher_finds_its_instance_and_a_token_for_us_alone() {
    let pod = made(CLASSIC, &[]).unwrap();
    let annotation = pod["metadata"]["annotations"][INSTANCE].as_str().unwrap();
    let vmi: Value = serde_json::from_str(annotation).unwrap();
    assert_eq!(vmi["metadata"]["uid"], "6a1e7a0c-0001");
    assert_eq!(vmi["spec"]["domain"]["machine"]["type"], "q35");
    assert!(
        nacelle_api::parse(annotation).is_ok(),
        "the launcher reads it strictly"
    );
    let token =
        &named(&pod["spec"]["volumes"], "nacelle-token")["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["audience"], AUDIENCE);
}

#[test]
fn a_kernel_of_an_image_is_served_like_a_disk() {
    let text = CLASSIC.replace(
        "    cpu: {cores: 2}",
        "    firmware: {kernelBoot: {container: {image: 'k:1', kernelPath: /boot/vmlinux, initrdPath: /boot/initrd}}}",
    );
    let pod = made(&text, &[]).unwrap();
    let server = named(&pod["spec"]["containers"], "kernel-boot");
    assert_eq!(server["image"], "k:1");
    assert_eq!(
        server["command"][2],
        "/run/nacelle/files/kernel-boot.kernel.sock=/boot/vmlinux"
    );
}

#[test]
fn what_does_not_fit_into_annotations_is_told() {
    let text = CLASSIC.replace(
        "labels: {app: ledger}",
        &format!("annotations: {{a: '{}'}}", "x".repeat(200_000)),
    );
    let error = made(&text, &[]).unwrap_err();
    assert!(
        error.contains("move what is long into Secrets or ConfigMaps"),
        "{error}"
    );
}

#[test]
fn a_probe_by_http_is_the_kubelets_and_others_are_the_guest_agents() {
    let probe = |text: &str| {
        let text = CLASSIC.replace("  domain:\n", &format!("  readinessProbe: {text}\n  domain:\n"));
        made(&text, &[]).unwrap()["spec"]["containers"][0]["readinessProbe"].take()
    };
    let http = probe("{httpGet: {port: 80}, timeoutSeconds: 3}");
    assert_eq!(
        (&http["httpGet"]["port"], &http["timeoutSeconds"]),
        (&80.into(), &3.into())
    );
    let words = |probe: &Value| {
        let words = probe["exec"]["command"].as_array().unwrap().iter();
        words
            .map(|word| word.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
            .join(" ")
    };
    let ping = probe("{guestAgentPing: {}}");
    assert_eq!(words(&ping), "/usr/bin/nacelle pod probe --timeout 1 --ping");
    let exec = probe("{exec: {command: [test, -e, /run/ready]}, timeoutSeconds: 5}");
    assert_eq!(
        words(&exec),
        "/usr/bin/nacelle pod probe --timeout 5 -- test -e /run/ready"
    );
    assert_eq!(exec["timeoutSeconds"], 6);
}

#[test]
fn the_pod_that_a_machine_moves_to_is_elsewhere_and_told_who_comes() {
    let mut vmi: VirtualMachineInstance = serde_saphyr::from_str(CLASSIC).unwrap();
    defaults::apply(&mut vmi.spec);
    vmi.spec
        .node_selector
        .insert("disk".to_owned(), "fast".to_owned());
    let valid = Valid {
        vmi: &vmi,
        block_volumes: BTreeSet::new(),
    };
    let installation = Installation {
        image: "nacelle:1".to_owned(),
        image_pull_policy: "IfNotPresent".to_owned(),
        report: "{}".into(),
        configuration: Arc::default(),
        log: Format::default(),
    };
    let made = |selector: &[(&str, &str)]| {
        let selector = selector
            .iter()
            .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()));
        let wanted = Target {
            migration: "move",
            uid: "m",
            certificate: "PEM",
            processor: None,
            added_node_selector: &selector.collect(),
        };
        target(&valid, &installation, &wanted).map(|pod| serde_json::to_value(pod).unwrap())
    };
    let pod = made(&[("zone", "b"), ("disk", "fast")]).unwrap();
    assert_ne!(pod["metadata"]["name"], pod_name(&vmi));
    let labels = &pod["metadata"]["labels"];
    assert_eq!(labels["kubevirt.io/migrationJobUID"], "m");
    let comes = pod["metadata"]["annotations"][MIGRATION].as_str().unwrap();
    assert_eq!(comes, r#"{"certificate":"PEM","migration":"m"}"#);
    assert_eq!(pod["spec"]["nodeSelector"]["zone"], "b");
    let term =
        &pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0];
    assert_eq!(term["labelSelector"]["matchLabels"][CREATED_BY], "6a1e7a0c-0001");
    assert_eq!(term["topologyKey"], "kubernetes.io/hostname");
    // What is added never takes the place of what the instance asks for.
    let refused = made(&[("disk", "slow")]).unwrap_err();
    assert!(
        refused.contains("asks for disk=slow, and the instance for disk=fast"),
        "{refused}"
    );
}
