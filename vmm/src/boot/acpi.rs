//! ACPI tables: what a guest finds without probing (ACPI 6.5). The hardware-reduced model: no fixed registers,
//! events come through the generic event device.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method, MethodCall, Name,
    Notify, ONE, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use nacelle_devices::platform::ged;
use nacelle_devices::transport::mmio;

use super::{RSDP_ADDRESS, hot_plug};
use crate::memory::{ECAM_BASE, ECAM_SIZE, GED_BASE, PCI32_BASE, PCI32_SIZE, PCI64_SIZE};

const OEM: [u8; 6] = *b"NACELL";
const OEM_TABLE: [u8; 8] = *b"NACELLE ";
const REVISION: u32 = 1;
/// Tables begin here, after the root pointer.
const TABLES: u64 = RSDP_ADDRESS + 0x40;
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// Value of a sleep type that means soft off, and its place in the control register (§4.8.3.7).
pub const SLEEP_TYPE_OFF: u8 = 5;

/// Ports and interrupts that the tables name.
#[derive(Clone, Copy, Debug)]
pub struct Platform {
    /// Sleep control register; the status register follows it.
    pub sleep_port: u16,
    /// Reset register, and the value that resets.
    pub reset: (u16, u8),
    /// Interrupt of the event device.
    pub ged_gsi: u32,
    /// Port of the panic device.
    pub pvpanic_port: u16,
    /// Guest address of the generation id.
    pub vmgenid: u64,
}

/// The PCI bus, as the tables tell of it.
#[derive(Clone, Copy)]
pub struct Pci {
    /// Start of the 64-bit window.
    pub window: u64,
    /// The last slot that devices come to while the guest runs.
    pub last_slot: u8,
}

/// The tables, to be put at [`RSDP_ADDRESS`].
///
/// `apic_ids` are those of the vCPUs in order, `mmio` the addresses and interrupts of virtio-mmio devices.
pub fn tables(platform: &Platform, apic_ids: &[u8], bus: Option<Pci>, mmio: &[(u64, u32)]) -> Vec<u8> {
    let mut image = Image { bytes: Vec::new() };
    let dsdt = image.put(&dsdt(platform, bus, mmio));
    let mut entries = vec![image.put(&fadt(platform, dsdt)), image.put(&madt(apic_ids))];
    if bus.is_some() {
        let mut mcfg = MCFG::new(OEM, OEM_TABLE, REVISION);
        mcfg.add_ecam(ECAM_BASE, 0, 0, 0);
        entries.push(image.put(&mcfg));
    }
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, REVISION);
    for entry in entries {
        xsdt.add_entry(entry);
    }
    let xsdt = image.put(&xsdt);
    let mut bytes = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut bytes);
    bytes.resize((TABLES - RSDP_ADDRESS) as usize, 0);
    bytes.extend(image.bytes);
    bytes
}

/// Tables one after another, each on 16 bytes.
struct Image {
    bytes: Vec<u8>,
}

impl Image {
    fn put(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = TABLES + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

fn fadt(platform: &Platform, dsdt: u64) -> impl Aml {
    let port = |port: u16| GAS::new(Space::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi);
    fadt.reset_reg = port(platform.reset.0);
    fadt.reset_value = platform.reset.1;
    fadt.sleep_control_reg = port(platform.sleep_port);
    fadt.sleep_status_reg = port(platform.sleep_port + 1);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE).into();
    fadt.finalize()
}

fn madt(apic_ids: &[u8]) -> impl Aml {
    let mut madt = MADT::new(
        OEM,
        OEM_TABLE,
        REVISION,
        LocalInterruptController::Address(LOCAL_APIC),
    );
    for (uid, &apic_id) in (0u8..).zip(apic_ids) {
        madt.add_structure(ProcessorLocalApic::new(uid, apic_id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(
        apic_ids.iter().max().map_or(0, |id| id.saturating_add(1)),
        IO_APIC,
        0,
    ));
    madt
}

/// A definition block around AML.
struct Block(Vec<u8>);

impl Aml for Block {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let mut table = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, REVISION);
        table.append_slice(&self.0);
        table.update_checksum();
        table.to_aml_bytes(sink);
    }
}

fn dsdt(platform: &Platform, bus: Option<Pci>, mmio: &[(u64, u32)]) -> Block {
    let mut aml = Vec::new();
    let soft_off = Package::new(vec![&SLEEP_TYPE_OFF]);
    Name::new("_S5_".into(), &soft_off).to_aml_bytes(&mut aml);
    com1(&mut aml);
    clock(&mut aml);
    panic_notice(platform.pvpanic_port, &mut aml);
    events(platform.ged_gsi, platform.vmgenid, bus.is_some(), &mut aml);
    for (index, &(base, gsi)) in mmio.iter().enumerate() {
        virtio_mmio(index, base, gsi, &mut aml);
    }
    if let Some(bus) = bus {
        pci(bus, &mut aml);
    }
    Block(aml)
}

fn hid(id: &str) -> Name {
    Name::new("_HID".into(), &EISAName::new(id))
}

fn com1(aml: &mut Vec<u8>) {
    let io = IO::new(0x3f8, 0x3f8, 0, 8);
    let interrupt = Interrupt::new(true, true, false, false, 4);
    let resources = ResourceTemplate::new(vec![&io, &interrupt]);
    let (id, uid, crs) = (
        hid("PNP0501"),
        Name::new("_UID".into(), &ZERO),
        Name::new("_CRS".into(), &resources),
    );
    let device = Device::new("COM1".into(), vec![&id, &uid, &crs]);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(aml);
}

fn clock(aml: &mut Vec<u8>) {
    let io = IO::new(0x70, 0x70, 0, 2);
    let resources = ResourceTemplate::new(vec![&io]);
    let (id, crs) = (hid("PNP0B00"), Name::new("_CRS".into(), &resources));
    let device = Device::new("RTC_".into(), vec![&id, &crs]);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(aml);
}

fn panic_notice(port: u16, aml: &mut Vec<u8>) {
    let io = IO::new(port, port, 0, 1);
    let resources = ResourceTemplate::new(vec![&io]);
    let (id, crs) = (
        Name::new("_HID".into(), &"QEMU0001"),
        Name::new("_CRS".into(), &resources),
    );
    let present = Name::new("_STA".into(), &0xfu8);
    let device = Device::new("PEVT".into(), vec![&id, &crs, &present]);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(aml);
}

/// A virtio-mmio device: a page of registers and an interrupt, under the id that Linux's driver looks for.
fn virtio_mmio(index: usize, base: u64, gsi: u32, aml: &mut Vec<u8>) {
    let (window, interrupt) = (
        Memory32Fixed::new(true, base as u32, mmio::SIZE as u32),
        Interrupt::new(true, true, false, false, gsi),
    );
    let resources = ResourceTemplate::new(vec![&window, &interrupt]);
    let (id, crs) = (
        Name::new("_HID".into(), &"LNRO0005"),
        Name::new("_CRS".into(), &resources),
    );
    let uid = Name::new("_UID".into(), &index);
    let device = Device::new(Path::new(&format!("VR{index:02}")), vec![&id, &uid, &crs]);
    Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(aml);
}

/// The event device, whose one register says what happened, and what it notifies (§5.6.9).
fn events(gsi: u32, vmgenid: u64, pci: bool, aml: &mut Vec<u8>) {
    let (low, high) = (vmgenid as u32, (vmgenid >> 32) as u32);
    let address = Package::new(vec![&low, &high]);
    let generation = Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"NACL0001"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &address),
        ],
    )
    .bytes();
    let button = Device::new(
        "PWRB".into(),
        vec![&hid("PNP0C0C"), &Name::new("_UID".into(), &ZERO)],
    )
    .bytes();

    let interrupt = Interrupt::new(true, true, false, false, gsi);
    let resources = ResourceTemplate::new(vec![&interrupt]);
    let (base, size) = (GED_BASE as u32, ged::SIZE as u32);
    let field = Field::new(
        "REGS".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::Preserve,
        vec![FieldEntry::Named(*b"ESEL", 32)],
    );
    let event = |bit: &'static u32, path: &str| {
        let (local, path) = (Local(1), Path::new(path));
        let value = 0x80u8;
        let masked = And::new(&local, &Local(0), bit).bytes();
        let equal = Equal::new(&local, bit);
        let notify = Notify::new(&path, &value);
        let mut bytes = masked;
        If::new(&equal, vec![&notify]).to_aml_bytes(&mut bytes);
        Raw(bytes)
    };
    let mut hot_plug = Vec::new();
    if pci {
        let (local, scan) = (Local(1), Path::new(hot_plug::SCAN));
        And::new(&local, &Local(0), &ged::PCI_HOT_PLUG).to_aml_bytes(&mut hot_plug);
        let call = MethodCall::new(scan, vec![]);
        If::new(&local, vec![&call]).to_aml_bytes(&mut hot_plug);
    }
    let read = Path::new("ESEL");
    let event_method = Method::new(
        "_EVT".into(),
        1,
        true,
        vec![
            &Store::new(&Local(0), &read),
            &event(&ged::POWER_BUTTON, "\\_SB_.PWRB"),
            &event(&ged::NEW_GENERATION, "\\_SB_.VGEN"),
            &Raw(hot_plug),
        ],
    )
    .bytes();
    let device = Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &resources),
            &OpRegion::new("REGS".into(), OpRegionSpace::SystemMemory, &base, &size),
            &field,
            &Raw(event_method),
        ],
    )
    .bytes();
    Scope::new("_SB_".into(), vec![&Raw(generation), &Raw(button), &Raw(device)]).to_aml_bytes(aml);
}

/// AML made before.
pub(super) struct Raw(pub Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

pub(super) trait Bytes: Aml {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.to_aml_bytes(&mut bytes);
        bytes
    }
}

impl<T: Aml> Bytes for T {}

/// The PCI root bridge: one bus, a 32-bit and a 64-bit window, no interrupt lines (devices use MSI-X).
fn pci(bus: Pci, aml: &mut Vec<u8>) {
    let Pci { window, last_slot } = bus;
    let numbers = AddressSpace::new_bus_number(0u16, 0u16);
    let config = IO::new(0xcf8, 0xcf8, 1, 8);
    let low = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        PCI32_BASE as u32,
        (PCI32_BASE + PCI32_SIZE - 1) as u32,
        None,
    );
    let high = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        window,
        window + PCI64_SIZE - 1,
        None,
    );
    let resources = ResourceTemplate::new(vec![&numbers, &config, &low, &high]);
    let root = Device::new(
        "PCI0".into(),
        vec![
            &hid("PNP0A08"),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CCA".into(), &ONE),
            &Name::new("_CRS".into(), &resources),
            &Raw(hot_plug::slots(last_slot)),
        ],
    )
    .bytes();
    // Linux uses the configuration window only where a motherboard device claims it.
    let window = Memory32Fixed::new(true, ECAM_BASE as u32, ECAM_SIZE as u32);
    let claimed = ResourceTemplate::new(vec![&window]);
    let board = Device::new(
        "MBRD".into(),
        vec![
            &hid("PNP0C02"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &claimed),
        ],
    )
    .bytes();
    Scope::new("_SB_".into(), vec![&Raw(root), &Raw(board)]).to_aml_bytes(aml);
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLATFORM: Platform = Platform {
        sleep_port: 0x600,
        reset: (0x64, 0xfe),
        ged_gsi: 9,
        pvpanic_port: 0x505,
        vmgenid: 0xe_f000,
    };

    const BUS: Pci = Pci {
        window: 4 << 30,
        last_slot: 31,
    };

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn every_table_is_found_from_the_root_and_adds_up() {
        let image = tables(&PLATFORM, &[0, 1, 2, 4], Some(BUS), &[(0xd000_0000, 5)]);
        assert_eq!(&image[..8], b"RSD PTR ");
        assert_eq!(sum(&image[..36]), 0);
        let at = |address: u64| &image[(address - RSDP_ADDRESS) as usize..];
        let table = |address: u64| {
            let len = u32::from_le_bytes(at(address)[4..8].try_into().unwrap()) as usize;
            &at(address)[..len]
        };
        let xsdt = table(u64::from_le_bytes(image[24..32].try_into().unwrap()));
        assert_eq!(sum(xsdt), 0);
        let mut found = Vec::new();
        for entry in xsdt[36..].chunks(8) {
            let table = table(u64::from_le_bytes(entry.try_into().unwrap()));
            assert_eq!(sum(table), 0);
            found.push(table[..4].to_vec());
            if &table[..4] == b"FACP" {
                let dsdt = u64::from_le_bytes(table[140..148].try_into().unwrap());
                assert_eq!(&at(dsdt)[..4], b"DSDT");
            }
        }
        assert_eq!(found, [b"FACP".to_vec(), b"APIC".to_vec(), b"MCFG".to_vec()]);
    }

    #[test]
    fn the_tables_of_the_largest_machine_end_before_what_follows_them() {
        let ids: Vec<u8> = (0..128).collect();
        let image = tables(&PLATFORM, &ids, Some(BUS), &[(0xd000_0000, 5); 15]);
        assert!(image.len() < 0xf000, "{} bytes", image.len());
    }
}
