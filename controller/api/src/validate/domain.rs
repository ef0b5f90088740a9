//! Memory, CPU, firmware and the smaller devices (rules 1-11, 41-43, 46).

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{Causes, count};
use crate::devices::Devices;
use crate::domain::{Cpu, DomainSpec, LaunchSecurity, ResourceRequirements};
use crate::firmware::Firmware;
use crate::path::FieldPath;
use crate::quantity::{self, QuantityError};

/// Less memory than this is a mistake of units.
const LEAST_MEMORY: u64 = 1_000_000;

pub(super) fn check(causes: &mut Causes, domain: &DomainSpec, path: &FieldPath) {
    resources(causes, domain.resources.as_ref(), &path.field("resources"));
    memory(causes, domain, path);
    if let Some(cpu) = &domain.cpu {
        self::cpu(causes, cpu, domain, path);
    }
    if let Some(machine) = &domain.machine
        && !machine.type_.is_empty()
        && !["q35", "pc-q35"]
            .iter()
            .any(|start| machine.type_.starts_with(start))
    {
        let field = path.field("machine.type");
        let message = format!(
            "{field} is not supported: {} (allowed values: [q35* pc-q35*])",
            machine.type_
        );
        causes.invalid(field, message);
    }
    let smm = domain
        .features
        .as_ref()
        .and_then(|features| features.smm.as_ref());
    let smm = smm.is_some_and(|smm| smm.enabled != Some(false));
    if smm {
        causes.gated(path.field("features.smm"), "SMM");
    }
    if let Some(firmware) = &domain.firmware {
        self::firmware(causes, firmware, smm, &path.field("firmware"));
    }
    if let Some(policy) = &domain.io_threads_policy
        && !["shared", "auto", "supplementalPool"].contains(&policy.as_str())
    {
        let field = path.field("ioThreadsPolicy");
        causes.invalid(field, format!("Invalid IOThreadsPolicy ({policy})"));
    }
    if let Some(policy) = &domain.reboot_policy
        && !["Reboot", "Terminate"].contains(&policy.as_str())
    {
        let field = path.field("rebootPolicy");
        let message = format!("{field} is set with an unrecognized option: {policy}");
        causes.invalid(field, message);
    }
    if let Some(security) = &domain.launch_security {
        launch_security(causes, security, &path.field("launchSecurity"));
    }
    devices(causes, &domain.devices, &path.field("devices"));
}

/// The value of a quantity; what is wrong with it is told.
fn amount(causes: &mut Causes, quantity: Option<&Quantity>, field: FieldPath) -> Option<u64> {
    let error = match quantity::millis(quantity?) {
        Ok(value) => return Some(value),
        // More than 8 PiB: it has a value, if not in thousandths.
        Err(QuantityError::TooLarge(_)) if quantity::whole(quantity?).is_ok() => return Some(u64::MAX),
        Err(error) => error,
    };
    let message = match error {
        QuantityError::Negative(text) => format!("{field} '{text}': must be greater than or equal to 0."),
        error => format!("{field}: {error}"),
    };
    causes.invalid(field, message);
    None
}

fn resources(causes: &mut Causes, resources: Option<&ResourceRequirements>, path: &FieldPath) {
    let Some(resources) = resources else { return };
    for name in ["memory", "cpu"] {
        let (request_path, limit_path) = (
            path.field("requests").field(name),
            path.field("limits").field(name),
        );
        let (request, limit) = (resources.requests.get(name), resources.limits.get(name));
        let request_value = amount(causes, request, request_path.clone());
        let limit_value = amount(causes, limit, limit_path.clone());
        if let (Some(request), Some(value)) = (request, request_value) {
            if name == "memory" && value < LEAST_MEMORY * 1000 {
                let message = format!(
                    "{request_path} '{}': must be greater than or equal to 1M.",
                    request.0
                );
                causes.invalid(request_path.clone(), message);
            }
            if let (Some(limit), true) = (limit, limit_value.is_some_and(|limit| value > limit)) {
                let message = format!(
                    "{request_path} '{}' is greater than {limit_path} '{}'",
                    request.0, limit.0
                );
                causes.invalid(request_path, message);
            }
        }
    }
}

fn memory(causes: &mut Causes, domain: &DomainSpec, path: &FieldPath) {
    let memory_path = path.field("memory");
    let guest_path = memory_path.field("guest");
    let (guest, pages) = match &domain.memory {
        Some(memory) => (memory.guest.as_ref(), memory.hugepages.as_ref()),
        None => (None, None),
    };
    let of = |list: fn(&ResourceRequirements) -> Option<&Quantity>| domain.resources.as_ref().and_then(list);
    let request = of(|resources| resources.requests.get("memory"));
    let limit = of(|resources| resources.limits.get("memory"));
    if guest.is_none() && pages.is_none() && request.is_none() && limit.is_none() {
        let message = format!(
            "no memory requested, at least one of '{guest_path}', '{}' or '{}' must be set",
            memory_path.field("hugepages.size"),
            path.field("resources")
        );
        causes.required(memory_path, message);
        return;
    }
    let size = guest.and_then(|guest| match quantity::whole(guest) {
        Ok(size) => Some(size),
        Err(error) => {
            causes.invalid(guest_path.clone(), format!("{guest_path}: {error}"));
            None
        }
    });
    if let (Some(guest), Some(size)) = (guest, size) {
        if size < LEAST_MEMORY {
            let message = format!("{guest_path} '{}': must be greater than or equal to 1M.", guest.0);
            causes.invalid(guest_path.clone(), message);
        }
        if let Some(limit) = limit
            && quantity::whole(limit).is_ok_and(|limit| size > limit)
        {
            let message = format!(
                "{guest_path} '{}' must be equal to or less than the memory limit {} '{}'",
                guest.0,
                path.field("resources.limits.memory"),
                limit.0
            );
            causes.invalid(guest_path.clone(), message);
        }
    }
    if let Some(pages) = pages {
        let field = memory_path.field("hugepages.pageSize");
        let text = pages.page_size.clone().unwrap_or_default();
        match quantity::whole(&Quantity(text.clone())) {
            Ok(page) if page > 0 => {
                if let (Some(guest), Some(size)) = (guest, size) {
                    hugepages(causes, (&guest_path, &guest.0, size), (field, &text, page));
                }
            }
            Ok(_) => causes.invalid(field.clone(), format!("{field} '{text}': must be greater than 0")),
            Err(error) => causes.invalid(field.clone(), format!("{field} '{text}': {error}")),
        }
    }
}

/// Memory is made of whole pages.
fn hugepages(
    causes: &mut Causes,
    (guest_path, guest, size): (&FieldPath, &str, u64),
    (field, text, page): (FieldPath, &str, u64),
) {
    if size < page {
        let message =
            format!("{guest_path} '{guest}' must be equal to or larger than page size {field} '{text}'");
        causes.invalid(field, message);
    } else if !size.is_multiple_of(page) {
        let message = format!("{guest_path} '{guest}' is not a multiple of the page size {field} '{text}'");
        causes.invalid(field, message);
    }
}

fn cpu(causes: &mut Causes, cpu: &Cpu, domain: &DomainSpec, domain_path: &FieldPath) {
    let path = &domain_path.field("cpu");
    if let Some(max) = cpu.max_sockets
        && max != 0
        && cpu.sockets.unwrap_or(1) > max
    {
        causes.invalid(
            path.field("sockets"),
            "Number of sockets in CPU topology is greater than the maximum sockets allowed",
        );
    }
    let dedicated = cpu.dedicated_cpu_placement == Some(true);
    if dedicated {
        dedicated_cpus(causes, cpu, domain.resources.as_ref(), domain_path);
    } else if cpu.isolate_emulator_thread == Some(true) {
        causes.invalid(
            path.field("isolateEmulatorThread"),
            "IsolateEmulatorThread should be only set in combination with DedicatedCPUPlacement",
        );
    }
    if cpu
        .numa
        .as_ref()
        .is_some_and(|numa| numa.guest_mapping_passthrough.is_some())
    {
        let numa = path.field("numa.guestMappingPassthrough");
        if !dedicated {
            let message = format!(
                "{} must be set to true when NUMA topology strategy is set in {numa}",
                path.field("dedicatedCpuPlacement")
            );
            causes.invalid(numa.clone(), message);
        }
        if domain
            .memory
            .as_ref()
            .is_none_or(|memory| memory.hugepages.is_none())
        {
            let message = format!(
                "{} must be requested when NUMA topology strategy is set in {numa}",
                domain_path.field("memory.hugepages")
            );
            causes.invalid(numa, message);
        }
    }
    for (index, feature) in cpu.features.iter().enumerate() {
        if let Some(policy) = &feature.policy
            && !["force", "require", "optional", "disable", "forbid"].contains(&policy.as_str())
        {
            let message = format!(
                "CPU feature {} uses policy {policy} that is not supported.",
                feature.name
            );
            causes.not_supported(path.field("features").index(index).field("policy"), message);
        }
    }
}

fn dedicated_cpus(
    causes: &mut Causes,
    cpu: &Cpu,
    resources: Option<&ResourceRequirements>,
    domain_path: &FieldPath,
) {
    if cpu.threads.is_some_and(|threads| threads > 2) {
        let field = domain_path.field("cpu.threads");
        let message = format!(
            "Not more than two threads must be provided at {field} (got {}) when DedicatedCPUPlacement is true",
            cpu.threads.unwrap_or(1)
        );
        causes.invalid(field, message);
    }
    let Some(resources) = resources else { return };
    for (list, name) in [(&resources.requests, "requests"), (&resources.limits, "limits")] {
        if let Some(cpus) = list.get("cpu")
            && quantity::millis(cpus).is_ok_and(|cpus| !cpus.is_multiple_of(1000))
        {
            causes.invalid(
                domain_path.field("resources").field(name).field("cpu"),
                format!("provided resources CPU {name} must be an interger"),
            );
        }
    }
    if let (Some(request), Some(limit)) = (resources.requests.get("memory"), resources.limits.get("memory"))
        && quantity::whole(request) != quantity::whole(limit)
    {
        let field = domain_path.field("resources.requests.memory");
        let message = format!(
            "{field} '{}' must be equal to {} '{}' when DedicatedCPUPlacement is true",
            request.0,
            domain_path.field("resources.limits.memory"),
            limit.0
        );
        causes.invalid(field, message);
    }
}

fn firmware(causes: &mut Causes, firmware: &Firmware, smm: bool, path: &FieldPath) {
    if let Some(bootloader) = &firmware.bootloader {
        let field = path.field("bootloader");
        if bootloader.efi.is_some() && bootloader.bios.is_some() {
            let message =
                format!("{field} has both EFI and BIOS configured, but they are mutually exclusive.");
            causes.invalid(field.clone(), message);
        }
        if let Some(efi) = &bootloader.efi
            && efi.secure_boot != Some(false)
            && !smm
        {
            let field = field.field("efi");
            let message = format!(
                "{field} has EFI SecureBoot enabled. SecureBoot requires SMM, which is currently disabled."
            );
            causes.invalid(field, message);
        }
    }
    if let Some(boot) = &firmware.kernel_boot {
        let field = path.field("kernelBoot");
        let given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let container = boot.container.as_ref();
        if given(&boot.kernel_args) && !container.is_some_and(|container| given(&container.kernel_path)) {
            causes.invalid(
                field.field("kernelArgs"),
                "kernel arguments cannot be provided without an external kernel",
            );
        }
        if let Some(container) = container {
            let field = field.field("container");
            if container.image.is_empty() {
                let field = field.field("image");
                causes.required(
                    field.clone(),
                    format!("{field} must be given to boot from a container"),
                );
            }
            if !given(&container.kernel_path) && !given(&container.initrd_path) {
                let message = format!("{field} must have at least one of kernelPath and initrdPath");
                causes.required(field, message);
            }
        }
    }
}

fn launch_security(causes: &mut Causes, security: &LaunchSecurity, path: &FieldPath) {
    let LaunchSecurity { sev, snp, tdx } = security;
    if count([sev.is_some(), snp.is_some(), tdx.is_some()]) != 1 {
        causes.invalid(
            path.clone(),
            format!("{path} must have exactly one of sev, snp and tdx set"),
        );
    }
    for (set, name, gate) in [
        (sev.is_some(), "sev", "WorkloadEncryptionSEV"),
        (snp.is_some(), "snp", "WorkloadEncryptionSEV"),
        (tdx.is_some(), "tdx", "WorkloadEncryptionTDX"),
    ] {
        if set {
            causes.gated(path.field(name), gate);
        }
    }
}

fn devices(causes: &mut Causes, devices: &Devices, path: &FieldPath) {
    for (index, input) in devices.inputs.iter().enumerate() {
        let field = path.field("inputs").index(index);
        if !["", "tablet"].contains(&input.type_.as_str()) {
            causes.invalid(field.field("type"), "Input device can have only tablet type.");
        }
        if input
            .bus
            .as_deref()
            .is_some_and(|bus| !["", "usb", "virtio"].contains(&bus))
        {
            causes.invalid(
                field.field("bus"),
                "Input device can have only virtio, usb or empty bus.",
            );
        }
        if input.name.is_empty() {
            causes.required(field.field("name"), "Input device requires a name field.");
        }
    }
    if let Some(sound) = &devices.sound {
        let field = path.field("sound");
        if sound.name.is_empty() {
            causes.required(field.field("name"), "Sound device requires a name field.");
        }
        if sound
            .model
            .as_deref()
            .is_some_and(|model| !["", "ich9", "ac97"].contains(&model))
        {
            causes.invalid(
                field,
                "Sound device type is not supported. Options: 'ich9' or 'ac97'",
            );
        }
    }
    if let Some(video) = devices.video.as_ref().and_then(|video| video.type_.as_deref())
        && !["virtio", "vga", "bochs", "cirrus", "ramfb"].contains(&video)
    {
        let field = path.field("video.type");
        let message =
            format!("{field} {video} is not supported (allowed values: [virtio vga bochs cirrus ramfb])");
        causes.invalid(field, message);
    }
    if let Some(watchdog) = &devices.watchdog {
        let field = path.field("watchdog");
        if watchdog.name.is_empty() {
            causes.required(
                field.field("name"),
                format!("{} is required", field.field("name")),
            );
        }
        if watchdog.diag288.is_some() {
            causes.not_supported(
                field.clone(),
                "amd64 does not support DIAG288 watchdogs; use i6300esb",
            );
        }
        if let Some(action) = watchdog
            .i6300esb
            .as_ref()
            .and_then(|device| device.action.as_deref())
            && !["reset", "poweroff", "shutdown"].contains(&action)
        {
            let field = field.field("i6300esb.action");
            let message = format!("{field} has invalid value {action}");
            causes.invalid(field, message);
        }
    }
    if devices.downward_metrics.is_some() {
        causes.gated(path.field("downwardMetrics"), "DownwardMetrics");
    }
    if devices.client_passthrough.is_some() {
        causes.gated(path.field("clientPassthrough"), "ClientPassthrough");
    }
}
