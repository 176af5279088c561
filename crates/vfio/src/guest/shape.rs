//! What a guest finds of a device: its config space, as far as it can be given.

use vmlet_pci::{
    BarKind, BarLayout, FunctionLayout, MsixInside, MsixLayout, SMALLEST_BAR, VendorCapability,
};

use crate::{RegionInfo, config};

/// Registers of the header (PCIe 6.0, section 7.5.1).
const BARS: usize = 0x10;
const INTERRUPT_PIN: usize = 0x3d;
/// A BAR's lowest bits (section 7.5.1.2.1).
const IO: u32 = 1;
const IN_64: u32 = 2 << 1;
const TYPE: u32 = 3 << 1;
const PREFETCHABLE: u32 = 1 << 3;
/// Capabilities that are looked at.
const MSI: u8 = 0x05;
const VENDOR: u8 = 0x09;
const MSIX: u8 = 0x11;

/// A device as a guest is to see it.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) layout: FunctionLayout,
    /// Where on the device the layout's capabilities are, in their order.
    pub(super) own: Vec<u16>,
}

/// Config space as bytes; what is not there reads as zeros.
#[derive(Clone, Copy)]
struct Config<'a>(&'a [u8]);

impl<'a> Config<'a> {
    fn byte(self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    fn half(self, at: usize) -> u16 {
        u16::from_le_bytes([self.byte(at), self.byte(at + 1)])
    }

    fn word(self, at: usize) -> u32 {
        u32::from(self.half(at)) | u32::from(self.half(at + 2)) << 16
    }

    /// Where capabilities with this id begin.
    fn all(self, id: u8) -> impl Iterator<Item = usize> {
        let read = move |at| self.0.get(usize::try_from(at).ok()?).copied();
        let those = config::capabilities(read).filter(move |(_, found)| *found == id);
        those.filter_map(|(at, _)| usize::try_from(at).ok())
    }

    fn find(self, id: u8) -> Option<usize> {
        self.all(id).next()
    }

    /// A vendor's capability without id and link (section 7.9.4): its third byte says how long it is.
    fn vendor(self, at: usize) -> Option<&'a [u8]> {
        let len = usize::from(self.byte(at + 2));
        self.0.get(at + 2..at.checked_add(len)?)
    }
}

/// The memory BARs that `regions` have.
fn bars(config: Config<'_>, regions: &[RegionInfo]) -> Vec<BarLayout> {
    let bar = |region: &RegionInfo| {
        let index = u8::try_from(region.index).ok().filter(|index| *index < 6)?;
        let bits = config.word(BARS + usize::from(index) * 4);
        let kind = match (bits & TYPE == IN_64, bits & PREFETCHABLE != 0) {
            (false, _) => BarKind::Memory32,
            (true, false) => BarKind::Memory64,
            (true, true) => BarKind::Prefetchable64,
        };
        let given = bits & IO == 0 && region.size.is_power_of_two() && region.size >= SMALLEST_BAR;
        given.then_some(BarLayout {
            index,
            size: region.size,
            kind,
        })
    };
    regions.iter().filter_map(bar).collect()
}

/// MSI-X where table and pending bits lie in BARs that are given (section 7.7.2).
fn msix(config: Config<'_>, bars: &[BarLayout]) -> Option<MsixLayout> {
    let at = config.find(MSIX)?;
    let vectors = (config.half(at + 2) & 0x7ff) + 1;
    let place = |at| {
        let word = config.word(at);
        let bar = u8::try_from(word & 7).ok()?;
        let room = bars.iter().find(|known| known.index == bar)?.size;
        Some((bar, word & !7, room))
    };
    let (bar, table, room) = place(at + 4)?;
    let (pending_bar, pending, pending_room) = place(at + 8)?;
    let fits = |start: u32, len: u64, room: u64| u64::from(start) + len <= room;
    let both = fits(table, u64::from(vectors) * 16, room)
        && fits(pending, u64::from(vectors).div_ceil(8), pending_room);
    both.then_some(MsixLayout {
        vectors,
        bar,
        inside: Some(MsixInside {
            table,
            pending_bar,
            pending,
        }),
    })
}

/// What a device with this config space and these regions is to a guest; `line`, `messages`: it can
/// interrupt by INTx, by MSI.
pub(super) fn shape(config: &[u8], regions: &[RegionInfo], line: bool, messages: bool) -> Shape {
    let config = Config(config);
    let bars = bars(config, regions);
    let mut layout = FunctionLayout {
        vendor: config.half(0),
        device: config.half(2),
        subsystem_vendor: config.half(0x2c),
        subsystem: config.half(0x2e),
        revision: config.byte(8),
        class: [config.byte(0xb), config.byte(0xa), config.byte(9)],
        msix: msix(config, &bars),
        bars,
        msi: messages && config.find(MSI).is_some(),
        intx: line && config.byte(INTERRUPT_PIN) != 0,
        capabilities: Vec::new(),
    };
    let mut own = Vec::new();
    let mut room = layout.room();
    for at in config.all(VENDOR) {
        let Some(body) = config.vendor(at) else {
            continue;
        };
        let Some(left) = room.checked_sub((body.len() + 2).next_multiple_of(4)) else {
            log::warn!("a vendor's capability at {at:#x} has no room in a guest's config space");
            continue;
        };
        room = left;
        own.push(u16::try_from(at).unwrap_or(0));
        layout.capabilities.push(VendorCapability {
            id: VENDOR,
            body: body.to_vec(),
            writable: Vec::new(),
        });
    }
    Shape { layout, own }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(index: u32, size: u64) -> RegionInfo {
        RegionInfo {
            index,
            flags: 3,
            size,
            offset: 0,
            areas: Vec::new(),
        }
    }

    fn put(config: &mut [u8], at: usize, bytes: &[u8]) {
        config[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Capabilities: PCI Express at 0x40, MSI-X at 0x50, a vendor's at 0x60.
    fn config() -> Vec<u8> {
        let mut config = vec![0; 256];
        put(&mut config, 0, &[0x86, 0x80, 0xca, 0x10]);
        put(&mut config, 6, &[0x10, 0]);
        put(&mut config, 8, &[1, 2, 0, 2]);
        put(&mut config, 0x10, &[0, 0, 0, 0xc0]);
        put(&mut config, 0x14, &[1, 0xc0, 0, 0]);
        put(&mut config, 0x1c, &[0xc, 0, 0, 0]);
        put(&mut config, 0x34, &[0x40]);
        put(&mut config, 0x3d, &[1]);
        put(&mut config, 0x40, &[0x10, 0x50]);
        put(&mut config, 0x50, &[0x11, 0x60, 2, 0x80]);
        put(&mut config, 0x54, &[3, 0, 0, 0, 3, 0x20, 0, 0]);
        put(&mut config, 0x60, &[9, 0, 8, 1, 2, 3, 4, 5]);
        config
    }

    fn regions() -> [RegionInfo; 4] {
        [
            region(0, 0x4000),
            region(1, 32),
            region(3, 0x4000),
            region(7, 256),
        ]
    }

    #[test]
    fn ids_memory_bars_and_class_are_the_devices() {
        let Shape { layout, .. } = shape(&config(), &regions(), true, true);
        assert_eq!((layout.vendor, layout.device), (0x8086, 0x10ca));
        assert_eq!((layout.revision, layout.class), (1, [2, 0, 2]));
        let kinds: Vec<_> = layout
            .bars
            .iter()
            .map(|bar| (bar.index, bar.kind))
            .collect();
        let expected = [(0, BarKind::Memory32), (3, BarKind::Prefetchable64)];
        assert_eq!(kinds, expected);
        assert!(layout.intx && !layout.msi);
        assert!(layout.check("a device").is_ok());
    }

    #[test]
    fn the_table_of_msix_stays_where_it_is() {
        let msix = shape(&config(), &regions(), true, true).layout.msix;
        let inside = MsixInside {
            table: 0,
            pending_bar: 3,
            pending: 0x2000,
        };
        assert_eq!(
            msix,
            Some(MsixLayout {
                vectors: 3,
                bar: 3,
                inside: Some(inside)
            })
        );
    }

    #[test]
    fn a_table_outside_of_its_bar_is_no_msix() {
        let mut config = config();
        put(&mut config, 0x54, &[3, 0x40, 0, 0]);
        assert_eq!(shape(&config, &regions(), true, true).layout.msix, None);
    }

    #[test]
    fn of_capabilities_a_vendors_are_passed_on() {
        let Shape { layout, own } = shape(&config(), &regions(), false, true);
        assert_eq!(own, [0x60]);
        assert_eq!(layout.capabilities[0].body, [8, 1, 2, 3, 4, 5]);
        assert!(!layout.intx);
    }

    #[test]
    fn lists_that_lead_back_end_and_what_fits_not_is_left_out() {
        let mut config = config();
        put(&mut config, 0x60, &[9, 0x60, 0x70]);
        let Shape { layout, own } = shape(&config, &regions(), true, true);
        assert_eq!((own.len(), layout.capabilities.len()), (1, 1));
        assert!(layout.check("a device").is_ok());
    }

    /// PCIe 6.0, section 2.3.2: so answers a device that is gone.
    #[test]
    fn what_answers_all_ones_has_no_registers_and_no_vectors() {
        let Shape { layout, own } = shape(&[0xff; 256], &regions(), true, true);
        assert!(layout.bars.is_empty() && layout.msix.is_none() && !layout.msi && own.is_empty());
    }

    #[test]
    fn any_bytes_have_a_shape() {
        let mut state = 7u32;
        for _ in 0..2000 {
            let config: Vec<u8> = (0..256)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    state.to_le_bytes()[3]
                })
                .collect();
            shape(&config, &regions(), true, true);
        }
    }
}
