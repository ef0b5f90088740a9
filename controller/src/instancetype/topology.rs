//! How the vCPUs of an instance type are shown to the guest. Pure.

use nacelle_api::{Cause, FieldPath, InstancetypeSpec, PreferenceSpec};

use super::invalid;

/// Threads of a core where vCPUs are spread over sockets, cores and threads.
const THREADS: u32 = 2;
/// Cores of a socket, or threads of a core, where nothing is said.
const RATIO: u32 = 2;
/// The old names of topologies and the new ones.
const NAMES: [(&str, &str); 5] = [
    ("preferSockets", "sockets"),
    ("preferCores", "cores"),
    ("preferThreads", "threads"),
    ("preferSpread", "spread"),
    ("preferAny", "any"),
];

/// Sockets, cores of each, threads of each core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Topology {
    pub sockets: u32,
    pub cores: u32,
    pub threads: u32,
}

/// The topology that a preference prefers, by its new name.
pub(super) fn preferred(preference: Option<&PreferenceSpec>) -> &str {
    let asked = preference
        .and_then(|preference| preference.cpu.as_ref()?.preferred_cpu_topology.as_deref())
        .unwrap_or("sockets");
    let renamed = NAMES.iter().find(|(old, _)| *old == asked);
    renamed.map_or(asked, |(_, new)| new)
}

/// Over what `spread` spreads, and the ratio.
pub(super) fn spread(preference: Option<&PreferenceSpec>) -> (&str, u32) {
    let options = preference.and_then(|preference| preference.cpu.as_ref()?.spread_options.as_ref());
    let ratio = options
        .and_then(|options| options.ratio)
        .or_else(|| preference?.prefer_spread_socket_to_core_ratio);
    let across = options.and_then(|options| options.across.as_deref());
    (
        across.unwrap_or("SocketsCores"),
        ratio.filter(|ratio| *ratio != 0).unwrap_or(RATIO),
    )
}

/// So many vCPUs, as is preferred.
pub(super) fn of(vcpus: u32, preference: Option<&PreferenceSpec>) -> Topology {
    let one = Topology {
        sockets: 1,
        cores: 1,
        threads: 1,
    };
    if vcpus <= 1 {
        return one;
    }
    match preferred(preference) {
        "cores" => Topology { cores: vcpus, ..one },
        "threads" => Topology {
            threads: vcpus,
            ..one
        },
        "spread" => match spread(preference) {
            ("CoresThreads", ratio) => Topology {
                cores: vcpus / ratio,
                threads: ratio,
                ..one
            },
            ("SocketsCoresThreads", ratio) => Topology {
                sockets: vcpus / THREADS / ratio,
                cores: ratio,
                threads: THREADS,
            },
            (_, ratio) => Topology {
                sockets: vcpus / ratio,
                cores: ratio,
                ..one
            },
        },
        // `sockets`, and `any`, which leaves it to us.
        _ => Topology {
            sockets: vcpus,
            ..one
        },
    }
}

/// Whether an instance type's vCPUs can be spread as the preference wants.
pub(super) fn divisible(
    instancetype: &InstancetypeSpec,
    preference: Option<&PreferenceSpec>,
) -> Result<(), Cause> {
    let vcpus = instancetype.cpu.guest;
    // One vCPU is one of each, however it is spread.
    if vcpus <= 1 || preferred(preference) != "spread" {
        return Ok(());
    }
    let (across, ratio) = spread(preference);
    let not = format!("{vcpus} vCPUs provided by the instance type are not divisible by");
    let said = "Spec.PreferSpreadSocketToCoreRatio or Spec.CPU.PreferSpreadOptions.Ratio of";
    let (divides, message) = match across {
        "CoresThreads" => (
            vcpus.is_multiple_of(ratio),
            format!("{not} the number of threads per core {ratio}"),
        ),
        "SocketsCoresThreads" => (
            vcpus.is_multiple_of(THREADS) && (vcpus / THREADS).is_multiple_of(ratio),
            format!("{not} the number of threads per core {THREADS} and {said} {ratio}"),
        ),
        _ => (
            vcpus.is_multiple_of(ratio),
            format!("{not} the {said} {ratio} provided by the preference"),
        ),
    };
    if divides {
        return Ok(());
    }
    Err(invalid(FieldPath::new("instancetype.spec.cpu.guest"), message))
}

/// What is wrong with the topology that a preference asks for, and what is only to be said.
pub fn check(preference: &PreferenceSpec) -> (Vec<Cause>, Vec<String>) {
    let path = FieldPath::new("spec.cpu");
    let Some(asked) = preference
        .cpu
        .as_ref()
        .and_then(|cpu| cpu.preferred_cpu_topology.as_deref())
    else {
        return (Vec::new(), Vec::new());
    };
    let known = preferred(Some(preference));
    if !NAMES.iter().any(|(_, new)| *new == known) {
        let message = format!("unknown preferredCPUTopology {asked}");
        return (
            vec![invalid(path.field("preferredCPUTopology"), message)],
            Vec::new(),
        );
    }
    let mut causes = Vec::new();
    if known == "spread" {
        let path = path.field("spreadOptions");
        match spread(Some(preference)) {
            ("SocketsCores" | "SocketsCoresThreads", _) | ("CoresThreads", THREADS) => {}
            ("CoresThreads", _) => causes.push(invalid(
                path.field("ratio"),
                "only a ratio of 2 (1 core 2 threads) is allowed when spreading vCPUs over cores and threads"
                    .to_owned(),
            )),
            (across, _) => causes.push(invalid(
                path.field("across"),
                format!("across {across} is not supported"),
            )),
        }
    }
    let deprecated = (known != asked).then(|| {
        format!(
            "PreferredCPUTopology {asked} is deprecated for removal in a future release, please use {known} instead"
        )
    });
    (causes, deprecated.into_iter().collect())
}
