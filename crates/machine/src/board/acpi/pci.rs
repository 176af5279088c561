//! PCI in the ACPI tables: MCFG (PCI Firmware 3.3, section 4.1.2), and the host bridge with its
//! windows, interrupt routes and what of native PCIe it leaves to the guest (ACPI 6.5, sections
//! 6.2.11, 6.2.13 and 6.4; PCI Firmware 3.3, section 4.5).

use acpi_tables::{
    Aml,
    aml::{
        self, AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, EISAName, Equal, If,
        Local, Memory32Fixed, Method, Name, NotEqual, Or, PackageBuilder, Path, ResourceTemplate,
        Return, Store, Uuid, ZERO,
    },
    mcfg::MCFG,
    sdt::Sdt,
};
use vmlet_pci::Root;

use super::{
    super::layout::{ECAM, PCI_FIRST_PIN, PCI_PINS, PciLayout},
    OEM, REVISION, TABLE, append,
};

/// Interrupt pins of a device.
const PINS: u8 = 4;
/// `_OSC` of a PCI host bridge.
const OSC_UUID: &str = "33db4d5b-1ff7-401c-9657-7441c03dd766";
/// What the guest gets control of: native hot-plug, PME, AER, the PCI Express capability.
const CONTROL: u8 = 1 | 1 << 2 | 1 << 3 | 1 << 4;
/// Status bits of the first word: unknown UUID, unknown revision, something was refused.
const UNKNOWN_UUID: u8 = 1 << 2;
const UNKNOWN_REVISION: u8 = 1 << 3;
const REFUSED: u8 = 1 << 4;

/// Where config space lies.
pub(super) fn mcfg(layout: &PciLayout) -> impl Aml {
    let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
    mcfg.add_ecam(ECAM, 0, 0, layout.last_bus());
    mcfg
}

fn word(address: u64) -> u32 {
    u32::try_from(address).unwrap_or(u32::MAX)
}

/// Adds the host bridge, and the reservation of config space.
pub(super) fn append_bridge(sdt: &mut Sdt, layout: &PciLayout) {
    let reserved = Memory32Fixed::new(true, word(ECAM), word(Root::ECAM_BYTES));
    super::append_device(sdt, "MRES", &EISAName::new("PNP0C02"), vec![&reserved]);
    let windows = &layout.windows;
    let buses = AddressSpace::new_bus_number(0u16, u16::from(layout.last_bus()));
    let cacheable = || AddressSpaceCacheable::NotCacheable;
    let (start, end) = (word(windows.low.start), word(windows.low.end - 1));
    let low = AddressSpace::new_memory(cacheable(), true, start, end, None);
    let end = windows.high.end.saturating_sub(1);
    let high = AddressSpace::new_memory(cacheable(), true, windows.high.start, end, None);
    let mut resources: Vec<&dyn Aml> = vec![&buses, &low];
    if !windows.high.is_empty() {
        resources.push(&high);
    }
    let resources = ResourceTemplate::new(resources);
    let (express, plain) = (EISAName::new("PNP0A08"), EISAName::new("PNP0A03"));
    let zero = 0u8;
    let names = [
        Name::new("_HID".into(), &express),
        Name::new("_CID".into(), &plain),
        Name::new("_UID".into(), &zero),
        Name::new("_SEG".into(), &zero),
        Name::new("_BBN".into(), &zero),
        Name::new("_CRS".into(), &resources),
        Name::new("_PRT".into(), &routes(layout.ports)),
    ];
    let mut children: Vec<&dyn Aml> = names.iter().map(|name| name as &dyn Aml).collect();
    let osc = Bytes(osc());
    children.push(&osc);
    append(sdt, &aml::Device::new("_SB_.PCI0".into(), children));
}

/// Which pin of the I/O APIC each pin of the root ports drives. What is behind a port is swizzled
/// onto the port's pins by the guest.
fn routes(ports: u8) -> PackageBuilder {
    let mut routes = PackageBuilder::new();
    for device in 1..=ports {
        for pin in 0..PINS {
            let mut route = PackageBuilder::new();
            route.add_element(&(u32::from(device) << 16 | 0xffff));
            route.add_element(&pin);
            route.add_element(&ZERO);
            route.add_element(&(PCI_FIRST_PIN + (device + pin) % PCI_PINS));
            routes.add_element(&route);
        }
    }
    routes
}

/// Bytes that are AML already.
struct Bytes(Vec<u8>);

impl Aml for Bytes {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// The method by which a guest asks for control of native PCIe.
fn osc() -> Vec<u8> {
    let (status, control) = (Path::new("CDW1"), Path::new("CDW3"));
    let (uuid, eight, one, mask) = (Uuid::new(OSC_UUID), 8u8, 1u8, CONTROL);
    let has_status = CreateDWordField::new(&status, &Arg(3), &ZERO);
    let has_control = CreateDWordField::new(&control, &Arg(3), &eight);
    let asked = Store::new(&Local(0), &control);
    let granted = And::new(&control, &control, &mask);
    let (revision, refused) = (UNKNOWN_REVISION, REFUSED);
    let revision = Or::new(&status, &status, &revision);
    let refused = Or::new(&status, &status, &refused);
    let (other_revision, less) = (
        NotEqual::new(&Arg(1), &one),
        NotEqual::new(&Local(0), &control),
    );
    let wrong_revision = If::new(&other_revision, vec![&revision]);
    let not_all = If::new(&less, vec![&refused]);
    let answer = Return::new(&Arg(3));
    let known = Equal::new(&Arg(0), &uuid);
    let known = If::new(
        &known,
        vec![
            &has_control,
            &asked,
            &granted,
            &wrong_revision,
            &not_all,
            &answer,
        ],
    );
    let unknown = UNKNOWN_UUID;
    let unknown = Or::new(&status, &status, &unknown);
    let method = Method::new(
        "_OSC".into(),
        4,
        true,
        vec![&has_status, &known, &unknown, &answer],
    );
    let mut bytes = super::Bytes::default();
    method.to_aml_bytes(&mut bytes);
    bytes.0
}
