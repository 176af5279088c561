//! Segments and control registers of the modes a guest can be started in.

use super::{Segment, Sregs, Table};

const CODE64: u16 = 0xa09b;
const CODE32: u16 = 0xc09b;
const DATA: u16 = 0xc093;
const TSS: u16 = 0x008b;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Selectors of the flat code and data segments that [`Sregs::enter_flat32`] and
/// [`Sregs::enter_long64`] load: those of the Linux boot protocol (`__BOOT_CS`, `__BOOT_DS`).
pub const BOOT_CS: u16 = 0x10;
/// See [`BOOT_CS`].
pub const BOOT_DS: u16 = 0x18;

impl Sregs {
    /// 32-bit protected mode, flat segments, no paging. What is not named stays as the engine set
    /// it at reset.
    #[must_use]
    pub fn enter_flat32(self, gdt: Table) -> Sregs {
        let cs = Segment::flat(BOOT_CS, CODE32);
        Sregs {
            cr0: CR0_PE | CR0_ET,
            cr4: 0,
            efer: 0,
            ..self.flat(cs, gdt)
        }
    }

    /// 64-bit mode at CPL 0 with the page tables at `cr3`.
    #[must_use]
    pub fn enter_long64(self, cr3: u64, gdt: Table) -> Sregs {
        let cs = Segment::flat(BOOT_CS, CODE64);
        Sregs {
            cr0: CR0_PE | CR0_ET | CR0_PG,
            cr3,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA,
            ..self.flat(cs, gdt)
        }
    }

    /// Real mode with all segments at 0.
    #[must_use]
    pub fn enter_real(self) -> Sregs {
        let data = Segment::real(0, 3);
        Sregs {
            cs: Segment::real(0, 0xb),
            ..self.data(data)
        }
    }

    fn flat(self, cs: Segment, gdt: Table) -> Sregs {
        let data = self.data(Segment::flat(BOOT_DS, DATA));
        let tr = Segment {
            base: 0,
            limit: 0x67,
            selector: 0,
            attributes: TSS,
        };
        Sregs {
            cs,
            tr,
            gdt,
            idt: Table::default(),
            ..data
        }
    }

    fn data(self, data: Segment) -> Sregs {
        Sregs {
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            ..self
        }
    }
}
