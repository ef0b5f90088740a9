//! ACPI code of PCI hot-plug: a device for each slot of the bus, which can be ejected, and a method that tells the guest
//! what came and what is to go (ACPI 6.5, §6.3, §5.6.6). The registers are [`nacelle_devices::pci::hotplug`].

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Local, Method, Name,
    Notify, OpRegion, OpRegionSpace, Path, Store,
};
use nacelle_devices::pci::hotplug;

use super::acpi::{Bytes, Raw};
use crate::memory::HOT_PLUG_BASE;

/// The method that looks for what came and what is to go, by its whole name.
pub(super) const SCAN: &str = "\\_SB_.PCI0.SCAN";

/// Notifications to a device (§5.6.6): there may be something new; it is asked to go.
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

/// What the bridge's scope holds for hot-plug of the slots up to `last`.
pub(super) fn slots(last: u8) -> Vec<u8> {
    let (base, size) = (HOT_PLUG_BASE as u32, hotplug::SIZE as u32);
    let mut aml = OpRegion::new("HPRG".into(), OpRegionSpace::SystemMemory, &base, &size).bytes();
    Field::new(
        "HPRG".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        // In the order of the registers' offsets.
        vec![
            FieldEntry::Named(*b"HPIN", 32),
            FieldEntry::Named(*b"HPRQ", 32),
            FieldEntry::Named(*b"HPEJ", 32),
        ],
    )
    .to_aml_bytes(&mut aml);
    let (mut came, mut goes) = (Vec::new(), Vec::new());
    for slot in 1..=last {
        let (name, bit) = (format!("S{slot:03}"), 1u32 << slot);
        let register = Path::new("HPEJ");
        let store = Store::new(&register, &bit);
        let eject = Method::new("_EJ0".into(), 1, false, vec![&store]);
        Device::new(
            Path::new(&name),
            vec![
                &Name::new("_ADR".into(), &(u32::from(slot) << 16)),
                &Name::new("_SUN".into(), &slot),
                &eject,
            ],
        )
        .to_aml_bytes(&mut aml);
        for (what, slots, local) in [
            (DEVICE_CHECK, &mut came, Local(0)),
            (EJECT_REQUEST, &mut goes, Local(1)),
        ] {
            let mut tell = And::new(&Local(2), &local, &bit).bytes();
            If::new(&Local(2), vec![&Notify::new(&Path::new(&name), &what)]).to_aml_bytes(&mut tell);
            slots.extend(tell);
        }
    }
    let scan = [
        Store::new(&Local(0), &Path::new("HPIN")).bytes(),
        Store::new(&Local(1), &Path::new("HPRQ")).bytes(),
        If::new(&Local(0), vec![&Raw(came)]).bytes(),
        If::new(&Local(1), vec![&Raw(goes)]).bytes(),
    ];
    Method::new("SCAN".into(), 0, true, vec![&Raw(scan.concat())]).to_aml_bytes(&mut aml);
    aml
}
