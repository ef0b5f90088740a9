//! The metrics of machines and instances, by the names that KubeVirt gave them. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use nacelle_api::network::Interface;
use nacelle_api::{VirtualMachine, VirtualMachineInstance, conditions, quantity};
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Labels;
use crate::vmi::build::pod_name;

/// What is told of an object: labels beside its own, and a value.
pub(super) type Told = Vec<(Labels, f64)>;

/// A metric of objects.
pub(super) struct Family<K> {
    pub name: &'static str,
    pub help: &'static str,
    pub told: fn(&K) -> Told,
}

/// Groups of the words that `kubectl get vm` shows. What is in none is an error.
const GROUPS: [(&str, &[&str]); 4] = [
    (
        "starting",
        &[
            "Provisioning",
            "Starting",
            "WaitingForVolumeBinding",
            "WaitingForReceiver",
        ],
    ),
    ("running", &["Running"]),
    ("migrating", &["Migrating"]),
    ("non_running", &["Stopped", "Paused", "Stopping", "Terminating"]),
];

const MACHINES: [Family<VirtualMachine>; 9] = [
    Family {
        name: "kubevirt_vm_info",
        help: "What a machine is",
        told: |vm| vec![(info(vm), 1.0)],
    },
    Family {
        name: "kubevirt_vm_create_date_timestamp_seconds",
        help: "When a machine was made",
        told: |vm| {
            let born = vm.creation_timestamp();
            born.map(|born| (Vec::new(), seconds(&born.0)))
                .into_iter()
                .collect()
        },
    },
    Family {
        name: "kubevirt_vm_starting_status_last_transition_timestamp_seconds",
        help: "Since when a machine starts; 0 where it does not",
        told: |vm| since(vm, "starting"),
    },
    Family {
        name: "kubevirt_vm_running_status_last_transition_timestamp_seconds",
        help: "Since when a machine runs; 0 where it does not",
        told: |vm| since(vm, "running"),
    },
    Family {
        name: "kubevirt_vm_migrating_status_last_transition_timestamp_seconds",
        help: "Since when a machine moves; 0 where it does not",
        told: |vm| since(vm, "migrating"),
    },
    Family {
        name: "kubevirt_vm_non_running_status_last_transition_timestamp_seconds",
        help: "Since when a machine is stopped or paused; 0 where it is not",
        told: |vm| since(vm, "non_running"),
    },
    Family {
        name: "kubevirt_vm_error_status_last_transition_timestamp_seconds",
        help: "Since when a machine cannot run; 0 where it can",
        told: |vm| since(vm, "error"),
    },
    Family {
        name: "kubevirt_vm_resource_requests",
        help: "What a machine asks for",
        told: requests,
    },
    Family {
        name: "kubevirt_vm_resource_limits",
        help: "What a machine may have at most",
        told: |vm| {
            let resources = vm.spec.template.spec.domain.resources.as_ref();
            resources
                .map(|resources| amounts(&resources.limits, None))
                .unwrap_or_default()
        },
    },
];

const INSTANCES: [Family<VirtualMachineInstance>; 4] = [
    Family {
        name: "kubevirt_vmi_info",
        help: "What an instance is",
        told: |vmi| vec![(instance(vmi), 1.0)],
    },
    Family {
        name: "kubevirt_vmi_non_evictable",
        help: "Whether an eviction would have to move an instance that cannot be moved",
        told: |vmi| vec![(Vec::new(), f64::from(u8::from(!evictable(vmi))))],
    },
    Family {
        name: "kubevirt_vmi_status_addresses",
        help: "The addresses of an instance",
        told: addresses,
    },
    Family {
        name: "kubevirt_vmi_vnic_info",
        help: "The interfaces of an instance",
        told: interfaces,
    },
];

/// Writes all of them.
pub(super) fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    vms: &[Arc<VirtualMachine>],
    vmis: &[Arc<VirtualMachineInstance>],
) -> Result<(), fmt::Error> {
    family(encoder, &MACHINES, vms, named)?;
    family(encoder, &INSTANCES, vmis, |vmi| {
        let node = vmi.status.as_ref().and_then(|status| status.node_name.clone());
        let mut labels = vec![("node", node.unwrap_or_default())];
        labels.extend(named(vmi));
        labels
    })
}

pub(super) fn family<K>(
    encoder: &mut DescriptorEncoder<'_>,
    families: &[Family<K>],
    objects: &[Arc<K>],
    own: fn(&K) -> Labels,
) -> Result<(), fmt::Error> {
    for Family { name, help, told } in families {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for object in objects {
            for (labels, value) in told(object) {
                let mut all = own(object);
                all.extend(labels);
                ConstGauge::new(value).encode(metric.encode_family(&all)?)?;
            }
        }
    }
    Ok(())
}

fn named(object: &impl ResourceExt) -> Labels {
    vec![
        ("namespace", object.namespace().unwrap_or_default()),
        ("name", object.name_any()),
    ]
}

pub(super) fn seconds(at: &k8s_openapi::jiff::Timestamp) -> f64 {
    at.as_second() as f64
}

/// Prometheus counts in floating-point numbers: one of more than 2^53 may lose its last digit.
fn number(value: u64) -> f64 {
    value as f64
}

/// What people say of a machine's purpose in its annotations.
fn purpose(annotations: Option<&BTreeMap<String, String>>) -> Labels {
    let said = |key: &str| {
        annotations
            .and_then(|all| all.get(key))
            .cloned()
            .unwrap_or_default()
    };
    vec![
        ("os", said("vm.kubevirt.io/os")),
        ("workload", said("vm.kubevirt.io/workload")),
        ("flavor", said("vm.kubevirt.io/flavor")),
    ]
}

fn word(vm: &VirtualMachine) -> &str {
    let status = vm.status.as_ref();
    status
        .and_then(|status| status.printable_status.as_deref())
        .unwrap_or("Unknown")
}

fn group(word: &str) -> &'static str {
    let mut groups = GROUPS.iter();
    groups
        .find(|(_, words)| words.contains(&word))
        .map_or("error", |(group, _)| group)
}

fn info(vm: &VirtualMachine) -> Labels {
    let template = &vm.spec.template;
    let mut labels = purpose(template.metadata.as_ref().and_then(|m| m.annotations.as_ref()));
    let machine = template.spec.domain.machine.as_ref();
    let named = |matcher: &Option<nacelle_api::vm::InstancetypeMatcher>| {
        matcher
            .as_ref()
            .and_then(|matcher| matcher.name.clone())
            .unwrap_or_default()
    };
    labels.extend([
        (
            "machine_type",
            machine.map(|machine| machine.type_.clone()).unwrap_or_default(),
        ),
        ("instance_type", named(&vm.spec.instancetype)),
        ("preference", named(&vm.spec.preference)),
        ("status", word(vm).to_lowercase()),
        ("status_group", group(word(vm)).to_owned()),
    ]);
    labels
}

/// Since when a machine is in a group: when the last of its conditions changed.
fn since(vm: &VirtualMachine, of: &str) -> Told {
    let conditions = vm.status.as_ref().map(|status| &status.conditions);
    let known = conditions
        .into_iter()
        .flatten()
        .filter(|condition| ["Ready", "Failure", "Paused"].contains(&condition.type_.as_str()));
    let last = known.filter_map(|condition| condition.last_transition_time.as_ref());
    let at = last.map(|at| seconds(&at.0)).fold(0.0, f64::max);
    vec![(Vec::new(), if group(word(vm)) == of { at } else { 0.0 })]
}

/// Amounts of processors and memory.
fn amounts(resources: &BTreeMap<String, Quantity>, source: Option<&str>) -> Told {
    let each = resources.iter().filter_map(|(name, amount)| {
        let (unit, value) = match name.as_str() {
            "cpu" => ("cores", number(quantity::millis(amount).ok()?) / 1e3),
            "memory" => ("bytes", number(quantity::whole(amount).ok()?)),
            _ => return None,
        };
        let mut labels = vec![("resource", name.clone()), ("unit", unit.to_owned())];
        labels.extend(source.map(|source| ("source", source.to_owned())));
        Some((labels, value))
    });
    each.collect()
}

fn requests(vm: &VirtualMachine) -> Told {
    let domain = &vm.spec.template.spec.domain;
    let resources = domain.resources.as_ref();
    let mut told = resources
        .map(|resources| amounts(&resources.requests, Some("requests")))
        .unwrap_or_default();
    let guest = domain.memory.as_ref().and_then(|memory| memory.guest.as_ref());
    if let Some(bytes) = guest.and_then(|guest| quantity::whole(guest).ok()) {
        let labels = [("resource", "memory"), ("unit", "bytes"), ("source", "domain")];
        told.push((
            labels.map(|(key, value)| (key, value.to_owned())).into(),
            number(bytes),
        ));
    }
    if let Some(cpu) = &domain.cpu {
        for (unit, count) in [
            ("cores", cpu.cores),
            ("sockets", cpu.sockets),
            ("threads", cpu.threads),
        ] {
            if let Some(count) = count {
                let labels = [("resource", "cpu"), ("unit", unit), ("source", "domain")];
                let labels = labels.map(|(key, value)| (key, value.to_owned()));
                told.push((labels.into(), f64::from(count)));
            }
        }
    }
    told
}

fn evictable(vmi: &VirtualMachineInstance) -> bool {
    let moves = matches!(vmi.spec.eviction_strategy.as_deref(), Some("LiveMigrate"));
    let status = vmi.status.as_ref();
    !moves || status.is_some_and(|status| conditions::is_true(&status.conditions, "LiveMigratable"))
}

fn instance(vmi: &VirtualMachineInstance) -> Labels {
    let annotations = vmi.annotations();
    let mut labels = purpose(Some(annotations));
    let one_of = |keys: [&str; 2]| {
        let mut found = keys.iter().filter_map(|key| annotations.get(*key));
        found.next().cloned().unwrap_or_default()
    };
    let status = vmi.status.clone().unwrap_or_default();
    let os = serde_json::to_value(&status.guest_os_info).unwrap_or_default();
    let of_os = |field: &str| {
        os.get(field)
            .and_then(|v| v.as_str())
            .unwrap_or_default()
            .to_owned()
    };
    let ends = matches!(status.phase.as_deref(), Some("Running"));
    labels.extend([
        ("phase", status.phase.clone().unwrap_or_default().to_lowercase()),
        (
            "instance_type",
            one_of([
                "kubevirt.io/instancetype-name",
                "kubevirt.io/cluster-instancetype-name",
            ]),
        ),
        (
            "preference",
            one_of([
                "kubevirt.io/preference-name",
                "kubevirt.io/cluster-preference-name",
            ]),
        ),
        ("guest_os_kernel_release", of_os("kernelRelease")),
        (
            "guest_os_machine",
            status.machine.map(|machine| machine.type_).unwrap_or_default(),
        ),
        ("guest_os_arch", of_os("machine")),
        ("guest_os_name", of_os("name")),
        ("guest_os_version_id", of_os("versionId")),
        ("evictable", evictable(vmi).to_string()),
        ("outdated", "false".to_owned()),
        ("vmi_pod", if ends { pod_name(vmi) } else { String::new() }),
    ]);
    labels
}

fn addresses(vmi: &VirtualMachineInstance) -> Told {
    let status = vmi.status.iter();
    let each = status.flat_map(|status| &status.interfaces).map(|interface| {
        let address = interface.ip_address.clone().unwrap_or_default();
        let type_ = if address.is_empty() {
            "SystemInterface"
        } else {
            "ExternalInterface"
        };
        let labels = vec![
            ("vnic_name", interface.name.clone().unwrap_or_default()),
            (
                "interface_name",
                interface.interface_name.clone().unwrap_or_default(),
            ),
            ("address", address),
            ("type", type_.to_owned()),
        ];
        (labels, 1.0)
    });
    each.collect()
}

fn interfaces(vmi: &VirtualMachineInstance) -> Told {
    let networks = &vmi.spec.networks;
    let each = vmi.spec.domain.devices.interfaces.iter().filter_map(|interface| {
        let network = networks.iter().find(|network| network.name == interface.name)?;
        let network = match &network.multus {
            Some(multus) => multus.network_name.clone(),
            None => "pod networking".to_owned(),
        };
        let labels = vec![
            ("vnic_name", interface.name.clone()),
            ("binding_type", "core".to_owned()),
            ("network", network),
            ("binding_name", binding(interface).to_owned()),
            (
                "model",
                interface.model.clone().unwrap_or_else(|| "virtio".to_owned()),
            ),
        ];
        Some((labels, 1.0))
    });
    each.collect()
}

fn binding(interface: &Interface) -> &'static str {
    match (&interface.masquerade, &interface.bridge) {
        (Some(_), _) => "masquerade",
        (_, Some(_)) => "bridge",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    use super::*;

    #[derive(Debug)]
    struct Some_(Vec<Arc<VirtualMachine>>, Vec<Arc<VirtualMachineInstance>>);

    impl Collector for Some_ {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
            encode(&mut encoder, &self.0, &self.1)
        }
    }

    fn text_of(vm: &str, vmi: &str) -> String {
        let mut registry = Registry::default();
        let vm: VirtualMachine = serde_saphyr::from_str(vm).unwrap();
        let vmi: VirtualMachineInstance = serde_saphyr::from_str(vmi).unwrap();
        registry.register_collector(Box::new(Some_(vec![Arc::new(vm)], vec![Arc::new(vmi)])));
        let mut out = String::new();
        text::encode(&mut out, &registry).unwrap();
        out
    }

    #[test]
    fn machines_and_instances_are_told_under_the_names_that_dashboards_look_for() {
        let text = text_of(
            "
metadata: {name: a, namespace: n, creationTimestamp: '2026-01-01T00:00:00Z'}
spec:
  instancetype: {name: u1.small}
  template:
    metadata: {annotations: {vm.kubevirt.io/os: debian12}}
    spec:
      domain: {cpu: {cores: 2}, memory: {guest: 64Mi}, machine: {type: q35}, resources: {requests: {cpu: 500m}}, devices: {}}
status:
  printableStatus: Running
  conditions: [{type: Ready, status: 'True', lastTransitionTime: '2026-01-01T00:01:00Z'}]
",
            "
metadata: {name: a, namespace: n, uid: u, annotations: {kubevirt.io/cluster-instancetype-name: u1.small}}
spec: {evictionStrategy: LiveMigrate, domain: {devices: {interfaces: [{name: default, masquerade: {}}]}}, networks: [{name: default, pod: {}}]}
status:
  phase: Running
  nodeName: node1
  guestOSInfo: {name: Debian GNU/Linux, versionId: '12'}
  interfaces: [{name: default, ipAddress: 10.244.1.7}]
",
        );
        for line in [
            r#"kubevirt_vm_info{namespace="n",name="a",os="debian12",workload="",flavor="",machine_type="q35",instance_type="u1.small",preference="",status="running",status_group="running"} 1.0"#,
            r#"kubevirt_vm_create_date_timestamp_seconds{namespace="n",name="a"} 1767225600.0"#,
            r#"kubevirt_vm_running_status_last_transition_timestamp_seconds{namespace="n",name="a"} 1767225660.0"#,
            r#"kubevirt_vm_error_status_last_transition_timestamp_seconds{namespace="n",name="a"} 0.0"#,
            r#"kubevirt_vm_resource_requests{namespace="n",name="a",resource="cpu",unit="cores",source="requests"} 0.5"#,
            r#"kubevirt_vm_resource_requests{namespace="n",name="a",resource="memory",unit="bytes",source="domain"} 67108864.0"#,
            r#"kubevirt_vmi_non_evictable{node="node1",namespace="n",name="a"} 1.0"#,
            r#"kubevirt_vmi_status_addresses{node="node1",namespace="n",name="a",vnic_name="default",interface_name="",address="10.244.1.7",type="ExternalInterface"} 1.0"#,
            r#"binding_name="masquerade""#,
            r#"phase="running",instance_type="u1.small""#,
            r#"guest_os_name="Debian GNU/Linux",guest_os_version_id="12""#,
        ] {
            assert!(text.contains(line), "not {line} in {text}");
        }
    }

    #[test]
    fn a_word_that_nobody_foresaw_is_an_error() {
        assert_eq!(group("ErrorPvcNotFound"), "error");
        assert_eq!(group("Paused"), "non_running");
    }
}
