//! Which features of the host's processor a guest is shown (pure).

use std::collections::BTreeMap;
use std::fmt;

use kvm_bindings::kvm_cpuid_entry2;

use super::profile::Profile;

/// With what the guest begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Base {
    /// All that the hypervisor supports.
    #[default]
    Host,
    /// What of that has a name: what can be asked for elsewhere.
    Named,
    /// These alone, which the host must have.
    Only(Profile),
}

/// What becomes of one feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It is shown, whether or not the processor has it.
    Force,
    /// It is shown, and the host must have it.
    Require,
    /// It is shown where the host has it.
    Optional,
    /// It is hidden.
    Disable,
    /// The host must not have it.
    Forbid,
}

/// Which features of the host's processor a guest is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuFeatures {
    /// With what it begins.
    pub base: Base,
    /// What differs from that, by the names of [`Profile`].
    pub policies: BTreeMap<String, Policy>,
}

/// Why a host cannot show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    lacks: Vec<String>,
    forbidden: Vec<String>,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        if !self.lacks.is_empty() {
            words.push(format!(
                "lacks what the guest is to be shown: {}",
                self.lacks.join(", ")
            ));
        }
        if !self.forbidden.is_empty() {
            words.push(format!(
                "has what it must not have: {}",
                self.forbidden.join(", ")
            ));
        }
        write!(f, "this host's processor {}", words.join(", and "))
    }
}

/// What KVM itself gives guests, whatever the processor.
const ALWAYS: [&str; 2] = ["tsc_adjust", "x2apic"];

/// Parts of the extended state, and the feature that each is there for (Intel SDM 1, §13.1).
const STATE: [(u32, &str); 9] = [
    (2, "avx"),
    (3, "mpx"),
    (4, "mpx"),
    (5, "avx512f"),
    (6, "avx512f"),
    (7, "avx512f"),
    (9, "pku"),
    (17, "amx_tile"),
    (18, "amx_tile"),
];

impl CpuFeatures {
    /// All names in it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let base = match &self.base {
            Base::Only(these) => Some(these.names()),
            Base::Host | Base::Named => None,
        };
        base.into_iter()
            .flatten()
            .chain(self.policies.keys().map(String::as_str))
    }

    /// What a host that has `host` shows.
    fn shown(&self, host: &Profile) -> Result<Profile, Unfit> {
        let with = |policy| {
            self.policies
                .iter()
                .filter(move |(_, is)| **is == policy)
                .map(|(name, _)| name.as_str())
        };
        let base: Profile = match &self.base {
            Base::Host => host.clone(),
            Base::Named => host.names().filter(|name| Profile::knows(name)).collect(),
            Base::Only(these) => these
                .names()
                .chain(ALWAYS.into_iter().filter(|name| host.has(name)))
                .collect(),
        };
        let hidden = |name: &&str| {
            let policy = self.policies.get(*name);
            !matches!(policy, Some(Policy::Disable | Policy::Forbid))
        };
        let wanted: Profile = base.names().filter(hidden).chain(with(Policy::Require)).collect();
        let forced: Profile = with(Policy::Force).collect();
        let lacks = wanted
            .missing_in(host)
            .into_iter()
            .filter(|name| !forced.has(name));
        let unfit = Unfit {
            lacks: lacks.map(str::to_owned).collect(),
            forbidden: with(Policy::Forbid)
                .filter(|name| host.has(name))
                .map(str::to_owned)
                .collect(),
        };
        if !unfit.lacks.is_empty() || !unfit.forbidden.is_empty() {
            return Err(unfit);
        }
        let optional = with(Policy::Optional).filter(|name| host.has(name));
        Ok(wanted.names().chain(optional).chain(forced.names()).collect())
    }

    /// Changes a host's leaves so that a guest is shown what it is to see.
    ///
    /// # Errors
    /// What the host lacks, or must not have.
    pub fn show(&self, leaves: &mut [kvm_cpuid_entry2]) -> Result<(), Unfit> {
        if *self == CpuFeatures::default() {
            return Ok(());
        }
        let shown = self.shown(&Profile::of(leaves))?;
        shown.mask(leaves);
        let forced = self
            .policies
            .iter()
            .filter(|(_, policy)| **policy == Policy::Force);
        forced.for_each(|(name, _)| Profile::force(leaves, name));
        // Parts of the extended state for which no feature is left; those that are not listed are the host's own affair.
        let kept = |bit: u32| {
            let mut of = STATE.iter().filter(|(part, _)| *part == bit).peekable();
            match of.peek() {
                None => bit < 2 || self.base == Base::Host,
                Some(_) => of.any(|(_, name)| shown.has(name)),
            }
        };
        for leaf in leaves
            .iter_mut()
            .filter(|leaf| leaf.function == 0xd && leaf.index == 0)
        {
            leaf.eax &= (0..32)
                .filter(|bit| kept(*bit))
                .fold(0, |mask, bit| mask | 1 << bit);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Vec<kvm_cpuid_entry2> {
        let leaf = |function, index, value: u32| kvm_cpuid_entry2 {
            function,
            index,
            eax: value,
            ebx: value,
            ecx: value,
            edx: value,
            ..Default::default()
        };
        vec![
            leaf(1, 0, !0),
            leaf(7, 0, !0),
            leaf(7, 1, !0),
            leaf(0xd, 0, 0x6_02ff),
            leaf(0xd, 1, !0),
            leaf(0x8000_0001, 0, !0),
            leaf(0x8000_0008, 0, !0),
        ]
    }

    fn only(names: &str) -> Base {
        Base::Only(names.split_whitespace().collect())
    }

    fn asked(base: Base, policies: &[(&str, Policy)]) -> CpuFeatures {
        let policies = policies
            .iter()
            .map(|(name, policy)| ((*name).to_owned(), *policy));
        CpuFeatures {
            base,
            policies: policies.collect(),
        }
    }

    #[test]
    fn each_policy_does_what_it_says() {
        use Policy::{Disable, Forbid, Force, Optional, Require};
        let host: Profile = "sse2 aes avx 1.0.ecx.16".split_whitespace().collect();
        let table = [
            (asked(Base::Host, &[]), Ok("1.0.ecx.16 aes avx sse2")),
            (asked(Base::Named, &[]), Ok("aes avx sse2")),
            (asked(only("sse2"), &[]), Ok("sse2")),
            (asked(only("sse2"), &[("aes", Require)]), Ok("aes sse2")),
            (
                asked(only("sse2"), &[("aes", Optional), ("avx2", Optional)]),
                Ok("aes sse2"),
            ),
            (asked(only("sse2 aes"), &[("aes", Disable)]), Ok("sse2")),
            (asked(Base::Named, &[("avx2", Forbid)]), Ok("aes avx sse2")),
            (asked(only("sse2"), &[("avx2", Force)]), Ok("avx2 sse2")),
            (asked(only("sse2 avx2"), &[("avx2", Disable)]), Ok("sse2")),
            (
                asked(only("sse2 avx2"), &[("gfni", Require), ("aes", Forbid)]),
                Err(
                    "this host's processor lacks what the guest is to be shown: avx2, gfni, and has what it must not \
                     have: aes",
                ),
            ),
        ];
        for (asked, expected) in table {
            let shown = asked.shown(&host);
            let text = shown
                .as_ref()
                .map(|shown| shown.names().collect::<Vec<_>>().join(" "));
            match expected {
                Ok(names) => assert_eq!(text, Ok(names.to_owned()), "{asked:?}"),
                Err(why) => assert_eq!(shown.unwrap_err().to_string(), why),
            }
        }
    }

    #[test]
    fn a_guest_is_shown_that_and_what_the_monitor_adds() {
        let mut leaves = host();
        let base = only("fpu sse2 popcnt");
        asked(base.clone(), &[]).show(&mut leaves).unwrap();
        let Base::Only(asked_for) = base else {
            unreachable!()
        };
        assert_eq!(
            Profile::of(&leaves).missing_in(&asked_for),
            ["tsc_adjust", "x2apic"]
        );
        // What says that there is a hypervisor, or what the guest sets itself, stays.
        assert_eq!(leaves[0].ecx >> 31, 1);
        // No vector registers beyond those of SSE.
        assert_eq!(leaves[3].eax, 3);
    }

    #[test]
    fn registers_go_with_the_features_that_use_them() {
        let table = [
            (asked(Base::Host, &[("avx512f", Policy::Disable)]), 0x6_021f),
            (asked(Base::Host, &[("amx_tile", Policy::Disable)]), 0x0_02ff),
            (asked(Base::Named, &[]), 0x6_02ff),
            (asked(only("avx pku"), &[]), 0x0_0207),
        ];
        for (asked, state) in table {
            let mut leaves = host();
            asked.show(&mut leaves).unwrap();
            assert_eq!(leaves[3].eax, state, "{asked:?}");
        }
    }

    #[test]
    fn what_is_forced_is_shown_by_a_host_that_lacks_it() {
        let mut leaves = host();
        leaves[1].ebx &= !(1 << 16);
        let forced = asked(Base::Named, &[("avx512f", Policy::Force)]);
        forced.show(&mut leaves).unwrap();
        assert!(Profile::of(&leaves).has("avx512f"));
    }
}
