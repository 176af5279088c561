//! The ACPI tables: RSDP, XSDT, FADT (reduced hardware), MADT and DSDT, by the acpi_tables crate.
//!
//! Source: ACPI 6.5, chapter 5. Reduced hardware means no fixed registers, no legacy interrupt
//! controller and no timer of the PC's; power-off and reset are registers named in the FADT.

use acpi_tables::{
    Aml, AmlSink,
    aml::{self, EISAName, IO, Interrupt, Name, Package, ResourceTemplate},
    fadt::{FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace, GAS},
    madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic},
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};
use vmlet_devices::{power::SleepControl, reset::ResetControl, serial::SerialPort};

use super::layout::{
    ACPI_START, IOAPIC, IRQ_COM1, LOCAL_APIC, PORT_COM1, PORT_PM_TIMER, PORT_PVPANIC, PORT_RESET,
    PORT_SLEEP, PciLayout,
};

mod pci;

const OEM: [u8; 6] = *b"VMLET ";
const TABLE: [u8; 8] = *b"VMLETBRD";
const REVISION: u32 = 1;

/// The tables' bytes, and where they go; the root pointer comes first.
pub(crate) fn tables(cpus: u32, pci: Option<&PciLayout>) -> (u64, Vec<u8>) {
    let mut area = Area {
        bytes: vec![0; Rsdp::len().next_multiple_of(16)],
    };
    let dsdt = area.add(&dsdt(cpus, pci));
    let fadt = area.add(&fadt(dsdt));
    let madt = area.add(&madt(cpus));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if let Some(layout) = pci {
        xsdt.add_entry(area.add(&pci::mcfg(layout)));
    }
    let xsdt = area.add(&xsdt);
    let mut root = Bytes::default();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut root);
    area.bytes
        .iter_mut()
        .zip(root.0)
        .for_each(|(to, from)| *to = from);
    (ACPI_START, area.bytes)
}

/// Collects a table's bytes.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl AmlSink for Bytes {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

/// The memory the tables share.
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Adds a table and gives its address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        let mut bytes = Bytes::default();
        table.to_aml_bytes(&mut bytes);
        let at = ACPI_START + self.bytes.len() as u64;
        self.bytes.extend(bytes.0);
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        at
    }
}

fn port(address: u16, bits: u8) -> GAS {
    let size = if bits == 32 {
        AccessSize::DwordAccess
    } else {
        AccessSize::ByteAccess
    };
    GAS::new(AddressSpace::SystemIo, bits, 0, size, address.into())
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::SlpButton)
        .flag(Flags::PwrButton)
        .flag(Flags::TmrValExt);
    fadt.reset_reg = port(PORT_RESET, 8);
    fadt.reset_value = ResetControl::RESET_VALUE;
    fadt.sleep_control_reg = port(PORT_SLEEP, 8);
    fadt.sleep_status_reg = port(PORT_SLEEP + 1, 8);
    fadt.x_pm_tmr_blk = port(PORT_PM_TIMER, 32);
    fadt.pm_tmr_blk = u32::from(PORT_PM_TIMER).into();
    fadt.pm_tmr_len = 4;
    fadt.finalize()
}

fn madt(cpus: u32) -> impl Aml {
    let mut madt = MADT::new(
        OEM,
        TABLE,
        REVISION,
        LocalInterruptController::Address(LOCAL_APIC),
    );
    for id in 0..=u8::MAX {
        if u32::from(id) < cpus {
            madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
        }
    }
    let ioapic = u32::try_from(IOAPIC).unwrap_or(0);
    madt.add_structure(IoApic::new(0, ioapic, 0));
    madt
}

fn dsdt(cpus: u32, pci: Option<&PciLayout>) -> impl Aml {
    let mut sdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, REVISION);
    let s5 = SleepControl::S5;
    let zero = 0u8;
    append(
        &mut sdt,
        &Name::new("_S5_".into(), &Package::new(vec![&s5, &zero, &zero, &zero])),
    );
    for uid in 0..cpus {
        append_cpu(&mut sdt, uid);
    }
    let irq = Interrupt::new(true, true, false, false, IRQ_COM1.into());
    let ports = io(PORT_COM1, SerialPort::LEN);
    append_device(
        &mut sdt,
        "COM1",
        &EISAName::new("PNP0501"),
        vec![&ports, &irq],
    );
    let ports = io(PORT_PVPANIC, 1);
    append_device(&mut sdt, "PEVT", &"QEMU0001", vec![&ports]);
    let ports = io(0x70, 2);
    append_device(&mut sdt, "RTC0", &EISAName::new("PNP0B00"), vec![&ports]);
    if let Some(layout) = pci {
        pci::append_bridge(&mut sdt, layout);
    }
    sdt
}

fn io(port: u16, len: u64) -> IO {
    IO::new(port, port, 1, u8::try_from(len).unwrap_or(1))
}

fn append(sdt: &mut Sdt, node: &dyn Aml) {
    let mut bytes = Bytes::default();
    node.to_aml_bytes(&mut bytes);
    sdt.append_slice(&bytes.0);
}

fn append_device(sdt: &mut Sdt, name: &str, id: &dyn Aml, resources: Vec<&dyn Aml>) {
    let hid = Name::new("_HID".into(), id);
    let (uid, present) = (0u8, 0x0fu8);
    let uid = Name::new("_UID".into(), &uid);
    let status = Name::new("_STA".into(), &present);
    let resources = ResourceTemplate::new(resources);
    let resources = Name::new("_CRS".into(), &resources);
    let path = format!("_SB_.{name}");
    let device = aml::Device::new(path.as_str().into(), vec![&hid, &uid, &status, &resources]);
    append(sdt, &device);
}

fn append_cpu(sdt: &mut Sdt, uid: u32) {
    let hid = Name::new("_HID".into(), &"ACPI0007");
    let id = Name::new("_UID".into(), &uid);
    let path = format!("_SB_.C{uid:03X}");
    append(
        sdt,
        &aml::Device::new(path.as_str().into(), vec![&hid, &id]),
    );
}

#[cfg(test)]
mod tests {
    use super::{super::layout, *};

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn table(area: &[u8], at: u64) -> &[u8] {
        let start = usize::try_from(at - ACPI_START).unwrap();
        let len = u32::from_le_bytes(area[start + 4..start + 8].try_into().unwrap());
        &area[start..start + len as usize]
    }

    fn address(bytes: &[u8]) -> u64 {
        u64::from_le_bytes(bytes[..8].try_into().unwrap())
    }

    fn pci() -> PciLayout {
        layout::pci(30, 6 << 30, 40).unwrap()
    }

    #[test]
    fn every_table_is_reached_from_the_root_pointer_and_sums_to_zero() {
        let (_, area) = tables(4, Some(&pci()));
        assert_eq!(
            (&area[..8], sum(&area[..20]), sum(&area[..36])),
            (&b"RSD PTR "[..], 0, 0)
        );
        let xsdt = table(&area, address(&area[24..]));
        assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
        let fadt = table(&area, address(&xsdt[36..]));
        let madt = table(&area, address(&xsdt[44..]));
        let dsdt = table(&area, address(&fadt[140..]));
        let mcfg = table(&area, address(&xsdt[52..]));
        assert_eq!((address(&mcfg[44..]), mcfg.len()), (layout::ECAM, 60));
        assert_eq!(mcfg[54..56], [0, 30], "buses");
        for (found, name) in [
            (fadt, b"FACP"),
            (madt, b"APIC"),
            (dsdt, b"DSDT"),
            (mcfg, b"MCFG"),
        ] {
            assert_eq!((&found[..4], sum(found)), (&name[..], 0));
        }
    }

    #[test]
    fn the_madt_lists_every_vcpu_and_the_io_apic() {
        let (_, area) = tables(254, None);
        let xsdt = table(&area, address(&area[24..]));
        assert_eq!(table(&area, address(&xsdt[44..])).len(), 44 + 254 * 8 + 12);
    }

    #[test]
    fn a_board_without_root_ports_has_no_pci_in_its_tables() {
        let (_, area) = tables(1, None);
        let has = |name: &[u8; 4]| area.windows(4).any(|bytes| bytes == name);
        assert!(!has(b"MCFG") && !has(b"PCI0") && has(b"COM1"));
    }

    #[test]
    fn tables_of_the_largest_machine_fit_their_area() {
        assert!(tables(254, Some(&pci())).1.len() as u64 <= super::super::layout::ACPI_LEN);
    }
}
