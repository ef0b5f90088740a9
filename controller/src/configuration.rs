//! Settings of the KubeVirt object that have an effect, and the names of those that have none. Pure.

use std::collections::{BTreeMap, BTreeSet};

use log::LevelFilter;
use nacelle_api::cpu::{HOST_MODELS, models};
use nacelle_api::kubevirt::KubeVirtSpec;
use serde_json::Value;

use crate::migration::settings::Settings;

/// What an administrator set, with KubeVirt's defaults where nothing is set.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration {
    /// `imagePullPolicy`: when the launcher's image is pulled, if not as this program was told.
    pub image_pull_policy: Option<String>,
    /// `workloads.nodePlacement.nodeSelector`: labels of nodes that machines may run on.
    pub node_selector: BTreeMap<String, String>,
    /// `developerConfiguration.cpuAllocationRatio`: vCPUs for each CPU that is requested for machines that request none.
    pub cpu_allocation_ratio: u64,
    /// `developerConfiguration.memoryOvercommit`: guest memory in percent of what is requested for it.
    pub memory_overcommit: u64,
    /// `additionalGuestMemoryOverheadRatio`: what our overhead is multiplied by.
    pub overhead_ratio: f64,
    /// `machineType`, `architectureConfiguration.amd64.machineType`.
    pub machine_type: Option<String>,
    /// `cpuModel`.
    pub cpu_model: Option<String>,
    /// `cpuBaseline` is `Cluster`: `host-model` is what every node has.
    pub cpu_baseline: bool,
    /// `obsoleteCPUModels`: those with which no machine starts.
    pub obsolete_cpu_models: BTreeSet<String>,
    /// `evictionStrategy`.
    pub eviction_strategy: Option<String>,
    /// `network.defaultNetworkInterface` is `masquerade`, not `bridge`.
    pub masquerade: bool,
    /// `virtualMachineOptions.disableSerialConsoleLog`.
    pub no_serial_console_log: bool,
    /// `virtualMachineOptions.disableFreePageReporting`.
    pub no_free_page_reporting: bool,
    /// `developerConfiguration.logVerbosity.virtAPI` and `virtController`: what this program says, if not as it was told.
    pub log: Option<LevelFilter>,
    /// `developerConfiguration.logVerbosity.virtLauncher`: what launchers say.
    pub launcher_log: Option<LevelFilter>,
    /// `migrations`: how machines move.
    pub migrations: Settings,
    /// Paths of what is set and has no effect.
    pub ignored: Vec<String>,
}

impl Default for Configuration {
    fn default() -> Self {
        Configuration {
            image_pull_policy: None,
            node_selector: BTreeMap::new(),
            cpu_allocation_ratio: 10,
            memory_overcommit: 100,
            overhead_ratio: 1.0,
            machine_type: None,
            cpu_model: None,
            cpu_baseline: false,
            obsolete_cpu_models: BTreeSet::new(),
            eviction_strategy: None,
            masquerade: false,
            no_serial_console_log: false,
            no_free_page_reporting: false,
            log: None,
            launcher_log: None,
            migrations: Settings::default(),
            ignored: Vec::new(),
        }
    }
}

/// Objects whose fields are settings of their own; every other one is a setting as a whole.
const GROUPS: [&str; 11] = [
    "spec",
    "spec.configuration",
    "spec.configuration.architectureConfiguration",
    "spec.configuration.architectureConfiguration.amd64",
    "spec.configuration.developerConfiguration",
    "spec.configuration.developerConfiguration.logVerbosity",
    "spec.configuration.migrations",
    "spec.configuration.network",
    "spec.configuration.virtualMachineOptions",
    "spec.workloads",
    "spec.workloads.nodePlacement",
];

impl Configuration {
    /// What `spec` says.
    pub fn of(spec: &KubeVirtSpec) -> Configuration {
        let mut configuration = Configuration::default();
        if let Ok(spec) = serde_json::to_value(spec) {
            configuration.visit("spec", &spec);
        }
        configuration
    }

    fn visit(&mut self, path: &str, value: &Value) {
        match value {
            Value::Object(fields) if GROUPS.contains(&path) => {
                for (name, value) in fields {
                    self.visit(&format!("{path}.{name}"), value);
                }
            }
            // It is named, and says nothing; an option of virtualMachineOptions is set by being there.
            Value::Null => {}
            Value::Object(fields) if fields.is_empty() && !path.contains(".virtualMachineOptions.") => {}
            Value::Array(list) if list.is_empty() => {}
            _ => {
                if self.take(path, value).is_none() {
                    self.ignored.push(path.to_owned());
                }
            }
        }
    }

    /// Takes a setting, if it is one that has an effect, and its value one that it can have.
    fn take(&mut self, path: &str, value: &Value) -> Option<()> {
        let one_of = |words: &[&str]| {
            let word = value.as_str().filter(|word| words.contains(word))?;
            Some(word.to_owned())
        };
        let path = path.strip_prefix("spec.")?;
        match path.strip_prefix("configuration.").unwrap_or(path) {
            "imagePullPolicy" => self.image_pull_policy = Some(one_of(&["Always", "IfNotPresent", "Never"])?),
            "workloads.nodePlacement.nodeSelector" => {
                self.node_selector = serde_json::from_value(value.clone()).ok()?;
            }
            "developerConfiguration.cpuAllocationRatio" => {
                self.cpu_allocation_ratio = value.as_u64().filter(|ratio| (1..=1000).contains(ratio))?;
            }
            "developerConfiguration.memoryOvercommit" => {
                self.memory_overcommit = value.as_u64().filter(|percent| (10..=1000).contains(percent))?;
            }
            // What they turn on is there, or refused by its own name.
            "developerConfiguration.featureGates" | "developerConfiguration.disabledFeatureGates" => {}
            "developerConfiguration.logVerbosity.virtAPI"
            | "developerConfiguration.logVerbosity.virtController" => {
                self.log = self.log.max(Some(level(value)?));
            }
            "developerConfiguration.logVerbosity.virtLauncher" => self.launcher_log = Some(level(value)?),
            "additionalGuestMemoryOverheadRatio" => {
                let ratio: f64 = value.as_str()?.parse().ok()?;
                self.overhead_ratio = Some(ratio).filter(|ratio| (1.0..=100.0).contains(ratio))?;
            }
            "machineType" | "architectureConfiguration.amd64.machineType" => {
                let machine = value.as_str()?;
                let known = machine == "q35" || machine.starts_with("pc-q35");
                self.machine_type = Some(known.then(|| machine.to_owned())?);
            }
            "cpuModel" => {
                let known: Vec<_> = HOST_MODELS.into_iter().chain(models()).collect();
                self.cpu_model = Some(one_of(&known)?);
            }
            "cpuBaseline" => self.cpu_baseline = one_of(&["Node", "Cluster"])? == "Cluster",
            "obsoleteCPUModels" => {
                let models: BTreeMap<String, bool> = serde_json::from_value(value.clone()).ok()?;
                let obsolete = models.into_iter().filter(|(_, obsolete)| *obsolete);
                self.obsolete_cpu_models = obsolete.map(|(model, _)| model).collect();
            }
            "evictionStrategy" => {
                self.eviction_strategy = Some(one_of(&[
                    "None",
                    "LiveMigrate",
                    "LiveMigrateIfPossible",
                    "External",
                ])?);
            }
            "network.defaultNetworkInterface" => {
                self.masquerade = one_of(&["bridge", "masquerade"])? == "masquerade";
            }
            "virtualMachineOptions.disableSerialConsoleLog" => self.no_serial_console_log = true,
            "virtualMachineOptions.disableFreePageReporting" => self.no_free_page_reporting = true,
            // What is staged is what happens here: a change counts from the next start.
            "vmRolloutStrategy" => drop(one_of(&["Stage"])?),
            path => self.migrations.set(path.strip_prefix("migrations.")?, value)?,
        }
        Some(())
    }
}

/// KubeVirt's numbers: 2 where nothing is set, 10 for everything.
fn level(value: &Value) -> Option<LevelFilter> {
    match value.as_u64()? {
        0 => Some(LevelFilter::Warn),
        1..=3 => Some(LevelFilter::Info),
        4..=6 => Some(LevelFilter::Debug),
        _ => Some(LevelFilter::Trace),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(spec: Value) -> Configuration {
        Configuration::of(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn the_object_that_everybody_has_says_nothing() {
        let classic = json!({"certificateRotateStrategy": {}, "customizeComponents": {}, "workloadUpdateStrategy": {},
            "configuration": {"developerConfiguration": {"featureGates": []}}});
        assert_eq!(of(classic), Configuration::default());
    }

    #[test]
    fn what_has_an_effect_is_taken() {
        let taken = of(json!({
            "imagePullPolicy": "Always",
            "workloads": {"nodePlacement": {"nodeSelector": {"disk": "fast"}}},
            "configuration": {
                "additionalGuestMemoryOverheadRatio": "1.5",
                "architectureConfiguration": {"amd64": {"machineType": "pc-q35-rhel9.6.0"}},
                "cpuModel": "EPYC-Rome",
                "cpuBaseline": "Cluster",
                "obsoleteCPUModels": {"Nehalem": true, "Westmere": false},
                "evictionStrategy": "External",
                "vmRolloutStrategy": "Stage",
                "network": {"defaultNetworkInterface": "masquerade"},
                "migrations": {"parallelOutboundMigrationsPerNode": 1},
                "virtualMachineOptions": {"disableSerialConsoleLog": {}, "disableFreePageReporting": {}},
                "developerConfiguration": {"featureGates": ["LiveMigration"], "cpuAllocationRatio": 4,
                    "memoryOvercommit": 150, "logVerbosity": {"virtAPI": 2, "virtController": 5, "virtLauncher": 10}},
            },
        }));
        let expected = Configuration {
            image_pull_policy: Some("Always".into()),
            node_selector: BTreeMap::from([("disk".into(), "fast".into())]),
            cpu_allocation_ratio: 4,
            memory_overcommit: 150,
            overhead_ratio: 1.5,
            machine_type: Some("pc-q35-rhel9.6.0".into()),
            cpu_model: Some("EPYC-Rome".into()),
            cpu_baseline: true,
            obsolete_cpu_models: ["Nehalem".into()].into(),
            eviction_strategy: Some("External".into()),
            masquerade: true,
            no_serial_console_log: true,
            no_free_page_reporting: true,
            log: Some(LevelFilter::Debug),
            launcher_log: Some(LevelFilter::Trace),
            migrations: Settings {
                per_node: 1,
                ..Settings::default()
            },
            ignored: Vec::new(),
        };
        assert_eq!(taken, expected);
    }

    #[test]
    fn what_has_none_is_named_and_so_is_a_value_that_cannot_be_had() {
        let table = [
            (json!({"infra": {"replicas": 3}}), "spec.infra"),
            (json!({"imagePullPolicy": "Sometimes"}), "spec.imagePullPolicy"),
            (
                json!({"configuration": {"cpuModel": "Haswell"}}),
                "spec.configuration.cpuModel",
            ),
            (
                json!({"configuration": {"cpuBaseline": "Rack"}}),
                "spec.configuration.cpuBaseline",
            ),
            (
                json!({"configuration": {"minCPUModel": "Penryn"}}),
                "spec.configuration.minCPUModel",
            ),
            (
                json!({"configuration": {"vmRolloutStrategy": "LiveUpdate"}}),
                "spec.configuration.vmRolloutStrategy",
            ),
            (
                json!({"configuration": {"developerConfiguration": {"memoryOvercommit": 0}}}),
                "spec.configuration.developerConfiguration.memoryOvercommit",
            ),
            (
                json!({"workloads": {"nodePlacement": {"tolerations": [{"operator": "Exists"}]}}}),
                "spec.workloads.nodePlacement.tolerations",
            ),
        ];
        for (spec, path) in table {
            let expected = Configuration {
                ignored: vec![path.to_owned()],
                ..Configuration::default()
            };
            assert_eq!(of(spec), expected);
        }
    }
}
