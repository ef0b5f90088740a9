//! What there is to say of a launcher pod, and of the monitor in it.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodCondition};
use kube::ResourceExt;

use super::super::{Finding, Link, Weight, World};
use super::{guest, newest, seen};
use crate::vmi::status::COMPUTE;

/// Kind of the last of the chain.
pub(super) const MONITOR: &str = "monitor";

/// What the kubelet says of a pod whose containers it cannot start yet.
const OF_PODS: [&str; 6] = [
    "FailedMount",
    "FailedAttachVolume",
    "FailedMapVolume",
    "FailedCreatePodSandBox",
    "NetworkNotReady",
    "UnexpectedAdmissionError",
];

/// The third of the chain.
pub(super) fn pod(world: &World) -> Option<Link> {
    let vmi = world.vmi.as_ref()?;
    let Some(pod) = &world.pod else {
        let phase = vmi.status.as_ref().and_then(|status| status.phase.as_deref());
        let over = matches!(phase, Some("Succeeded" | "Failed"));
        return Some(Link {
            kind: "Pod",
            name: "virt-launcher".to_owned(),
            state: if over { "gone" } else { "not made yet" }.to_owned(),
            since: None,
            findings: Vec::new(),
        });
    };
    let status = pod.status.clone().unwrap_or_default();
    let mut findings: Vec<_> = [scheduled(pod), admitted(pod)].into_iter().flatten().collect();
    let containers = containers(pod);
    findings.extend(containers.iter().filter_map(|container| waits(container, world)));
    findings.extend(unready(pod, &containers));
    if let Some(since) = &pod.metadata.deletion_timestamp {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or_default();
        let message = format!("it ends, within {grace} s of being told to");
        findings.push(Finding::new(Weight::Waits, "Terminating", message).since(Some(since)));
    }
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let node = node.map(|node| format!(" on {node}")).unwrap_or_default();
    Some(Link {
        kind: "Pod",
        name: pod.name_any(),
        state: format!("{}{node}", status.phase.as_deref().unwrap_or("Pending")),
        since: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
        findings,
    })
}

/// The last of the chain: the program around the guest.
pub(super) fn monitor(world: &World) -> Option<Link> {
    let pod = world.pod.as_ref()?;
    let containers = containers(pod);
    let compute = containers.iter().find(|container| container.name == COMPUTE);
    let state = compute
        .and_then(|container| container.state.clone())
        .unwrap_or_default();
    let mut findings = Vec::new();
    let status = world.vmi.as_ref().and_then(|vmi| vmi.status.as_ref());
    let guest = status.and_then(guest::monitor);
    let (state, since) = match &state {
        ContainerState {
            terminated: Some(end),
            ..
        } => {
            let words = end
                .message
                .as_deref()
                .map(str::trim)
                .filter(|words| !words.is_empty());
            if end.exit_code != 0 {
                let message = words.map_or_else(|| format!("status {}", end.exit_code), str::to_owned);
                let next = format!("kubectl logs {} -c compute", pod.name_any());
                let finding = Finding::new(
                    Weight::Stuck,
                    end.reason.clone().unwrap_or_else(|| "Failed".into()),
                    message,
                );
                findings.push(finding.next(next));
            }
            ("has ended", end.finished_at.as_ref())
        }
        ContainerState {
            running: Some(running),
            ..
        } => {
            let arrives = pod.annotations().contains_key(crate::vmi::build::MIGRATION);
            if guest.is_none() && !arrives {
                let message = "it has not reported that its guest runs: it waits for the files of its images, or cannot reach the controller";
                let next = format!(
                    "kubectl logs {} -c compute; a NetworkPolicy must let the namespace's pods reach TCP port 8443 of nacelle-controller",
                    pod.name_any()
                );
                findings.push(Finding::new(Weight::Waits, "NotReported", message).next(next));
            }
            (guest.unwrap_or("is started"), running.started_at.as_ref())
        }
        // The monitor reports its guest by itself, sooner than the kubelet says that the container runs.
        _ => (guest.unwrap_or("not started yet"), None),
    };
    Some(Link {
        kind: MONITOR,
        name: COMPUTE.to_owned(),
        state: state.to_owned(),
        since: since.map(|time| time.0),
        findings,
    })
}

fn containers(pod: &Pod) -> Vec<ContainerStatus> {
    let status = pod.status.clone().unwrap_or_default();
    let lists = [status.init_container_statuses, status.container_statuses];
    lists.into_iter().flatten().flatten().collect()
}

fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    let list = pod.status.as_ref()?.conditions.as_ref()?;
    list.iter().find(|condition| condition.type_ == type_)
}

/// The scheduler's words, and what they ask for.
fn scheduled(pod: &Pod) -> Option<Finding> {
    let condition = condition(pod, "PodScheduled").filter(|condition| condition.status == "False")?;
    let reason = condition
        .reason
        .clone()
        .unwrap_or_else(|| "Unschedulable".to_owned());
    let message = condition
        .message
        .clone()
        .unwrap_or_else(|| "no node was found yet".to_owned());
    let next: Vec<_> = wants(&message).collect();
    let next = if next.is_empty() {
        "kubectl get nodes; kubectl describe nodes".to_owned()
    } else {
        next.join("; ")
    };
    let finding = Finding::new(Weight::Stuck, reason, message);
    Some(finding.since(condition.last_transition_time.as_ref()).next(next))
}

/// What helps against each thing that the scheduler says.
fn wants(message: &str) -> impl Iterator<Item = &'static str> {
    let table = [
        (
            "Insufficient memory",
            "give the machine less memory, stop others, or add a node",
        ),
        (
            "Insufficient cpu",
            "give the machine fewer CPUs, stop others, or add a node",
        ),
        (
            "Insufficient devices.kubevirt.io/kvm",
            "no node has /dev/kvm to give: do pods of daemonset nacelle-node run, and has the node virtualization (kubectl -n nacelle logs daemonset/nacelle-node)",
        ),
        (
            "Insufficient devices.kubevirt.io/tun",
            "no node has /dev/net/tun to give: kubectl -n nacelle logs daemonset/nacelle-node",
        ),
        (
            "Insufficient devices.kubevirt.io/vhost",
            "no node has that vhost device: load its kernel module on a node",
        ),
        (
            "Insufficient hugepages",
            "no node has enough huge pages: reserve some, or ask for fewer",
        ),
        (
            "node affinity/selector",
            "nodeSelector and affinity of the machine must fit a node with the label kubevirt.io/schedulable=true (kubectl get nodes --show-labels)",
        ),
        (
            "untolerated taint",
            "let the machine tolerate the taint, or take it off the node",
        ),
        ("were unschedulable", "kubectl uncordon the node"),
        (
            "unbound immediate PersistentVolumeClaims",
            "a claim is not bound: see below",
        ),
        (
            "volume node affinity conflict",
            "its volume is on another node than the machine may run on",
        ),
        (
            "anti-affinity",
            "another pod keeps it away: change podAntiAffinity, or add a node",
        ),
        (
            "Too many pods",
            "the nodes have as many pods as they may: add a node",
        ),
    ];
    let found = table
        .into_iter()
        .filter(move |(words, _)| message.contains(words));
    found.map(|(_, next)| next).collect::<Vec<_>>().into_iter()
}

/// The kubelet did not take it.
fn admitted(pod: &Pod) -> Option<Finding> {
    let status = pod.status.as_ref()?;
    let reason = status
        .reason
        .clone()
        .filter(|_| status.phase.as_deref() == Some("Failed"))?;
    let message = status
        .message
        .clone()
        .unwrap_or_else(|| "the kubelet ended it".to_owned());
    let next = match reason.as_str() {
        "Evicted" => "its node ran out of something: kubectl describe node says of what",
        "UnexpectedAdmissionError" | "OutOfmemory" | "OutOfcpu" => {
            "its node has less to give than the scheduler knew; it is scheduled anew with its next instance"
        }
        _ => "kubectl describe pod says more",
    };
    Some(Finding::new(Weight::Stuck, reason, message).next(next))
}

/// What a container waits for.
fn waits(container: &ContainerStatus, world: &World) -> Option<Finding> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.clone().unwrap_or_default();
    let words = waiting.message.clone();
    let about = |words: &str| format!("container {} ({}): {words}", container.name, container.image);
    let words = words.unwrap_or_else(|| reason.clone());
    let stuck = |next: &str| Some(Finding::new(Weight::Stuck, reason.clone(), about(&words)).next(next));
    match reason.as_str() {
        "ErrImagePull" | "ImagePullBackOff" => {
            stuck("is the image's name right, is the registry reached, does it want an imagePullSecret?")
        }
        "ErrImageNeverPull" => stuck("imagePullPolicy Never: load the image on the node, or have it pulled"),
        "InvalidImageName" => stuck("correct the image's name in the machine"),
        "CreateContainerConfigError" => stuck("make the Secret or ConfigMap that it names"),
        "CreateContainerError" | "RunContainerError" => {
            stuck("kubectl describe pod, and the kubelet's log on its node")
        }
        // Said once: all containers wait for the same.
        "ContainerCreating" | "PodInitializing" if container.name == COMPUTE => {
            let event = newest(&world.events, &OF_PODS)?;
            let message = event.message.clone().unwrap_or_default();
            let word = event.reason.clone().unwrap_or_default();
            let next = match word.as_str() {
                "FailedMount" | "FailedAttachVolume" | "FailedMapVolume" => {
                    "is what it names there, and is the volume free on its other nodes?"
                }
                _ => "kubectl describe pod, and the kubelet's log on its node",
            };
            let mut finding = Finding::new(Weight::Stuck, word, message).next(next);
            finding.since = seen(event);
            Some(finding)
        }
        _ => None,
    }
}

/// It runs and is not ready.
fn unready(pod: &Pod, containers: &[ContainerStatus]) -> Option<Finding> {
    let condition = condition(pod, "ContainersReady").filter(|condition| condition.status == "False")?;
    let runs = |container: &&ContainerStatus| {
        !container.ready
            && container
                .state
                .as_ref()
                .is_some_and(|state| state.running.is_some())
    };
    let probed = containers
        .iter()
        .filter(|container| container.name == COMPUTE)
        .find(runs)?;
    let message = format!(
        "container {} runs and its readiness probe does not succeed",
        probed.name
    );
    let finding =
        Finding::new(Weight::Waits, "NotReady", message).since(condition.last_transition_time.as_ref());
    Some(
        finding
            .next("does the guest answer what readinessProbe asks? Services send it nothing until it does"),
    )
}
