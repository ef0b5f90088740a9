//! Processors by name: models that guests can be shown, the features that make them up, and the labels by which nodes say which
//! they have. The names are KubeVirt's and libvirt's, the levels those of the x86-64 psABI; what each model has follows from
//! its maker's documentation of CPUID, as far as a guest can make use of it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::domain::{Cpu, CpuFeature};

/// Label of a node: it has this model, and machines may start with it.
pub const MODEL_LABEL: &str = "cpu-model.node.kubevirt.io/";
/// Label of a node: machines that were started with this model may move to it.
pub const MOVE_LABEL: &str = "cpu-model-migration.node.kubevirt.io/";
/// Label of a node: it has this feature.
pub const FEATURE_LABEL: &str = "cpu-feature.node.kubevirt.io/";
/// Label of a node: who made its processor.
pub const VENDOR_LABEL: &str = "cpu-vendor.node.kubevirt.io/";
/// Label of a node: the model that `host-model` comes to there.
pub const HOST_LABEL: &str = "host-model-cpu.node.kubevirt.io/";
/// Label of a node: a feature that `host-model` has beyond that.
pub const HOST_FEATURE_LABEL: &str = "host-model-required-features.node.kubevirt.io/";

/// A model: its name, its maker where only that makes it, the model that it extends, and what it has beyond that.
struct Model(&'static str, &'static str, &'static str, &'static str);

const MODELS: [Model; 20] = [
    Model(
        "x86-64-v1",
        "",
        "",
        "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 syscall nx lm",
    ),
    Model(
        "x86-64-v2",
        "",
        "x86-64-v1",
        "cx16 lahf_lm pni popcnt sse4.1 sse4.2 ssse3",
    ),
    Model(
        "x86-64-v3",
        "",
        "x86-64-v2",
        "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave",
    ),
    Model(
        "x86-64-v4",
        "",
        "x86-64-v3",
        "avx512bw avx512cd avx512dq avx512f avx512vl",
    ),
    Model("Nehalem", INTEL, "x86-64-v2", ""),
    Model("Nehalem-IBRS", INTEL, "Nehalem", "spec-ctrl"),
    Model("Westmere", INTEL, "Nehalem", "aes pclmuldq"),
    Model("SandyBridge", INTEL, "Westmere", "avx rdtscp xsave xsaveopt"),
    Model(
        "IvyBridge",
        INTEL,
        "SandyBridge",
        "erms f16c fsgsbase rdrand smep",
    ),
    Model(
        "Haswell-noTSX",
        INTEL,
        "IvyBridge",
        "abm avx2 bmi1 bmi2 fma invpcid movbe pcid",
    ),
    Model(
        "Broadwell-noTSX",
        INTEL,
        "Haswell-noTSX",
        "3dnowprefetch adx rdseed smap",
    ),
    Model(
        "Skylake-Client-noTSX-IBRS",
        INTEL,
        "Broadwell-noTSX",
        "spec-ctrl xgetbv1 xsavec",
    ),
    Model(
        "Skylake-Server-noTSX-IBRS",
        INTEL,
        "Skylake-Client-noTSX-IBRS",
        "avx512bw avx512cd avx512dq avx512f avx512vl clflushopt clwb pdpe1gb pku",
    ),
    Model(
        "Cascadelake-Server-noTSX",
        INTEL,
        "Skylake-Server-noTSX-IBRS",
        "arch-capabilities avx512vnni ssbd",
    ),
    Model(
        "Icelake-Server-noTSX",
        INTEL,
        "Cascadelake-Server-noTSX",
        "avx512-vpopcntdq avx512bitalg avx512vbmi avx512vbmi2 gfni la57 umip vaes vpclmulqdq wbnoinvd",
    ),
    Model(
        "EPYC",
        AMD,
        "x86-64-v3",
        "3dnowprefetch adx aes clflushopt cr8legacy fsgsbase fxsr_opt misalignsse mmxext osvw pclmuldq pdpe1gb rdrand rdseed \
         rdtscp sha-ni smap smep sse4a xgetbv1 xsavec xsaveopt",
    ),
    Model("EPYC-IBPB", AMD, "EPYC", "ibpb"),
    Model(
        "EPYC-Rome",
        AMD,
        "EPYC-IBPB",
        "amd-stibp clwb clzero perfctr_core rdpid umip wbnoinvd xsaveerptr",
    ),
    Model(
        "EPYC-Milan",
        AMD,
        "EPYC-Rome",
        "amd-ssbd erms fsrm ibrs invpcid pcid pku vaes vpclmulqdq",
    ),
    Model(
        "EPYC-Genoa",
        AMD,
        "EPYC-Milan",
        "avx512-bf16 avx512-vpopcntdq avx512bitalg avx512bw avx512cd avx512dq avx512f avx512ifma avx512vbmi avx512vbmi2 \
         avx512vl avx512vnni gfni la57",
    ),
];

/// Names of makers, as nodes are labelled with them.
pub const INTEL: &str = "Intel";
/// The same.
pub const AMD: &str = "AMD";

/// What `cpu.model` may be beside the name of a model.
pub const HOST_MODELS: [&str; 2] = ["host-model", "host-passthrough"];

/// All features that have a name.
const FEATURES: &str = "3dnow 3dnowext 3dnowprefetch abm acpi adx aes amd-no-ssb amd-psfd amd-ssbd amd-stibp amd_ppin amx-bf16 \
    amx-int8 amx-tile apic arch-capabilities arch-lbr avx avx-vnni avx2 avx512-4fmaps avx512-4vnniw avx512-bf16 avx512-fp16 \
    avx512-vp2intersect avx512-vpopcntdq avx512bitalg avx512bw avx512cd avx512dq avx512er avx512f avx512ifma avx512pf \
    avx512vbmi avx512vbmi2 avx512vl avx512vnni bmi1 bmi2 bpext bus-lock-detect cid cldemote clflush clflushopt clwb clzero cmov \
    core-capability cqm cr8legacy cx16 cx8 dca de ds ds_cpl dtes64 enqcmd erms est extapic f16c flush-l1d fma fma4 fpu fsgsbase \
    fsrc fsrm fsrs fxsr fxsr_opt fzrm gfni hle ia64 ibpb ibrs ibs ibt intel-pt invpcid irperf la57 lahf_lm lm lwp mca mce md-clear \
    misalignsse mmx mmxext monitor movbe movdir64b movdiri mp mpx msr mtrr mwaitx nodeid_msr nx osvw pae pat pbe pcid pclmuldq \
    pconfig pdcm pdpe1gb perfctr_core perfctr_llc perfctr_nb pge pks pku pn pni popcnt prefetchwt1 pse pse36 ptsc rdpid rdrand \
    rdseed rdt_a rdtscp rtm sdbg sep serialize sgx sgxlc sha-ni shstk skinit smap smep smx spec-ctrl srbds-ctrl ss ssbd sse sse2 \
    sse4.1 sse4.2 sse4a ssse3 stibp stibp-always-on svm syscall tbm tce tm tm2 tme tsc tsc_adjust tsx-ldtrk uintr umip vaes \
    virt-ssbd vme vmx vpclmulqdq waitpkg wbnoinvd wdt x2apic xfd xgetbv1 xop xsave xsavec xsaveerptr xsaveopt xsaves xtpr";

/// The names of all models.
pub fn models() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|model| model.0)
}

/// The names of all features.
pub fn features() -> impl Iterator<Item = &'static str> {
    FEATURES.split_whitespace()
}

/// The features of a model, `None` where there is none of this name.
pub fn model(name: &str) -> Option<BTreeSet<&'static str>> {
    let mut features = BTreeSet::new();
    let mut next = name;
    while !next.is_empty() {
        let Model(_, _, extends, adds) = MODELS.iter().find(|model| model.0 == next)?;
        features.extend(adds.split_whitespace());
        next = extends;
    }
    Some(features)
}

/// The models that a processor with these features is, or is more than.
pub fn models_in(features: &BTreeSet<String>) -> impl Iterator<Item = &'static str> {
    models()
        .filter(|name| model(name).is_some_and(|has| has.iter().all(|feature| features.contains(*feature))))
}

/// A host's processor, as far as guests can be shown it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Host {
    /// Its maker; empty where that is another one than those that are known here.
    pub vendor: String,
    /// All its features.
    pub features: BTreeSet<String>,
}

/// A processor as guests are shown it: a model, and what it has beyond that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Processor {
    /// Its maker; empty where that is another one than those that are known here.
    pub vendor: String,
    /// The model.
    pub model: String,
    /// The features beyond it.
    pub features: BTreeSet<String>,
}

impl Processor {
    /// The one with exactly these features: the largest model that is not more and that `may` be named, of any maker's where the
    /// vendor is not known to make one. `None` where even the smallest is more.
    pub fn of(vendor: &str, features: &BTreeSet<String>, may: impl Fn(&str) -> bool) -> Option<Processor> {
        let makes = |name: &&str| {
            let maker = MODELS.iter().find(|model| model.0 == *name).map(|model| model.1);
            maker.is_some_and(|maker| maker.is_empty() || maker == vendor)
        };
        let size = |name: &&str| model(name).map_or(0, |model| model.len());
        let name = models_in(features)
            .filter(makes)
            .filter(|name| may(name))
            .max_by_key(size)?;
        let has = model(name)?;
        Some(Processor {
            vendor: vendor.to_owned(),
            model: name.to_owned(),
            features: features
                .iter()
                .filter(|feature| !has.contains(feature.as_str()))
                .cloned()
                .collect(),
        })
    }

    /// What a manifest would say to have it.
    pub fn write_to(&self, cpu: &mut Cpu) {
        cpu.model = Some(self.model.clone());
        let require = |name: &String| CpuFeature {
            name: name.clone(),
            policy: Some("require".to_owned()),
        };
        cpu.features = self.features.iter().map(require).collect();
    }
}

impl CpuFeature {
    /// Its policy.
    pub fn policy(&self) -> &str {
        self.policy
            .as_deref()
            .filter(|policy| !policy.is_empty())
            .unwrap_or("require")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &str) -> BTreeSet<String> {
        names.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn every_model_extends_one_that_is_there_and_has_features_that_have_names() {
        let known: BTreeSet<_> = features().collect();
        assert_eq!(known.len(), features().count(), "none twice");
        for name in models() {
            let model = model(name).unwrap();
            let unknown: Vec<_> = model.difference(&known).collect();
            assert!(unknown.is_empty(), "{name}: {unknown:?}");
            assert!(model.is_superset(&super::model("x86-64-v1").unwrap()), "{name}");
        }
        assert!(model("Pentium").is_none());
    }

    #[test]
    fn a_processor_is_the_largest_model_of_its_maker_and_what_it_has_beyond() {
        let of = |model: &str, more: &str| {
            let mut all = set(more);
            all.extend(super::model(model).unwrap().into_iter().map(str::to_owned));
            all
        };
        let haswell = of("Haswell-noTSX", "gfni");
        let any = |_: &str| true;
        let table = [
            ("Intel", &haswell, "Haswell-noTSX", "gfni"),
            ("AMD", &haswell, "x86-64-v3", ""),
            ("Intel", &of("Nehalem", "avx2"), "Nehalem", "avx2"),
            ("AMD", &of("EPYC-Genoa", ""), "EPYC-Genoa", ""),
            ("", &of("x86-64-v1", "popcnt"), "x86-64-v1", "popcnt"),
        ];
        for (vendor, features, model, beyond) in table {
            let processor = Processor::of(vendor, features, any).unwrap();
            assert_eq!(
                (processor.model.as_str(), processor.vendor.as_str()),
                (model, vendor)
            );
            let mut all = processor.features.clone();
            if !beyond.is_empty() {
                assert!(processor.features.is_superset(&set(beyond)), "{model}");
            }
            all.extend(super::model(model).unwrap().into_iter().map(str::to_owned));
            assert_eq!(&all, features, "{model}: nothing more, nothing less");
        }
        let older = Processor::of("Intel", &haswell, |name| name != "Haswell-noTSX").unwrap();
        assert_eq!(older.model, "IvyBridge");
        assert!(older.features.contains("avx2"));
        assert_eq!(Processor::of("Intel", &set("fpu sse2"), any), None);
    }
}
