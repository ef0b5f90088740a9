//! The metrics of migrations, by the names that KubeVirt gave them. Pure.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use nacelle_api::VirtualMachineInstanceMigration;
use nacelle_api::migration::MigrationState;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Labels;
use super::families::{Family, Told, family, seconds};
use crate::migration::plan::{is_over, phase_of};

/// How many are in which phases.
const COUNTS: [(&str, &str, &[&str]); 3] = [
    (
        "kubevirt_vmi_migrations_in_pending_phase",
        "Migrations that wait",
        &["", "Pending"],
    ),
    (
        "kubevirt_vmi_migrations_in_scheduling_phase",
        "Migrations whose target pod does not run yet",
        &["Scheduling"],
    ),
    (
        "kubevirt_vmi_migrations_in_running_phase",
        "Migrations whose target pod runs",
        &["Scheduled", "PreparingTarget", "TargetReady", "Running"],
    ),
];

/// Those that carry the names that KubeVirt's alerts look for.
const ENDS: [Family<VirtualMachineInstanceMigration>; 2] = [
    Family {
        name: "kubevirt_vmi_migration_succeeded",
        help: "Migrations that succeeded",
        told: |migration| in_phase(migration, "Succeeded"),
    },
    Family {
        name: "kubevirt_vmi_migration_failed",
        help: "Migrations that came to nothing",
        told: |migration| in_phase(migration, "Failed"),
    },
];

const TIMES: [Family<VirtualMachineInstanceMigration>; 2] = [
    Family {
        name: "kubevirt_vmi_migration_start_time_seconds",
        help: "When the source began to send",
        told: |migration| at(migration, Vec::new(), |state| state.start_timestamp.as_ref()),
    },
    Family {
        name: "kubevirt_vmi_migration_end_time_seconds",
        help: "When a migration was over",
        told: |migration| match is_over(migration) {
            true => {
                let status = vec![("status", phase_of(migration).to_owned())];
                at(migration, status, |state| state.end_timestamp.as_ref())
            }
            false => Vec::new(),
        },
    },
];

fn in_phase(migration: &VirtualMachineInstanceMigration, phase: &str) -> Told {
    match phase_of(migration) == phase {
        true => vec![(Vec::new(), 1.0)],
        false => Vec::new(),
    }
}

fn at(
    migration: &VirtualMachineInstanceMigration,
    labels: Labels,
    of: fn(&MigrationState) -> Option<&Time>,
) -> Told {
    let state = migration
        .status
        .as_ref()
        .and_then(|status| status.migration_state.as_ref());
    let at = state.and_then(of).map(|at| seconds(&at.0));
    at.map(|at| (labels, at)).into_iter().collect()
}

fn vmi(migration: &VirtualMachineInstanceMigration) -> String {
    migration.spec.vmi_name.clone().unwrap_or_default()
}

/// Writes all of them.
pub(super) fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    migrations: &[Arc<VirtualMachineInstanceMigration>],
) -> Result<(), fmt::Error> {
    for (name, help, phases) in COUNTS {
        let count = migrations
            .iter()
            .filter(|migration| phases.contains(&phase_of(migration)))
            .count();
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(count as f64).encode(metric)?;
    }
    family(encoder, &ENDS, migrations, |migration| {
        vec![
            ("vmi", vmi(migration)),
            ("vmim", migration.name_any()),
            ("namespace", migration.namespace().unwrap_or_default()),
        ]
    })?;
    family(encoder, &TIMES, migrations, |migration| {
        let state = migration
            .status
            .as_ref()
            .and_then(|status| status.migration_state.as_ref());
        vec![
            (
                "node",
                state
                    .and_then(|state| state.source_node.clone())
                    .unwrap_or_default(),
            ),
            ("namespace", migration.namespace().unwrap_or_default()),
            ("name", vmi(migration)),
            ("migration_name", migration.name_any()),
        ]
    })
}

#[cfg(test)]
mod tests {
    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    use super::*;

    #[derive(Debug)]
    struct All(Vec<Arc<VirtualMachineInstanceMigration>>);

    impl Collector for All {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
            encode(&mut encoder, &self.0)
        }
    }

    #[test]
    fn migrations_are_counted_by_phase_and_told_when_they_began_and_ended() {
        let migration = |name: &str, status: &str| {
            let text = format!(
                "{{metadata: {{name: {name}, namespace: n}}, spec: {{vmiName: a}}, status: {{{status}}}}}"
            );
            Arc::new(serde_saphyr::from_str::<VirtualMachineInstanceMigration>(&text).unwrap())
        };
        let times = "sourceNode: node1, startTimestamp: '2026-01-01T00:00:00Z'";
        let over = format!("{{{times}, endTimestamp: '2026-01-01T00:00:02Z'}}");
        let all = All(vec![
            migration("waits", "phase: Pending"),
            migration("new", ""),
            migration("sends", &format!("phase: Running, migrationState: {{{times}}}")),
            migration("done", &format!("phase: Succeeded, migrationState: {over}")),
            migration("lost", "phase: Failed"),
        ]);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(all));
        let mut out = String::new();
        text::encode(&mut out, &registry).unwrap();
        let lines: Vec<_> = out.lines().filter(|line| !line.starts_with('#')).collect();
        let expected = [
            "kubevirt_vmi_migrations_in_pending_phase 2.0",
            "kubevirt_vmi_migrations_in_scheduling_phase 0.0",
            "kubevirt_vmi_migrations_in_running_phase 1.0",
            r#"kubevirt_vmi_migration_succeeded{vmi="a",vmim="done",namespace="n"} 1.0"#,
            r#"kubevirt_vmi_migration_failed{vmi="a",vmim="lost",namespace="n"} 1.0"#,
            r#"kubevirt_vmi_migration_start_time_seconds{node="node1",namespace="n",name="a",migration_name="sends"} 1767225600.0"#,
            r#"kubevirt_vmi_migration_start_time_seconds{node="node1",namespace="n",name="a",migration_name="done"} 1767225600.0"#,
            r#"kubevirt_vmi_migration_end_time_seconds{node="node1",namespace="n",name="a",migration_name="done",status="Succeeded"} 1767225602.0"#,
        ];
        assert_eq!(lines, expected);
    }
}
