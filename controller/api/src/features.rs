//! `domain.features` and `domain.clock`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

/// ACPI, APIC, Hyper-V and their like.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Features {
    /// ACPI; on by default.
    pub acpi: Option<FeatureState>,
    /// APIC; on by default.
    pub apic: Option<FeatureApic>,
    /// Hyper-V enlightenments, one by one.
    pub hyperv: Option<FeatureHyperv>,
    /// All Hyper-V enlightenments that the host has.
    pub hyperv_passthrough: Option<FeatureState>,
    /// System management mode.
    pub smm: Option<FeatureState>,
    /// How KVM shows itself.
    pub kvm: Option<FeatureKvm>,
    /// Paravirtual spinlocks.
    pub pvspinlock: Option<FeatureState>,
}

/// Whether a feature is on.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FeatureState {
    /// True when absent.
    pub enabled: Option<bool>,
}

/// The APIC.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FeatureApic {
    /// True when absent.
    pub enabled: Option<bool>,
    /// Paravirtual end of interrupt.
    pub end_of_interrupt: Option<bool>,
}

/// How KVM shows itself.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FeatureKvm {
    /// Whether the KVM signature is hidden from CPUID.
    pub hidden: Option<bool>,
}

/// Hyper-V enlightenments.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FeatureHyperv {
    /// No watchdog timeouts in the guest.
    pub relaxed: Option<FeatureState>,
    /// Paravirtual APIC.
    pub vapic: Option<FeatureState>,
    /// Spinlock retries.
    pub spinlocks: Option<FeatureSpinlocks>,
    /// Virtual processor index.
    pub vpindex: Option<FeatureState>,
    /// Run time of virtual processors.
    pub runtime: Option<FeatureState>,
    /// Synthetic interrupt controller.
    pub synic: Option<FeatureState>,
    /// Synthetic timers.
    pub synictimer: Option<SynicTimer>,
    /// Reset by hypercall.
    pub reset: Option<FeatureState>,
    /// Vendor name in CPUID.
    pub vendorid: Option<FeatureVendorId>,
    /// TSC and APIC frequencies.
    pub frequencies: Option<FeatureState>,
    /// Notice of a changed TSC frequency.
    pub reenlightenment: Option<FeatureState>,
    /// Paravirtual TLB flush.
    pub tlbflush: Option<FeatureTlbFlush>,
    /// Paravirtual IPI.
    pub ipi: Option<FeatureState>,
    /// Enlightened VMCS.
    pub evmcs: Option<FeatureState>,
}

/// Spinlock retries.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FeatureSpinlocks {
    /// True when absent.
    pub enabled: Option<bool>,
    /// How many; 4096 at least and by default.
    #[serde(rename = "spinlocks")]
    pub retries: Option<u32>,
}

/// Synthetic timers.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SynicTimer {
    /// True when absent.
    pub enabled: Option<bool>,
    /// Direct mode.
    pub direct: Option<FeatureState>,
}

/// Vendor name in CPUID.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FeatureVendorId {
    /// True when absent.
    pub enabled: Option<bool>,
    /// Up to twelve characters.
    pub vendorid: Option<String>,
}

/// Paravirtual TLB flush.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FeatureTlbFlush {
    /// True when absent.
    pub enabled: Option<bool>,
    /// Direct flush for nested guests.
    pub direct: Option<FeatureState>,
    /// Extended ranges.
    pub extended: Option<FeatureState>,
}

/// Clock and timers. At most one of `utc` and `timezone`.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Clock {
    /// The clock starts at UTC.
    pub utc: Option<ClockUtc>,
    /// The clock starts at the local time of a zone: `Europe/Berlin`.
    pub timezone: Option<String>,
    /// Timers.
    pub timer: Option<Timer>,
}

/// UTC, shifted perhaps.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClockUtc {
    /// Seconds from UTC.
    pub offset_seconds: Option<i64>,
}

/// Timers.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timer {
    /// High precision event timer.
    pub hpet: Option<TickTimer>,
    /// kvmclock.
    pub kvm: Option<PlainTimer>,
    /// Programmable interval timer.
    pub pit: Option<TickTimer>,
    /// Real time clock.
    pub rtc: Option<RtcTimer>,
    /// Hyper-V reference time.
    pub hyperv: Option<PlainTimer>,
}

/// A timer that is there or not.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlainTimer {
    /// True when absent.
    pub present: Option<bool>,
}

/// A timer with missed ticks.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TickTimer {
    /// True when absent.
    pub present: Option<bool>,
    /// What happens to missed ticks: `delay`, `catchup`, `merge` or `discard`.
    pub tick_policy: Option<String>,
}

/// The real time clock.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RtcTimer {
    /// True when absent.
    pub present: Option<bool>,
    /// What happens to missed ticks: `delay` or `catchup`.
    pub tick_policy: Option<String>,
    /// Which time it follows: `guest` or `wall`.
    pub track: Option<String>,
}
