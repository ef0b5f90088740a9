//! The metrics of machines, by the names that KubeVirt gave them, and how each follows from a machine's figures.

use std::fmt;
use std::sync::Arc;

use nacelle_vmm::stats::{BalloonStats, DirectionStats, DiskStats, NetStats, OperationStats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::figures::{Figures, Migration};

/// What is told of a machine: labels beside node, namespace and name, and a value.
type Told = (Vec<(&'static str, String)>, f64);

/// A metric.
struct Family {
    name: &'static str,
    help: &'static str,
    /// A counter; its name has `_total` appended.
    counts: bool,
    told: fn(&Figures) -> Vec<Told>,
}

const fn counter(name: &'static str, help: &'static str, told: fn(&Figures) -> Vec<Told>) -> Family {
    Family {
        name,
        help,
        counts: true,
        told,
    }
}

const fn gauge(name: &'static str, help: &'static str, told: fn(&Figures) -> Vec<Told>) -> Family {
    Family {
        counts: false,
        ..counter(name, help, told)
    }
}

fn one(value: f64) -> Vec<Told> {
    vec![(Vec::new(), value)]
}

fn maybe(value: Option<f64>) -> Vec<Told> {
    value.map(one).unwrap_or_default()
}

/// What the guest says of its memory, as far as it does.
fn memory(figures: &Figures, of: fn(&BalloonStats) -> Option<u64>) -> Vec<Told> {
    maybe(figures.stats.machine.balloon.as_ref().and_then(of).map(number))
}

fn disks(figures: &Figures, of: fn(&DiskStats) -> f64) -> Vec<Told> {
    let disks = figures.stats.machine.disks.iter();
    disks
        .map(|disk| (vec![("drive", named(&disk.id, "disk-"))], of(disk)))
        .collect()
}

fn nets(figures: &Figures, of: fn(&NetStats) -> u64) -> Vec<Told> {
    let nets = figures.stats.machine.nets.iter();
    nets.map(|net| (vec![("interface", named(&net.id, "net-"))], number(of(net))))
        .collect()
}

/// What people call a device: the monitor has a prefix before it.
fn named(id: &str, prefix: &str) -> String {
    id.strip_prefix(prefix).unwrap_or(id).to_owned()
}

/// Both directions, by `type`.
fn traffic(figures: &Figures) -> Vec<Told> {
    let nets = figures.stats.machine.nets.iter();
    nets.flat_map(|net| {
        [("rx", &net.rx), ("tx", &net.tx)].map(|(type_, direction): (_, &DirectionStats)| {
            let labels = vec![("interface", named(&net.id, "net-")), ("type", type_.to_owned())];
            (labels, number(direction.bytes))
        })
    })
    .collect()
}

fn migration(figures: &Figures, of: fn(&Migration) -> u64) -> Vec<Told> {
    maybe(figures.migration.as_ref().map(of).map(number))
}

fn filesystems(figures: &Figures, of: fn(&crate::agent::Filesystem) -> u64) -> Vec<Told> {
    let each = figures.filesystems.disks.iter();
    each.map(|system| {
        let labels = vec![
            ("disk_name", system.disk_name.to_string()),
            ("mount_point", system.mount_point.to_string()),
            ("file_system_type", system.file_system_type.to_string()),
        ];
        (labels, number(of(system)))
    })
    .collect()
}

fn seconds(operations: &OperationStats) -> f64 {
    number(operations.nanoseconds) / 1e9
}

/// Prometheus counts in floating-point numbers: one of more than 2^53 may lose its last digit.
fn number(value: u64) -> f64 {
    value as f64
}

/// All of them.
const FAMILIES: [Family; 39] = [
    counter(
        "kubevirt_vmi_cpu_usage_seconds",
        "Processor time of the machine and its monitor",
        |f| one(number(f.stats.cpu_milliseconds) / 1e3),
    ),
    counter(
        "kubevirt_vmi_cpu_user_usage_seconds",
        "Processor time in user mode, the guest among it",
        |f| one(f.time.user),
    ),
    counter(
        "kubevirt_vmi_cpu_system_usage_seconds",
        "Processor time in the host's kernel",
        |f| one(f.time.system),
    ),
    counter("kubevirt_vmi_vcpu_seconds", "Time that each vCPU ran", |f| {
        let each = f.each_vcpu.iter().map(|vcpu| {
            let labels = vec![("id", vcpu.id.to_string()), ("state", "running".to_owned())];
            (labels, vcpu.running)
        });
        each.collect()
    }),
    counter(
        "kubevirt_vmi_vcpu_delay_seconds",
        "Time that each vCPU could have run, and waited for a processor",
        |f| {
            let each = f.each_vcpu.iter();
            each.filter_map(|vcpu| Some((vec![("id", vcpu.id.to_string())], vcpu.delayed?)))
                .collect()
        },
    ),
    gauge(
        "kubevirt_vmi_memory_domain_bytes",
        "Memory that the machine was given",
        |f| one(number(f.stats.machine.memory)),
    ),
    gauge(
        "kubevirt_vmi_memory_resident_bytes",
        "Memory of the host that the machine's process holds",
        |f| one(number(f.stats.resident)),
    ),
    gauge(
        "kubevirt_vmi_memory_actual_balloon_bytes",
        "Memory that the guest has, without what is in the balloon",
        |f| {
            let balloon = f.stats.machine.balloon.as_ref();
            maybe(balloon.map(|balloon| number(f.stats.machine.memory.saturating_sub(balloon.actual))))
        },
    ),
    gauge(
        "kubevirt_vmi_memory_available_bytes",
        "Memory that the guest's kernel manages",
        |f| memory(f, |balloon| balloon.total),
    ),
    gauge(
        "kubevirt_vmi_memory_usable_bytes",
        "Memory that new programs of the guest could get without swapping",
        |f| memory(f, |balloon| balloon.available),
    ),
    gauge(
        "kubevirt_vmi_memory_unused_bytes",
        "Memory that the guest uses for nothing",
        |f| memory(f, |balloon| balloon.free),
    ),
    gauge(
        "kubevirt_vmi_memory_cached_bytes",
        "Memory that holds what the guest read and can give up",
        |f| memory(f, |balloon| balloon.disk_caches),
    ),
    gauge(
        "kubevirt_vmi_memory_swap_in_traffic_bytes",
        "What the guest swapped in",
        |f| memory(f, |balloon| balloon.swap_in),
    ),
    gauge(
        "kubevirt_vmi_memory_swap_out_traffic_bytes",
        "What the guest swapped out",
        |f| memory(f, |balloon| balloon.swap_out),
    ),
    counter(
        "kubevirt_vmi_memory_pgmajfault",
        "Page faults of the guest that waited for a disk",
        |f| memory(f, |balloon| balloon.major_faults),
    ),
    counter(
        "kubevirt_vmi_memory_pgminfault",
        "Page faults of the guest that did not wait",
        |f| memory(f, |balloon| balloon.minor_faults),
    ),
    counter(
        "kubevirt_vmi_network_receive_bytes",
        "What the guest received",
        |f| nets(f, |net| net.rx.bytes),
    ),
    counter(
        "kubevirt_vmi_network_transmit_bytes",
        "What the guest sent",
        |f| nets(f, |net| net.tx.bytes),
    ),
    counter(
        "kubevirt_vmi_network_receive_packets",
        "Frames that the guest received",
        |f| nets(f, |net| net.rx.packets),
    ),
    counter(
        "kubevirt_vmi_network_transmit_packets",
        "Frames that the guest sent",
        |f| nets(f, |net| net.tx.packets),
    ),
    counter(
        "kubevirt_vmi_network_receive_packets_dropped",
        "Frames for the guest that were dropped",
        |f| nets(f, |net| net.rx.dropped),
    ),
    counter(
        "kubevirt_vmi_network_transmit_packets_dropped",
        "Frames of the guest that were dropped",
        |f| nets(f, |net| net.tx.dropped),
    ),
    counter(
        "kubevirt_vmi_network_traffic_bytes",
        "What the guest received and sent (deprecated)",
        traffic,
    ),
    counter(
        "kubevirt_vmi_storage_read_traffic_bytes",
        "What the guest read",
        |f| disks(f, |disk| number(disk.read.bytes)),
    ),
    counter(
        "kubevirt_vmi_storage_write_traffic_bytes",
        "What the guest wrote",
        |f| disks(f, |disk| number(disk.write.bytes)),
    ),
    counter("kubevirt_vmi_storage_iops_read", "Reads of the guest", |f| {
        disks(f, |disk| number(disk.read.operations))
    }),
    counter("kubevirt_vmi_storage_iops_write", "Writes of the guest", |f| {
        disks(f, |disk| number(disk.write.operations))
    }),
    counter(
        "kubevirt_vmi_storage_read_times_seconds",
        "Time that reads took, added up",
        |f| disks(f, |disk| seconds(&disk.read)),
    ),
    counter(
        "kubevirt_vmi_storage_write_times_seconds",
        "Time that writes took, added up",
        |f| disks(f, |disk| seconds(&disk.write)),
    ),
    counter(
        "kubevirt_vmi_storage_flush_requests",
        "Flushes of the guest",
        |f| disks(f, |disk| number(disk.flush.operations)),
    ),
    counter(
        "kubevirt_vmi_storage_flush_times_seconds",
        "Time that flushes took, added up",
        |f| disks(f, |disk| seconds(&disk.flush)),
    ),
    gauge(
        "kubevirt_vmi_filesystem_capacity_bytes",
        "Size of a file system of the guest, as its agent says",
        |f| filesystems(f, |system| system.total_bytes),
    ),
    gauge(
        "kubevirt_vmi_filesystem_used_bytes",
        "What is used of a file system of the guest, as its agent says",
        |f| filesystems(f, |system| system.used_bytes),
    ),
    counter(
        "kubevirt_vmi_migration_data_bytes",
        "Guest memory of a machine that moves",
        |f| migration(f, |moves| moves.total),
    ),
    gauge(
        "kubevirt_vmi_migration_data_processed_bytes",
        "What went over the network of a machine that moves, after each round",
        |f| migration(f, |moves| moves.processed),
    ),
    gauge(
        "kubevirt_vmi_migration_data_remaining_bytes",
        "What a machine that moves has yet to send in this round",
        |f| migration(f, |moves| moves.remaining),
    ),
    gauge(
        "kubevirt_vmi_migration_dirty_memory_rate_bytes",
        "What the guest of a machine that moves writes in a second",
        |f| migration(f, |moves| moves.dirty_rate),
    ),
    gauge(
        "kubevirt_vmi_migration_memory_transfer_rate_bytes",
        "What a machine that moves sends in a second",
        |f| migration(f, |moves| moves.rate),
    ),
    counter(
        "nacelle_vmi_storage_failed",
        "Reads, writes and flushes of the guest that failed",
        |f| {
            disks(f, |disk| {
                number(disk.read.errors + disk.write.errors + disk.flush.errors)
            })
        },
    ),
];

/// The machines of a node.
#[derive(Debug)]
struct Machines {
    node: String,
    figures: Vec<Figures>,
}

impl Collector for Machines {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for Family {
            name,
            help,
            counts,
            told,
        } in &FAMILIES
        {
            let type_ = if *counts {
                MetricType::Counter
            } else {
                MetricType::Gauge
            };
            let mut metric = encoder.encode_descriptor(name, help, None, type_)?;
            for figures in &self.figures {
                for (labels, value) in told(figures) {
                    let mut all = vec![
                        ("node", self.node.clone()),
                        ("namespace", figures.namespace.clone()),
                        ("name", figures.name.clone()),
                    ];
                    all.extend(labels);
                    let series = metric.encode_family(&all)?;
                    match counts {
                        true => ConstCounter::new(value).encode(series)?,
                        false => ConstGauge::new(value).encode(series)?,
                    }
                }
            }
        }
        Ok(())
    }
}

/// The text for Prometheus.
pub(super) fn text(node: &str, figures: Vec<Figures>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Arc::new(Machines {
        node: node.to_owned(),
        figures,
    })));
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = text::encode(&mut out, &registry);
    out
}

#[cfg(test)]
pub(super) mod tests {
    use nacelle_vmm::Stats;

    use super::*;
    use crate::figures::{Time, Vcpu};
    use crate::http::api;

    pub fn figures(name: &str) -> Figures {
        let operations = OperationStats {
            operations: 3,
            bytes: 4096,
            nanoseconds: 1_500_000_000,
            errors: 1,
        };
        Figures {
            namespace: "n".into(),
            name: name.into(),
            uid: "u".into(),
            stats: api::Stats {
                machine: Stats {
                    memory: 1 << 20,
                    vcpus: 1,
                    balloon: Some(BalloonStats {
                        actual: 1 << 19,
                        total: Some(900),
                        ..BalloonStats::default()
                    }),
                    disks: vec![DiskStats {
                        id: "disk-root".into(),
                        read: operations,
                        ..DiskStats::default()
                    }],
                    nets: vec![NetStats {
                        id: "net-default".into(),
                        tx: DirectionStats {
                            packets: 2,
                            bytes: 84,
                            dropped: 0,
                        },
                        ..NetStats::default()
                    }],
                },
                resident: 5000,
                cpu_milliseconds: 2500,
            },
            time: Time {
                user: 2.0,
                system: 0.5,
            },
            each_vcpu: vec![Vcpu {
                id: 0,
                running: 1.25,
                delayed: Some(0.5),
            }],
            filesystems: crate::agent::FsInfo::default(),
            migration: Some(Migration {
                total: 1 << 20,
                processed: 4096,
                remaining: 512,
                dirty_rate: 1000,
                rate: 2000,
            }),
        }
    }

    #[test]
    fn each_figure_has_the_name_that_dashboards_look_for() {
        let text = text("node1", vec![figures("a\"b")]);
        let labels = r#"node="node1",namespace="n",name="a\"b""#;
        for line in [
            format!("kubevirt_vmi_cpu_usage_seconds_total{{{labels}}} 2.5"),
            format!(r#"kubevirt_vmi_vcpu_seconds_total{{{labels},id="0",state="running"}} 1.25"#),
            format!("kubevirt_vmi_memory_actual_balloon_bytes{{{labels}}} 524288.0"),
            format!("kubevirt_vmi_memory_available_bytes{{{labels}}} 900.0"),
            format!("kubevirt_vmi_migration_data_bytes_total{{{labels}}} 1048576.0"),
            format!("kubevirt_vmi_migration_data_remaining_bytes{{{labels}}} 512.0"),
            format!("kubevirt_vmi_migration_memory_transfer_rate_bytes{{{labels}}} 2000.0"),
            format!(r#"kubevirt_vmi_storage_iops_read_total{{{labels},drive="root"}} 3.0"#),
            format!(r#"kubevirt_vmi_storage_read_times_seconds_total{{{labels},drive="root"}} 1.5"#),
            format!(r#"kubevirt_vmi_network_transmit_bytes_total{{{labels},interface="default"}} 84.0"#),
            format!(
                r#"kubevirt_vmi_network_traffic_bytes_total{{{labels},interface="default",type="tx"}} 84.0"#
            ),
        ] {
            assert!(text.contains(&line), "not {line} in {text}");
        }
        // What the guest has not said is not told.
        assert!(!text.contains("kubevirt_vmi_memory_usable_bytes{"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
