//! Where registers lie, and the capabilities that say so (virtio 1.2, section 4.1.4).

use vmlet_pci::{BarKind, BarLayout, FunctionLayout, MsixLayout, VendorCapability};

use crate::virtio::VirtioDevice;

/// Red Hat's vendor id, which virtio devices have (section 4.1.2).
const VENDOR: u16 = 0x1af4;
/// A device's PCI id is this and its type (section 4.1.2).
const DEVICE_BASE: u16 = 0x1040;

/// The BAR of all registers, and that of the MSI-X table.
pub(super) const BAR: u8 = 0;
const MSIX_BAR: u8 = 1;
const BAR_SIZE: u64 = 0x4000;

/// A part of the BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) start: u64,
    pub(super) len: u64,
}

impl Part {
    /// Where `offset` lies in the part.
    pub(super) fn offset(self, offset: u64) -> Option<u64> {
        let within = offset.checked_sub(self.start)?;
        (within < self.len).then_some(within)
    }
}

/// The common configuration.
pub(super) const COMMON: Part = Part {
    start: 0,
    len: 0x40,
};
/// The ISR byte.
pub(super) const ISR: Part = Part {
    start: 0x1000,
    len: 0x4,
};
/// The device's own configuration.
pub(super) const DEVICE: Part = Part {
    start: 0x2000,
    len: 0x1000,
};
/// The doorbells, in a page of their own.
pub(super) const NOTIFY: Part = Part {
    start: 0x3000,
    len: 0x1000,
};
/// Bytes between two queues' doorbells.
pub(super) const NOTIFY_STEP: u32 = 4;

/// Which of the capabilities is the window into BARs.
pub(super) const WINDOW_CAPABILITY: usize = 4;
/// `VIRTIO_PCI_CAP_*`.
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// The function that carries `device`.
pub(super) fn function(device: &dyn VirtioDevice) -> FunctionLayout {
    let id = DEVICE_BASE + u16::try_from(device.id()).unwrap_or(0);
    let queues = u16::try_from(device.queue_sizes().len()).unwrap_or(u16::MAX);
    FunctionLayout {
        vendor: VENDOR,
        device: id,
        subsystem_vendor: VENDOR,
        subsystem: id,
        revision: 1,
        class: device.class(),
        bars: vec![BarLayout {
            index: BAR,
            size: BAR_SIZE,
            kind: BarKind::Memory32,
        }],
        msix: Some(MsixLayout {
            // One a queue, and one for configuration changes.
            vectors: queues.saturating_add(1),
            bar: MSIX_BAR,
            inside: None,
        }),
        msi: false,
        intx: true,
        capabilities: vec![
            capability(COMMON_CFG, COMMON, &[]),
            capability(NOTIFY_CFG, NOTIFY, &NOTIFY_STEP.to_le_bytes()),
            capability(ISR_CFG, ISR, &[]),
            capability(DEVICE_CFG, DEVICE, &[]),
            window(),
        ],
    }
}

/// `struct virtio_pci_cap` without the id and the link before it.
fn capability(kind: u8, part: Part, more: &[u8]) -> VendorCapability {
    let len = 16 + u8::try_from(more.len()).unwrap_or(0);
    let word = |value: u64| u32::try_from(value).unwrap_or(0).to_le_bytes();
    let mut body = vec![len, kind, BAR, 0, 0, 0];
    body.extend(word(part.start));
    body.extend(word(part.len));
    body.extend(more);
    VendorCapability {
        id: 9,
        body,
        writable: Vec::new(),
    }
}

/// The window: BAR, offset, length and data are the driver's (section 4.1.4.9).
fn window() -> VendorCapability {
    let none = Part { start: 0, len: 0 };
    let mut writable = vec![0, 0, 0xff, 0, 0, 0];
    writable.extend([0xff; 12]);
    VendorCapability {
        writable,
        ..capability(PCI_CFG, none, &[0; 4])
    }
}
