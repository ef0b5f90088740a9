//! Which fields of a valid spec this version of Nacelle honours.
//!
//! Every struct is taken apart field by field, without `..`: a field that is added to the types does not
//! compile until somebody has said here what becomes of it. A field is honoured, refused, or has no effect and
//! says so; none is passed over in silence.

mod devices;

use crate::cpu::{HOST_MODELS, models};
use crate::credentials::AccessCredential;
use crate::disk::Disk;
use crate::domain::{Cpu, CpuFeature, DomainSpec, Memory, ResourceRequirements};
use crate::features::{
    Clock, FeatureApic, FeatureHyperv, FeatureState, Features, RtcTimer, TickTimer, Timer,
};
use crate::firmware::Firmware;
use crate::network::Network;
use crate::path::FieldPath;
use crate::validate::{Cause, CauseKind};
use crate::vmi::VirtualMachineInstanceSpec;
use crate::volume::Volume;

/// What becomes of the fields that are set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Support {
    /// Fields that would have to be honoured and are not: the machine is not to be started.
    pub unsupported: Vec<Cause>,
    /// Fields that are accepted and have no effect, one sentence each.
    pub warnings: Vec<String>,
    /// Fields that mean something in a cluster only, by their names.
    pub cluster_only: Vec<String>,
}

impl Support {
    /// One line for who runs a machine outside a cluster, if there is something to say.
    pub fn note(&self) -> Option<String> {
        let fields = self.cluster_only.join(", ");
        (!fields.is_empty()).then(|| format!("these fields matter only in a cluster: {fields}"))
    }

    fn refuse(&mut self, path: &FieldPath, name: &str, set: bool) {
        if set {
            let field = path.field(name);
            self.add(
                field.clone(),
                format!("{field} is not supported by this version of Nacelle"),
            );
        }
    }

    /// Refuses a value other than the ones that are served, and says what to write.
    fn refuse_value(
        &mut self,
        path: &FieldPath,
        name: &str,
        value: Option<&str>,
        served: &[&str],
        advice: &str,
    ) {
        if let Some(value) = value.filter(|value| !value.is_empty() && !served.contains(value)) {
            let field = path.field(name);
            let message = format!("{field} '{value}' is not supported by this version of Nacelle; {advice}");
            self.add(field, message);
        }
    }

    fn add(&mut self, field: FieldPath, message: String) {
        self.unsupported.push(Cause {
            kind: CauseKind::FieldValueNotSupported,
            message,
            field,
        });
    }

    fn warn(&mut self, path: &FieldPath, name: &str, set: bool, why: &str) {
        if set {
            self.warnings
                .push(format!("{} has no effect: {why}", path.field(name)));
        }
    }

    fn cluster(&mut self, name: &str, set: bool) {
        if set {
            self.cluster_only.push(name.to_owned());
        }
    }
}

/// Keys that cloud-init is to find need a disk where it looks.
fn credential(found: &mut Support, credential: &AccessCredential, volumes: &[Volume], path: &FieldPath) {
    let Some(key) = &credential.ssh_public_key else {
        return;
    };
    let way = &key.propagation_method;
    let has = |kind: fn(&Volume) -> bool| volumes.iter().any(kind);
    let no_cloud = has(|volume| volume.cloud_init_no_cloud.is_some());
    let config_drive = has(|volume| volume.cloud_init_config_drive.is_some());
    for (name, missing, volume) in [
        ("noCloud", way.no_cloud.is_some() && !no_cloud, "cloudInitNoCloud"),
        (
            "configDrive",
            way.config_drive.is_some() && !config_drive,
            "cloudInitConfigDrive",
        ),
    ] {
        if missing {
            let field = path.field("sshPublicKey.propagationMethod").field(name);
            let message = format!("{field} needs a volume {volume} to put the keys into");
            found.add(field, message);
        }
    }
}

/// Whether a switch is on that is off when absent.
fn on(flag: Option<bool>) -> bool {
    flag == Some(true)
}

/// Whether a feature is named and not switched off.
fn enabled(feature: Option<&FeatureState>) -> bool {
    feature.is_some_and(|feature| feature.enabled != Some(false))
}

/// Looks at every field of a disk that comes to a machine which is there.
pub fn support_disk(disk: &Disk, path: &FieldPath) -> Support {
    let mut found = Support::default();
    devices::disk(&mut found, disk, path);
    found
}

/// Looks at every field of a spec. `prefix` is where it stands, as in [`crate::validate()`].
pub fn support(spec: &VirtualMachineInstanceSpec, prefix: &FieldPath) -> Support {
    let VirtualMachineInstanceSpec {
        domain,
        volumes,
        networks,
        hostname: _,
        subdomain,
        termination_grace_period_seconds: _,
        start_strategy: _,
        eviction_strategy,
        architecture,
        liveness_probe,
        readiness_probe,
        dns_policy,
        dns_config,
        access_credentials,
        utility_volumes,
        resource_claims,
        service_account_name,
        priority_class_name,
        node_selector,
        affinity,
        scheduler_name,
        tolerations,
        topology_spread_constraints,
    } = spec;
    let mut support = Support::default();
    let found = &mut support;
    found.refuse_value(
        prefix,
        "architecture",
        architecture.as_deref(),
        &["amd64"],
        "use amd64",
    );
    for (index, credential) in access_credentials.iter().enumerate() {
        let path = prefix.field("accessCredentials").index(index);
        self::credential(found, credential, volumes, &path);
    }
    found.refuse(prefix, "utilityVolumes", !utility_volumes.is_empty());
    found.refuse(prefix, "resourceClaims", !resource_claims.is_empty());
    found.cluster("subdomain", subdomain.is_some());
    found.cluster("evictionStrategy", eviction_strategy.is_some());
    found.cluster("livenessProbe", liveness_probe.is_some());
    found.cluster("readinessProbe", readiness_probe.is_some());
    found.cluster("dnsPolicy", dns_policy.is_some());
    found.cluster("dnsConfig", dns_config.is_some());
    found.cluster("serviceAccountName", service_account_name.is_some());
    found.cluster("priorityClassName", priority_class_name.is_some());
    found.cluster("nodeSelector", !node_selector.is_empty());
    found.cluster("affinity", affinity.is_some());
    found.cluster("schedulerName", scheduler_name.is_some());
    found.cluster("tolerations", !tolerations.is_empty());
    found.cluster(
        "topologySpreadConstraints",
        !topology_spread_constraints.is_empty(),
    );
    self::domain(found, domain, &prefix.field("domain"));
    for (index, volume) in volumes.iter().enumerate() {
        devices::volume(found, volume, &prefix.field("volumes").index(index));
    }
    for (index, network) in networks.iter().enumerate() {
        let Network {
            name: _,
            pod: _,
            multus,
            resource_claim,
        } = network;
        let path = prefix.field("networks").index(index);
        found.refuse(&path, "multus", multus.is_some());
        found.refuse(&path, "resourceClaim", resource_claim.is_some());
    }
    support
}

fn domain(found: &mut Support, domain: &DomainSpec, path: &FieldPath) {
    let DomainSpec {
        resources,
        cpu,
        memory,
        machine: _,
        firmware,
        clock,
        features,
        devices,
        io_threads_policy,
        io_threads,
        chassis,
        // Refused in `validate`, for good.
        launch_security: _,
        reboot_policy: _,
    } = domain;
    if let Some(ResourceRequirements {
        requests: _,
        limits,
        overcommit_guest_overhead,
    }) = resources
    {
        found.cluster("resources.limits", !limits.is_empty());
        found.cluster(
            "resources.overcommitGuestOverhead",
            overcommit_guest_overhead.is_some(),
        );
    }
    if let Some(cpu) = cpu {
        self::cpu(found, cpu, &path.field("cpu"));
    }
    if let Some(Memory {
        guest: _,
        max_guest,
        hugepages,
        reserved_overhead,
    }) = memory
    {
        let path = path.field("memory");
        found.warn(
            &path,
            "maxGuest",
            max_guest.is_some(),
            "memory cannot be hot-plugged yet",
        );
        let size = hugepages.as_ref().and_then(|pages| pages.page_size.as_deref());
        found.refuse_value(
            &path,
            "hugepages.pageSize",
            size,
            &["2Mi", "1Gi"],
            "use 2Mi or 1Gi",
        );
        found.cluster("memory.reservedOverhead", reserved_overhead.is_some());
    }
    if let Some(Firmware {
        uuid: _,
        serial: _,
        bootloader,
        kernel_boot: _,
        acpi,
    }) = firmware
    {
        let path = path.field("firmware");
        found.refuse(&path, "bootloader", bootloader.is_some());
        found.refuse(&path, "acpi", acpi.is_some());
    }
    if let Some(clock) = clock {
        self::clock(found, clock, &path.field("clock"));
    }
    if let Some(features) = features {
        self::features(found, features, &path.field("features"));
    }
    let policy = io_threads_policy.as_deref();
    found.refuse_value(
        path,
        "ioThreadsPolicy",
        policy,
        &["shared", "auto"],
        "use shared or auto",
    );
    found.refuse(path, "ioThreads", io_threads.is_some());
    found.refuse(path, "chassis", chassis.is_some());
    devices::check(found, devices, &path.field("devices"));
}

fn cpu(found: &mut Support, cpu: &Cpu, path: &FieldPath) {
    let Cpu {
        cores: _,
        sockets: _,
        max_sockets,
        threads: _,
        model,
        features,
        dedicated_cpu_placement,
        isolate_emulator_thread,
        numa,
        realtime,
    } = cpu;
    found.warn(
        path,
        "maxSockets",
        max_sockets.is_some(),
        "CPUs cannot be hot-plugged yet",
    );
    let known: Vec<_> = HOST_MODELS.into_iter().chain(models()).collect();
    let advice = format!("use {}", known.join(", "));
    found.refuse_value(path, "model", model.as_deref(), &known, &advice);
    let known: Vec<_> = crate::cpu::features().collect();
    for (index, feature) in features.iter().enumerate() {
        let CpuFeature { name, policy: _ } = feature;
        let path = path.field("features").index(index);
        found.refuse(&path, "name", name.is_empty());
        found.refuse_value(
            &path,
            "name",
            Some(name),
            &known,
            "nacelle cpu prints those that a host has",
        );
        if features.iter().take(index).any(|other| other.name == *name) {
            let field = path.field("name");
            found.add(field.clone(), format!("{field}: {name} is named twice"));
        }
    }
    found.refuse(path, "dedicatedCpuPlacement", on(*dedicated_cpu_placement));
    found.refuse(path, "isolateEmulatorThread", on(*isolate_emulator_thread));
    found.refuse(path, "numa", numa.is_some());
    found.refuse(path, "realtime", realtime.is_some());
}

fn clock(found: &mut Support, clock: &Clock, path: &FieldPath) {
    let Clock {
        utc: _,
        timezone,
        timer,
    } = clock;
    found.refuse(path, "timezone", timezone.is_some());
    let Some(Timer {
        hpet,
        kvm,
        pit,
        rtc,
        hyperv,
    }) = timer
    else {
        return;
    };
    let path = path.field("timer");
    let ticks = "missed ticks are KVM's to make up for";
    if let Some(TickTimer {
        present,
        tick_policy: _,
    }) = hpet
    {
        found.warn(&path, "hpet", *present != Some(false), "the machine has no HPET");
    }
    if let Some(TickTimer { present, tick_policy }) = pit {
        found.warn(
            &path,
            "pit.present",
            *present == Some(false),
            "the machine always has a PIT",
        );
        found.warn(&path, "pit.tickPolicy", tick_policy.is_some(), ticks);
    }
    if let Some(RtcTimer {
        present,
        tick_policy,
        track,
    }) = rtc
    {
        found.warn(
            &path,
            "rtc.present",
            *present == Some(false),
            "the machine always has an RTC",
        );
        found.warn(&path, "rtc.tickPolicy", tick_policy.is_some(), ticks);
        found.warn(&path, "rtc.track", track.is_some(), "the RTC follows the host");
    }
    found.refuse(
        &path,
        "kvm",
        kvm.as_ref().is_some_and(|timer| timer.present == Some(false)),
    );
    let hyperv = hyperv.as_ref().is_some_and(|timer| timer.present != Some(false));
    found.warn(&path, "hyperv", hyperv, "there are no Hyper-V enlightenments yet");
}

fn features(found: &mut Support, features: &Features, path: &FieldPath) {
    let Features {
        acpi: _,
        apic,
        hyperv,
        hyperv_passthrough,
        // Refused in `validate`, for good.
        smm: _,
        kvm,
        pvspinlock,
    } = features;
    if let Some(FeatureApic {
        enabled: _,
        end_of_interrupt,
    }) = apic
    {
        found.refuse(path, "apic.endOfInterrupt", on(*end_of_interrupt));
    }
    let some = hyperv
        .as_ref()
        .is_some_and(|hyperv| *hyperv != FeatureHyperv::default());
    found.refuse(path, "hyperv", some);
    found.refuse(path, "hypervPassthrough", enabled(hyperv_passthrough.as_ref()));
    found.refuse(path, "kvm.hidden", kvm.as_ref().is_some_and(|kvm| on(kvm.hidden)));
    let off = pvspinlock
        .as_ref()
        .is_some_and(|feature| feature.enabled == Some(false));
    found.refuse(path, "pvspinlock", off);
}

#[cfg(test)]
mod tests;
