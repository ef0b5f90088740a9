//! What CPUID shows a guest: the host's leaves, with the machine's own topology (pure).

use std::arch::x86_64::__cpuid;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use crate::config::CpuConfig;

/// Where a vCPU is in the topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    cpus: CpuConfig,
    thread_bits: u32,
    core_bits: u32,
}

fn bits_for(count: u16) -> u32 {
    u32::from(count.max(1)).next_power_of_two().trailing_zeros()
}

impl Topology {
    /// The topology of these processors.
    pub fn new(cpus: CpuConfig) -> Self {
        Topology {
            cpus,
            thread_bits: bits_for(cpus.threads),
            core_bits: bits_for(cpus.cores),
        }
    }

    /// The APIC id of a vCPU: socket, core and thread, each in bits of its own (Intel SDM 3, §9.9).
    pub fn apic_id(&self, index: u8) -> u8 {
        let index = u32::from(index);
        let (threads, cores) = (
            u32::from(self.cpus.threads.max(1)),
            u32::from(self.cpus.cores.max(1)),
        );
        let (thread, core, socket) = (index % threads, index / threads % cores, index / threads / cores);
        (socket << (self.core_bits + self.thread_bits) | core << self.thread_bits | thread) as u8
    }

    fn per_socket(&self) -> u32 {
        u32::from(self.cpus.cores) * u32::from(self.cpus.threads)
    }
}

const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
const HTT: u32 = 1 << 28;
/// The time-stamp counter never stops or changes its rate.
const INVARIANT_TSC: u32 = 1 << 8;
/// AMD: topology extensions (leaf 0x8000001e is there).
const TOPOEXT: u32 = 1 << 22;
/// AMD: more than one core, counted by the legacy method.
const CMP_LEGACY: u32 = 1 << 1;

/// The leaves of the vCPU with this APIC id. `host` are those that the hypervisor supports.
pub fn leaves(host: &CpuId, topology: &Topology, apic_id: u8, tsc_deadline: bool) -> Vec<kvm_cpuid_entry2> {
    let per_socket = topology.per_socket();
    let socket_bits = topology.thread_bits + topology.core_bits;
    let mut leaves: Vec<_> = host
        .as_slice()
        .iter()
        .copied()
        .filter(|leaf| !matches!(leaf.function, 0xb | 0x1f | 0x8000_0026))
        .collect();
    if is_amd(&leaves) {
        add_amd_topology(&mut leaves);
    }
    for leaf in &mut leaves {
        match leaf.function {
            0x1 => {
                leaf.ecx |= HYPERVISOR;
                leaf.ecx = if tsc_deadline {
                    leaf.ecx | TSC_DEADLINE
                } else {
                    leaf.ecx & !TSC_DEADLINE
                };
                let logical = (1u32 << socket_bits).min(255);
                leaf.ebx = leaf.ebx & 0x0000_ffff | logical << 16 | u32::from(apic_id) << 24;
                leaf.edx = if per_socket > 1 {
                    leaf.edx | HTT
                } else {
                    leaf.edx & !HTT
                };
            }
            // Caches: levels 1 and 2 belong to a core, level 3 to a socket.
            0x4 | 0x8000_001d if leaf.eax & 0x1f != 0 => {
                let level = leaf.eax >> 5 & 7;
                let sharing = if level < 3 {
                    1 << topology.thread_bits
                } else {
                    1 << socket_bits
                };
                leaf.eax = leaf.eax & 0x3fff | (sharing - 1) << 14;
                if leaf.function == 0x4 {
                    leaf.eax |= ((1 << topology.core_bits) - 1) << 26;
                }
            }
            0x8000_0001 => {
                leaf.ecx = if per_socket > 1 {
                    leaf.ecx | CMP_LEGACY
                } else {
                    leaf.ecx & !CMP_LEGACY
                };
            }
            // A guest that trusts the time-stamp counter for ever would see time jump over a pause or a move;
            // without the promise it uses the paravirtual clock.
            0x8000_0007 => leaf.edx &= !INVARIANT_TSC,
            0x8000_0008 => {
                leaf.ecx = leaf.ecx & !0xf0ff | socket_bits << 12 | per_socket.saturating_sub(1) & 0xff
            }
            0x8000_001e => {
                leaf.eax = u32::from(apic_id);
                let core = u32::from(apic_id) >> topology.thread_bits;
                leaf.ebx = core & 0xff | u32::from(topology.cpus.threads.saturating_sub(1)) << 8;
                leaf.ecx = u32::from(apic_id) >> socket_bits & 0xff;
                leaf.edx = 0;
            }
            _ => {}
        }
    }
    leaves.extend(extended_topology(topology, apic_id, per_socket, socket_bits));
    if let Some(basic) = leaves.iter_mut().find(|leaf| leaf.function == 0) {
        basic.eax = basic.eax.max(0xb);
    }
    leaves
}

/// Who made this host's processor, as CPUID says it, in a word that people know: Intel, AMD, Hygon.
pub fn vendor() -> Option<&'static str> {
    let leaf = __cpuid(0);
    let name: Vec<u8> = [leaf.ebx, leaf.edx, leaf.ecx]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect();
    match name.as_slice() {
        b"GenuineIntel" => Some("Intel"),
        b"AuthenticAMD" => Some("AMD"),
        b"HygonGenuine" => Some("Hygon"),
        _ => None,
    }
}

/// The vendor is AMD, or Hygon, which makes AMD's processors.
fn is_amd(leaves: &[kvm_cpuid_entry2]) -> bool {
    const AUTHENTIC_AMD: u32 = u32::from_le_bytes(*b"Auth");
    const HYGON_GENUINE: u32 = u32::from_le_bytes(*b"Hygo");
    leaves
        .iter()
        .any(|leaf| leaf.function == 0 && [AUTHENTIC_AMD, HYGON_GENUINE].contains(&leaf.ebx))
}

/// AMD's leaf for threads, also where the host's processor has none: guests find threads by it alone.
fn add_amd_topology(leaves: &mut Vec<kvm_cpuid_entry2>) {
    const TOPOLOGY: u32 = 0x8000_001e;
    for leaf in leaves.iter_mut() {
        match leaf.function {
            0x8000_0000 => leaf.eax = leaf.eax.max(TOPOLOGY),
            0x8000_0001 => leaf.ecx |= TOPOEXT,
            _ => {}
        }
    }
    if !leaves.iter().any(|leaf| leaf.function == TOPOLOGY) {
        leaves.push(kvm_cpuid_entry2 {
            function: TOPOLOGY,
            ..Default::default()
        });
    }
}

/// Leaf 0xb: threads of a core, cores of a socket (Intel SDM 2, CPUID).
fn extended_topology(
    topology: &Topology,
    apic_id: u8,
    per_socket: u32,
    socket_bits: u32,
) -> Vec<kvm_cpuid_entry2> {
    const SIGNIFICANT_INDEX: u32 = 1;
    let level = |index, shift, count, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: SIGNIFICANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        edx: u32::from(apic_id),
        ..Default::default()
    };
    vec![
        level(0, topology.thread_bits, u32::from(topology.cpus.threads), 1),
        level(1, socket_bits, per_socket, 2),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> CpuId {
        let leaf = |function, eax| kvm_cpuid_entry2 {
            function,
            eax,
            ..Default::default()
        };
        CpuId::from_entries(&[
            leaf(0, 0xd),
            leaf(1, 0),
            leaf(0xb, 7),
            leaf(0x8000_0008, 0),
            leaf(0x8000_001e, 0),
        ])
        .unwrap()
    }

    fn cpus(sockets: u16, cores: u16, threads: u16) -> Topology {
        Topology::new(CpuConfig {
            sockets,
            cores,
            threads,
        })
    }

    #[test]
    fn apic_ids_keep_socket_core_and_thread_apart() {
        let flat: Vec<_> = (0..4).map(|i| cpus(1, 4, 1).apic_id(i)).collect();
        assert_eq!(flat, [0, 1, 2, 3]);
        let odd: Vec<_> = (0..6).map(|i| cpus(2, 3, 1).apic_id(i)).collect();
        assert_eq!(odd, [0, 1, 2, 4, 5, 6]);
        let threads: Vec<_> = (0..8).map(|i| cpus(2, 2, 2).apic_id(i)).collect();
        assert_eq!(threads, [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn the_topology_leaf_is_the_machines_own_not_the_hosts() {
        let leaves = leaves(&host(), &cpus(2, 4, 2), 9, true);
        let topology: Vec<_> = leaves.iter().filter(|l| l.function == 0xb).collect();
        assert_eq!(topology.len(), 3);
        assert_eq!((topology[0].eax, topology[0].ebx, topology[0].edx), (1, 2, 9));
        assert_eq!((topology[1].eax, topology[1].ebx), (3, 8));
        let amd = leaves.iter().find(|l| l.function == 0x8000_001e).unwrap();
        assert_eq!((amd.eax, amd.ebx, amd.ecx), (9, 4 | 1 << 8, 1));
    }

    #[test]
    fn threads_are_shown_on_amd_processors_that_have_none() {
        let leaf = |function, eax, ebx| kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ..Default::default()
        };
        let old = [
            leaf(0, 1, u32::from_le_bytes(*b"Auth")),
            leaf(0x8000_0000, 0x8000_0008, 0),
            leaf(0x8000_0001, 0, 0),
        ];
        let leaves = leaves(&CpuId::from_entries(&old).unwrap(), &cpus(1, 2, 2), 3, true);
        let find = |function| leaves.iter().find(|leaf| leaf.function == function).unwrap();
        assert_eq!(find(0x8000_0000).eax, 0x8000_001e);
        assert_eq!(find(0x8000_0001).ecx & TOPOEXT, TOPOEXT);
        assert_eq!((find(0x8000_001e).eax, find(0x8000_001e).ebx), (3, 1 | 1 << 8));
    }

    #[test]
    fn a_guest_sees_a_hypervisor_and_the_deadline_timer() {
        let one = |deadline| {
            leaves(&host(), &cpus(1, 1, 1), 0, deadline)
                .into_iter()
                .find(|l| l.function == 1)
                .unwrap()
        };
        assert_eq!(one(true).ecx, HYPERVISOR | TSC_DEADLINE);
        assert_eq!(one(false).ecx, HYPERVISOR);
        assert_eq!(one(true).edx & HTT, 0);
    }
}
