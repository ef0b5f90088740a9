//! What concerns the pod around the machine: names, probes, credentials, DNS (rules 12, 13, 39, 40, 44, 45).

use std::net::IpAddr;

use super::{Causes, count, names};
use crate::credentials::AccessCredential;
use crate::path::FieldPath;
use crate::vmi::{Probe, VirtualMachineInstanceSpec};

/// Kubernetes' limits on `dnsConfig`.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

pub(super) fn check(causes: &mut Causes, spec: &VirtualMachineInstanceSpec, prefix: &FieldPath) {
    let unrecognized =
        |field: &FieldPath, value: &str| format!("{field} is set with an unrecognized option: {value}");
    if let Some(strategy) = &spec.start_strategy {
        let field = prefix.field("startStrategy");
        if strategy != "Paused" {
            causes.invalid(field.clone(), unrecognized(&field, strategy));
        } else if spec.liveness_probe.is_some() {
            causes.invalid(
                field,
                "either startStrategy or livenessProbe should be provided.Pausing VMI with LivenessProbe is not supported",
            );
        }
    }
    if let Some(strategy) = &spec.eviction_strategy
        && !["None", "LiveMigrate", "LiveMigrateIfPossible", "External"].contains(&strategy.as_str())
    {
        let field = prefix.field("evictionStrategy");
        causes.invalid(field.clone(), unrecognized(&field, strategy));
    }
    if let Some(Err(why)) = spec.hostname.as_deref().map(names::dns_label) {
        let field = prefix.field("hostname");
        let message = format!("{field} does not conform to the kubernetes DNS_LABEL rules : {why}");
        causes.invalid(field, message);
    }
    if let Some(Err(why)) = spec.subdomain.as_deref().map(names::dns_subdomain) {
        let field = prefix.field("subdomain");
        let message = format!("{field} does not conform to the kubernetes DNS_SUBDOMAIN rules : {why}");
        causes.invalid(field, message);
    }
    if let Some(seconds) = spec.termination_grace_period_seconds
        && seconds < 0
    {
        let field = prefix.field("terminationGracePeriodSeconds");
        let message = format!("{field} '{seconds}': must be greater than or equal to 0.");
        causes.invalid(field, message);
    }
    let pod_network = spec.networks.iter().any(|network| network.pod.is_some());
    for (probe, name) in [
        (&spec.liveness_probe, "livenessProbe"),
        (&spec.readiness_probe, "readinessProbe"),
    ] {
        if let Some(probe) = probe {
            self::probe(causes, probe, pod_network, &prefix.field(name));
        }
    }
    for (index, credential) in spec.access_credentials.iter().enumerate() {
        self::credential(
            causes,
            credential,
            &prefix.field("accessCredentials").index(index),
        );
    }
    dns(causes, spec, prefix);
}

fn probe(causes: &mut Causes, probe: &Probe, pod_network: bool, path: &FieldPath) {
    let Probe {
        exec,
        guest_agent_ping,
        http_get,
        tcp_socket,
        ..
    } = probe;
    let handlers = count([
        exec.is_some(),
        guest_agent_ping.is_some(),
        http_get.is_some(),
        tcp_socket.is_some(),
    ]);
    if handlers == 0 {
        let message = format!(
            "either {}, {}, {} or {} must be set if a {path} is specified",
            path.field("tcpSocket"),
            path.field("httpGet"),
            path.field("exec"),
            path.field("guestAgentPing")
        );
        causes.required(path.clone(), message);
    } else if handlers > 1 {
        causes.invalid(
            path.clone(),
            format!("{path} must have exactly one probe type set"),
        );
    }
    for (set, name) in [
        (http_get.is_some(), "httpGet"),
        (tcp_socket.is_some(), "tcpSocket"),
    ] {
        if set && !pod_network {
            let field = path.field(name);
            causes.invalid(
                field.clone(),
                format!("{field} is only allowed if the Pod Network is attached"),
            );
        }
    }
}

/// One credential, from one place, by one way.
fn credential(causes: &mut Causes, credential: &AccessCredential, path: &FieldPath) {
    let AccessCredential {
        ssh_public_key,
        user_password,
    } = credential;
    if count([ssh_public_key.is_some(), user_password.is_some()]) != 1 {
        causes.invalid(
            path.clone(),
            format!("{path} must have exactly one access credential type set"),
        );
    }
    if let Some(key) = ssh_public_key {
        let field = path.field("sshPublicKey");
        let method = &key.propagation_method;
        let ways = count([
            method.config_drive.is_some(),
            method.no_cloud.is_some(),
            method.qemu_guest_agent.is_some(),
        ]);
        if key.source.secret.is_none() {
            causes.required(field.field("source"), format!("{field} must have a source set"));
        }
        if ways != 1 {
            let message = format!("{field} must have exactly one propagation method set");
            causes.invalid(field.field("propagationMethod"), message);
        }
        if method
            .qemu_guest_agent
            .as_ref()
            .is_some_and(|agent| agent.users.is_empty())
        {
            let field = field.field("propagationMethod.qemuGuestAgent.users");
            causes.required(
                field.clone(),
                format!("{field} requires at least one user to be present"),
            );
        }
    }
    if let Some(password) = user_password {
        let field = path.field("userPassword");
        if password.source.secret.is_none() {
            causes.required(field.field("source"), format!("{field} must have a source set"));
        }
        if password.propagation_method.qemu_guest_agent.is_none() {
            let message = format!("{field} must have exactly one propagation method set");
            causes.invalid(field.field("propagationMethod"), message);
        }
    }
}

/// Kubernetes' own rules for the pod, told before the pod is made.
fn dns(causes: &mut Causes, spec: &VirtualMachineInstanceSpec, prefix: &FieldPath) {
    let policy = spec.dns_policy.as_deref().unwrap_or_default();
    if !["", "ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"].contains(&policy) {
        let field = prefix.field("dnsPolicy");
        let message = format!(
            "DNSPolicy: {policy} is not supported, valid values: [ClusterFirstWithHostNet ClusterFirst Default None]"
        );
        causes.not_supported(field, message);
    }
    let path = prefix.field("dnsConfig");
    let config = spec.dns_config.as_ref();
    let nameservers = config
        .and_then(|config| config.nameservers.as_deref())
        .unwrap_or_default();
    let searches = config
        .and_then(|config| config.searches.as_deref())
        .unwrap_or_default();
    let options = config
        .and_then(|config| config.options.as_deref())
        .unwrap_or_default();
    if policy == "None" && nameservers.is_empty() {
        let message = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        causes.required(path.field("nameservers"), message);
    }
    if nameservers.len() > MAX_NAMESERVERS {
        let message = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        causes.invalid(path.field("nameservers"), message);
    }
    for (index, server) in nameservers.iter().enumerate() {
        if server.parse::<IpAddr>().is_err() {
            causes.invalid(
                path.field("nameservers").index(index),
                format!("must be valid IP address: {server}"),
            );
        }
    }
    if searches.len() > MAX_SEARCHES {
        let message = format!("must not have more than {MAX_SEARCHES} search paths");
        causes.invalid(path.field("searches"), message);
    }
    let chars = searches.iter().map(|search| search.len() + 1).sum::<usize>();
    if chars > MAX_SEARCH_CHARS + 1 {
        let message = format!(
            "must not have more than {MAX_SEARCH_CHARS} characters (including spaces) in the search list"
        );
        causes.invalid(path.field("searches"), message);
    }
    for (index, search) in searches.iter().enumerate() {
        if let Err(why) = names::dns_subdomain(search.strip_suffix('.').unwrap_or(search)) {
            causes.invalid(path.field("searches").index(index), format!("{search}: {why}"));
        }
    }
    for (index, option) in options.iter().enumerate() {
        if option.name.as_deref().unwrap_or_default().is_empty() {
            causes.required(
                path.field("options").index(index).field("name"),
                "Option.Name must not be empty for value",
            );
        }
    }
}
