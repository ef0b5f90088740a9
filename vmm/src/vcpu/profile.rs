//! What a processor can do, as a set of names: to compare hosts, and to refuse a move before it begins.

use std::collections::BTreeSet;

use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Features of a processor, by the names that Linux shows in `/proc/cpuinfo`; one without a name is named by its
/// leaf, subleaf, register and bit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Profile(BTreeSet<String>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}
use Register::{Eax, Ebx, Ecx, Edx};

/// A register of CPUID whose bits are features, their names from bit 0 on; `-` is a bit that says nothing of the
/// processor (what the monitor or the guest sets), `?` one without a name here.
struct Word {
    leaf: u32,
    subleaf: u32,
    register: Register,
    names: &'static str,
}

const WORDS: [Word; 10] = [
    Word {
        leaf: 1,
        subleaf: 0,
        register: Edx,
        names: "fpu vme de pse tsc msr pae mce cx8 apic ? sep mtrr pge mca cmov pat pse36 pn clflush ? dts acpi \
                mmx fxsr sse sse2 ss - tm ia64 pbe",
    },
    Word {
        leaf: 1,
        subleaf: 0,
        register: Ecx,
        names: "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm ? pcid dca \
                sse4_1 sse4_2 x2apic movbe popcnt - aes xsave - avx f16c rdrand -",
    },
    Word {
        leaf: 7,
        subleaf: 0,
        register: Ebx,
        names: "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a avx512f avx512dq \
                rdseed adx smap avx512ifma ? clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw \
                avx512vl",
    },
    Word {
        leaf: 7,
        subleaf: 0,
        register: Ecx,
        names: "prefetchwt1 avx512vbmi umip pku - waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni \
                avx512_bitalg tme avx512_vpopcntdq ? la57 ? ? ? ? ? rdpid ? bus_lock_detect cldemote ? movdiri \
                movdir64b enqcmd sgx_lc pks",
    },
    Word {
        leaf: 7,
        subleaf: 0,
        register: Edx,
        names: "? ? avx512_4vnniw avx512_4fmaps fsrm uintr ? ? avx512_vp2intersect srbds_ctrl md_clear ? ? ? \
                serialize - tsxldtrk ? pconfig arch_lbr ibt ? amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl \
                intel_stibp flush_l1d arch_capabilities core_capabilities spec_ctrl_ssbd",
    },
    Word {
        leaf: 7,
        subleaf: 1,
        register: Eax,
        names: "? ? ? ? avx_vnni avx512_bf16 ? ? ? ? fzrm fsrs fsrc",
    },
    Word {
        leaf: 0xd,
        subleaf: 1,
        register: Eax,
        names: "xsaveopt xsavec xgetbv1 xsaves xfd",
    },
    Word {
        leaf: 0x8000_0001,
        subleaf: 0,
        register: Edx,
        // The low bits repeat leaf 1.
        names: "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp ? lm 3dnowext \
                3dnow",
    },
    Word {
        leaf: 0x8000_0001,
        subleaf: 0,
        register: Ecx,
        names: "lahf_lm - svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt ? lwp \
                fma4 tce ? nodeid_msr ? tbm - perfctr_core perfctr_nb ? bpext ptsc perfctr_llc mwaitx",
    },
    Word {
        leaf: 0x8000_0008,
        subleaf: 0,
        register: Ebx,
        names: "clzero irperf xsaveerptr ? ? ? ? ? ? wbnoinvd ? ? ibpb ? ibrs stibp ? stibp_always_on ? ? ? ? ? \
                amd_ppin ssbd virt_ssbd amd_ssb_no ? psfd",
    },
];

impl Profile {
    /// What these leaves say.
    pub fn of(leaves: &[kvm_cpuid_entry2]) -> Profile {
        let mut features = BTreeSet::new();
        for word in &WORDS {
            let leaf = leaves
                .iter()
                .find(|leaf| leaf.function == word.leaf && leaf.index == word.subleaf);
            let bits = leaf.map_or(0, |leaf| word.register.of(leaf));
            let mut names = word.names.split_whitespace();
            for bit in 0..32 {
                let name = names.next().unwrap_or("?");
                if bits & 1 << bit != 0 && name != "-" {
                    features.insert(match name {
                        "?" => format!("{:x}.{:x}.{:?}.{bit}", word.leaf, word.subleaf, word.register)
                            .to_lowercase(),
                        name => name.to_owned(),
                    });
                }
            }
        }
        Profile(features)
    }

    /// What a guest with this profile could miss on a host with that one, by name.
    pub fn missing_in<'a>(&'a self, host: &'a Profile) -> Vec<&'a str> {
        // It came over a network and goes to somebody's terminal.
        let plain = |name: &&String| name.len() < 40 && name.chars().all(|c| c.is_ascii_graphic());
        self.0
            .difference(&host.0)
            .filter(plain)
            .map(String::as_str)
            .collect()
    }

    /// Whether a guest with this profile can be on a host with that one.
    ///
    /// # Errors
    /// What it would miss.
    pub fn check(&self, host: &Profile) -> Result<()> {
        let missing = self.missing_in(host);
        match missing.is_empty() {
            true => Ok(()),
            false => Err(Error::Cannot(format!(
                "this host's processor lacks what the guest was shown: {}",
                missing.join(", ")
            ))),
        }
    }

    /// Clears in `leaves` every feature that is not in this profile.
    pub fn mask(&self, leaves: &mut [kvm_cpuid_entry2]) {
        for word in &WORDS {
            let mut names = word.names.split_whitespace();
            let keep = (0..32).fold(0, |mask, bit| match names.next().unwrap_or("?") {
                "-" => mask | 1 << bit,
                name if self.has(name) => mask | 1 << bit,
                _ => mask,
            });
            let leaf = leaves
                .iter_mut()
                .find(|leaf| leaf.function == word.leaf && leaf.index == word.subleaf);
            if let Some(leaf) = leaf {
                *word.register.of_mut(leaf) &= keep;
            }
        }
    }

    /// Whether there is a feature of this name.
    pub fn knows(name: &str) -> bool {
        Profile::known().any(|known| known == name)
    }

    /// The names of all features that have one.
    pub fn known() -> impl Iterator<Item = &'static str> {
        let names = WORDS.iter().flat_map(|word| word.names.split_whitespace());
        names.filter(|name| !matches!(*name, "-" | "?"))
    }

    /// Sets in `leaves` this feature, whether or not the processor has it.
    pub fn force(leaves: &mut [kvm_cpuid_entry2], feature: &str) {
        for word in &WORDS {
            let Some(bit) = word.names.split_whitespace().position(|name| name == feature) else {
                continue;
            };
            let leaf = leaves
                .iter_mut()
                .find(|leaf| leaf.function == word.leaf && leaf.index == word.subleaf);
            if let Some(leaf) = leaf {
                *word.register.of_mut(leaf) |= 1 << bit;
            }
        }
    }

    /// Whether this feature is in it.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// What both have: the most that guests can be shown that are to move between the two.
    pub fn common(&self, other: &Profile) -> Profile {
        Profile(self.0.intersection(&other.0).cloned().collect())
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl Register {
    fn of(self, leaf: &kvm_cpuid_entry2) -> u32 {
        match self {
            Eax => leaf.eax,
            Ebx => leaf.ebx,
            Ecx => leaf.ecx,
            Edx => leaf.edx,
        }
    }
}

impl Register {
    fn of_mut(self, leaf: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Eax => &mut leaf.eax,
            Ebx => &mut leaf.ebx,
            Ecx => &mut leaf.ecx,
            Edx => &mut leaf.edx,
        }
    }
}

impl<'a> FromIterator<&'a str> for Profile {
    fn from_iter<T: IntoIterator<Item = &'a str>>(names: T) -> Self {
        Profile(names.into_iter().map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            ecx,
            edx,
            ..Default::default()
        }
    }

    #[test]
    fn features_have_the_names_that_linux_shows() {
        let bits = |bits: &[u32]| bits.iter().fold(0, |word, bit| word | 1 << bit);
        let profile = Profile::of(&[
            leaf(1, bits(&[0, 13, 20, 23, 27, 31]), bits(&[0, 8, 26, 28])),
            leaf(0x8000_0001, bits(&[0, 5, 14]), bits(&[11, 20, 29])),
        ]);
        let names: Vec<_> = profile.names().collect();
        let expected = "80000001.0.ecx.14 abm cx16 cx8 fpu lahf_lm lm nx pni popcnt sse2 sse4_2 syscall";
        assert_eq!(names.join(" "), expected);
    }

    #[test]
    fn every_word_has_at_most_32_names_and_none_twice() {
        let mut seen = BTreeSet::new();
        for word in &WORDS {
            let names: Vec<_> = word.names.split_whitespace().collect();
            assert!(names.len() <= 32, "{names:?}");
            for name in names.into_iter().filter(|name| !matches!(*name, "-" | "?")) {
                assert!(seen.insert(name), "{name}");
            }
        }
    }

    #[test]
    fn what_is_missing_is_named_and_what_is_common_misses_nothing() {
        let (new, old): (Profile, Profile) = (
            ["sse2", "avx2", "avx512f"].into_iter().collect(),
            ["sse2", "avx2", "svm"].into_iter().collect(),
        );
        assert_eq!(new.missing_in(&old), ["avx512f"]);
        let common = new.common(&old);
        assert!(common.missing_in(&old).is_empty() && common.missing_in(&new).is_empty());
        assert_eq!(common.names().collect::<Vec<_>>(), ["avx2", "sse2"]);
    }
}
