//! Named models of processors: what guests are shown, so that they can move between hosts that have at least that
//! (pure). The names are KubeVirt's and libvirt's, and the levels of the x86-64 psABI.

use kvm_bindings::kvm_cpuid_entry2;

use super::profile::Profile;

/// A model: its name, the one that it extends, what it has beyond that.
struct Model(&'static str, &'static str, &'static str);

/// What no model is without.
const BASE: &str = "x86-64-v1";

const MODELS: [Model; 19] = [
    Model(
        BASE,
        "",
        "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 syscall nx \
         lm",
    ),
    Model("x86-64-v2", BASE, "cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3"),
    Model(
        "x86-64-v3",
        "x86-64-v2",
        "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave",
    ),
    Model(
        "x86-64-v4",
        "x86-64-v3",
        "avx512bw avx512cd avx512dq avx512f avx512vl",
    ),
    Model("Nehalem", "x86-64-v2", ""),
    Model("Nehalem-IBRS", "Nehalem", "spec_ctrl"),
    Model("Westmere", "Nehalem", "aes pclmulqdq"),
    Model("SandyBridge", "Westmere", "avx rdtscp xsave xsaveopt"),
    Model("IvyBridge", "SandyBridge", "erms f16c fsgsbase rdrand smep"),
    Model(
        "Haswell-noTSX",
        "IvyBridge",
        "abm avx2 bmi1 bmi2 fma invpcid movbe pcid",
    ),
    Model(
        "Broadwell-noTSX",
        "Haswell-noTSX",
        "3dnowprefetch adx rdseed smap",
    ),
    Model(
        "Skylake-Client-noTSX-IBRS",
        "Broadwell-noTSX",
        "spec_ctrl xgetbv1 xsavec",
    ),
    Model(
        "Skylake-Server-noTSX-IBRS",
        "Skylake-Client-noTSX-IBRS",
        "avx512bw avx512cd avx512dq avx512f avx512vl clflushopt clwb pdpe1gb pku",
    ),
    Model(
        "Cascadelake-Server-noTSX",
        "Skylake-Server-noTSX-IBRS",
        "arch_capabilities avx512_vnni spec_ctrl_ssbd",
    ),
    Model(
        "Icelake-Server-noTSX",
        "Cascadelake-Server-noTSX",
        "avx512_bitalg avx512_vbmi2 avx512_vpopcntdq avx512vbmi gfni la57 umip vaes vpclmulqdq wbnoinvd",
    ),
    Model(
        "EPYC",
        "x86-64-v3",
        "3dnowprefetch adx aes clflushopt cr8_legacy fsgsbase fxsr_opt misalignsse mmxext osvw pclmulqdq pdpe1gb \
         rdrand rdseed rdtscp sha_ni smap smep sse4a xgetbv1 xsavec xsaveopt",
    ),
    Model("EPYC-IBPB", "EPYC", "ibpb"),
    Model(
        "EPYC-Rome",
        "EPYC-IBPB",
        "clwb clzero perfctr_core rdpid stibp umip wbnoinvd xsaveerptr",
    ),
    Model(
        "EPYC-Milan",
        "EPYC-Rome",
        "erms fsrm ibrs invpcid pcid pku ssbd vaes vpclmulqdq",
    ),
];

/// What KVM itself gives guests, whatever the processor.
const ALWAYS: [&str; 2] = ["tsc_adjust", "x2apic"];

/// The names of all models.
pub fn names() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|model| model.0)
}

/// What a processor of this model can do, `None` where there is no such model.
pub fn profile(name: &str) -> Option<Profile> {
    let mut features = Vec::new();
    let mut next = name;
    while !next.is_empty() {
        let Model(_, extends, adds) = MODELS.iter().find(|model| model.0 == next)?;
        features.extend(adds.split_whitespace());
        next = extends;
    }
    Some(features.into_iter().collect())
}

/// Leaves of a host cut down to a model.
///
/// # Errors
/// The features that the host lacks for it.
pub fn cut(leaves: &mut [kvm_cpuid_entry2], model: &Profile) -> Result<(), Vec<String>> {
    let host = Profile::of(leaves);
    let missing: Vec<String> = model.missing_in(&host).into_iter().map(str::to_owned).collect();
    if !missing.is_empty() {
        return Err(missing);
    }
    let keep: Profile = model.names().chain(ALWAYS).collect();
    keep.mask(leaves);
    // Parts of the extended state that no feature is left for (Intel SDM 1, §13.1).
    let parts = [
        (2, "avx"),
        (5, "avx512f"),
        (6, "avx512f"),
        (7, "avx512f"),
        (9, "pku"),
    ];
    let kept = |bit: u32| parts.iter().any(|(part, name)| *part == bit && keep.has(name)) || bit < 2;
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
            leaf(0xd, 0, 0x2ff),
            leaf(0xd, 1, !0),
            leaf(0x8000_0001, 0, !0),
            leaf(0x8000_0008, 0, !0),
        ]
    }

    #[test]
    fn every_model_extends_one_that_is_there_and_names_features_that_are_known() {
        for name in names() {
            let model = profile(name).unwrap();
            // A host that has everything lacks what is written wrong.
            assert_eq!(model.missing_in(&Profile::of(&host())), [] as [&str; 0], "{name}");
            assert!(profile(BASE).unwrap().missing_in(&model).is_empty(), "{name}");
        }
        assert!(profile("Pentium").is_none());
    }

    #[test]
    fn a_guest_is_shown_its_model_and_what_the_monitor_adds() {
        let mut leaves = host();
        let model = profile("x86-64-v2").unwrap();
        cut(&mut leaves, &model).unwrap();
        let shown = Profile::of(&leaves);
        let beyond = shown.missing_in(&model);
        assert_eq!(beyond, ["tsc_adjust", "x2apic"]);
        // What says that there is a hypervisor, or what the guest sets itself, stays.
        assert_eq!(leaves[0].ecx >> 31, 1);
        // No vector registers beyond those of SSE.
        assert_eq!(leaves[3].eax, 3);
    }

    #[test]
    fn what_the_host_lacks_is_named() {
        let mut leaves = host();
        leaves[1].ebx &= !(1 << 16);
        let missing = cut(&mut leaves, &profile("Skylake-Server-noTSX-IBRS").unwrap()).unwrap_err();
        assert_eq!(missing, ["avx512f"]);
        cut(&mut leaves, &profile("Broadwell-noTSX").unwrap()).unwrap();
    }
}
