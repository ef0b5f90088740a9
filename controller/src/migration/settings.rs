//! How migrations go: the KubeVirt object's `configuration.migrations`, and MigrationPolicies over it. Pure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use nacelle_api::migration::MigrationPolicySpec;
use nacelle_api::{Freeform, quantity};
use serde_json::{Value, json};

/// What counts, with KubeVirt's defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Migrations that go on at once in the cluster.
    pub per_cluster: usize,
    /// Those of them that leave one node.
    pub per_node: usize,
    /// Most bytes a second; 0 is any number.
    pub bandwidth: u64,
    /// Seconds that each GiB may take.
    pub timeout_per_gib: u64,
    /// Whether the guest is slowed down that writes faster than can be sent.
    pub auto_converge: bool,
    /// Whether its memory may follow it when its time is over.
    pub post_copy: bool,
    /// Whether it may stand still for as long as it takes when its time is over.
    pub disruption: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            per_cluster: 5,
            per_node: 2,
            bandwidth: 0,
            timeout_per_gib: 150,
            auto_converge: false,
            post_copy: false,
            disruption: false,
        }
    }
}

impl Settings {
    /// Takes a setting by the name that it has in both objects, if its value is one that it can have.
    pub fn set(&mut self, name: &str, value: &Value) -> Option<()> {
        let count = || {
            let count = value.as_u64().filter(|count| *count > 0)?;
            usize::try_from(count).ok()
        };
        match name {
            "parallelMigrationsPerCluster" => self.per_cluster = count()?,
            "parallelOutboundMigrationsPerNode" => self.per_node = count()?,
            "bandwidthPerMigration" => {
                let text = value
                    .as_str()
                    .map(str::to_owned)
                    .or_else(|| Some(value.as_u64()?.to_string()))?;
                self.bandwidth = quantity::whole(&Quantity(text)).ok()?;
            }
            "completionTimeoutPerGiB" => {
                self.timeout_per_gib = value.as_u64().filter(|seconds| *seconds > 0)?
            }
            "allowAutoConverge" => self.auto_converge = value.as_bool()?,
            "allowPostCopy" => self.post_copy = value.as_bool()?,
            "allowWorkloadDisruption" => self.disruption = value.as_bool()?,
            _ => return None,
        }
        Some(())
    }

    /// The same under a policy.
    pub fn under(mut self, policy: &MigrationPolicySpec) -> Settings {
        for (name, value) in [
            ("allowAutoConverge", policy.allow_auto_converge.map(Value::from)),
            (
                "bandwidthPerMigration",
                policy
                    .bandwidth_per_migration
                    .as_ref()
                    .map(|quantity| json!(quantity.0)),
            ),
            (
                "completionTimeoutPerGiB",
                policy.completion_timeout_per_gib.map(Value::from),
            ),
            ("allowPostCopy", policy.allow_post_copy.map(Value::from)),
            (
                "allowWorkloadDisruption",
                policy.allow_workload_disruption.map(Value::from),
            ),
        ] {
            if let Some(value) = value {
                let _ = self.set(name, &value);
            }
        }
        self
    }

    /// As `status.migrationState.migrationConfiguration` has it.
    pub fn shown(&self) -> Freeform {
        let shown = json!({
            "parallelMigrationsPerCluster": self.per_cluster,
            "parallelOutboundMigrationsPerNode": self.per_node,
            "bandwidthPerMigration": self.bandwidth.to_string(),
            "completionTimeoutPerGiB": self.timeout_per_gib,
            "allowAutoConverge": self.auto_converge,
            "allowPostCopy": self.post_copy,
            "allowWorkloadDisruption": self.disruption,
        });
        serde_json::from_value(shown).unwrap_or_default()
    }

    /// What the source's launcher is asked for (`launcher/openapi.json`, `Migrate`), for so many bytes.
    pub fn wanted(&self, to: &str, bytes: u64) -> Value {
        let gib = bytes.div_ceil(1 << 30).max(1);
        let on_timeout = match (self.post_copy, self.disruption) {
            (true, _) => "postCopy",
            (false, true) => "finish",
            (false, false) => "cancel",
        };
        json!({
            "to": to,
            "timeoutMilliseconds": gib.saturating_mul(self.timeout_per_gib).saturating_mul(1000),
            "onTimeout": on_timeout,
            "autoConverge": self.auto_converge,
            "bandwidth": (self.bandwidth > 0).then_some(self.bandwidth),
            "streams": 2,
        })
    }
}

/// The policy that counts for an instance: whose labels all match, most of them, and then by its name.
pub fn policy<'a>(
    policies: &'a [(String, MigrationPolicySpec)],
    instance: &BTreeMap<String, String>,
    namespace: &BTreeMap<String, String>,
) -> Option<&'a (String, MigrationPolicySpec)> {
    let matches = |wanted: &BTreeMap<String, String>, has: &BTreeMap<String, String>| {
        wanted.iter().all(|(label, value)| has.get(label) == Some(value))
    };
    let fits = policies.iter().filter_map(|policy| {
        let selectors = policy.1.selectors.as_ref()?;
        let (of_instance, of_namespace) = (
            &selectors.virtual_machine_instance_selector,
            &selectors.namespace_selector,
        );
        let labels = of_instance.len() + of_namespace.len();
        let fits = labels > 0 && matches(of_instance, instance) && matches(of_namespace, namespace);
        fits.then_some((labels, policy))
    });
    let best = fits.min_by_key(|(labels, (name, _))| (std::cmp::Reverse(*labels), name.clone()));
    best.map(|(_, policy)| policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_with_the_most_labels_that_fit_counts() {
        let labels = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect::<BTreeMap<_, _>>()
        };
        let of = |name: &str, text: &str| (name.to_owned(), serde_saphyr::from_str(text).unwrap());
        let policies = [
            of("everything", "{allowPostCopy: true}"),
            of(
                "gold",
                "{selectors: {virtualMachineInstanceSelector: {tier: gold}}, bandwidthPerMigration: 64Mi}",
            ),
            of(
                "team",
                "{selectors: {namespaceSelector: {team: a}, virtualMachineInstanceSelector: {tier: gold}}}",
            ),
            of(
                "zeta",
                "{selectors: {namespaceSelector: {team: a}, virtualMachineInstanceSelector: {tier: gold}}}",
            ),
        ];
        let name = |instance: &[_], namespace: &[_]| {
            policy(&policies, &labels(instance), &labels(namespace)).map(|(name, _)| name.as_str())
        };
        assert_eq!(name(&[("tier", "gold")], &[]), Some("gold"));
        assert_eq!(
            name(&[("tier", "gold"), ("app", "x")], &[("team", "a")]),
            Some("team")
        );
        assert_eq!(name(&[("tier", "tin")], &[("team", "a")]), None);
        let settings = Settings::default().under(&policies[1].1);
        assert_eq!(settings.bandwidth, 64 << 20);
        assert_eq!(
            settings.wanted("a:1", (2 << 30) + 1)["timeoutMilliseconds"],
            450_000
        );
    }

    #[test]
    fn what_follows_when_time_is_over_is_what_the_settings_allow() {
        let mut settings = Settings::default();
        for (name, value, word) in [
            ("allowAutoConverge", true, "cancel"),
            ("allowWorkloadDisruption", true, "finish"),
            ("allowPostCopy", true, "postCopy"),
            ("allowPostCopy", false, "finish"),
        ] {
            settings.set(name, &json!(value)).unwrap();
            assert_eq!(settings.wanted("a:1", 1)["onTimeout"], word, "{name}");
        }
        assert_eq!(settings.set("parallelMigrationsPerCluster", &json!(0)), None);
        assert_eq!(settings.set("network", &json!("n")), None);
    }
}
