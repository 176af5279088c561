//! The ranges of registers behind a function's BARs (PCIe 6.0, section 7.5.1.2.1).

use std::{ops::Range, sync::Arc};

use vmlet_bus::{AccessContext, Device, Flow};

use crate::{
    BarKind, BarLayout, Function, FunctionLayout, Msix, decode::Movable, registers::Registers,
};

/// The first BAR register.
const FIRST: u16 = 0x10;
/// Type: anywhere in 64 bits; and prefetchable.
const IN_64: u32 = 1 << 2;
const PREFETCHABLE: u32 = 1 << 3;
const TYPE: u64 = 0xf;

/// A BAR's registers and what answers behind them.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    pub(crate) layout: BarLayout,
    pub(crate) range: Arc<dyn Movable>,
}

/// The BARs of `function`, that of MSI-X among them.
pub(crate) fn all(
    function: &Arc<dyn Function>,
    layout: &FunctionLayout,
    msix: &Arc<Msix>,
) -> Vec<Bar> {
    let own = layout.bars.iter().map(|bar| Bar {
        layout: *bar,
        range: Arc::new(FunctionRange {
            function: Arc::clone(function),
            bar: bar.index,
        }),
    });
    let table = layout.msix.and_then(|vectors| vectors.table());
    let table = table.map(|layout| Bar {
        layout,
        range: Arc::new(MsixRange(Arc::clone(msix))),
    });
    own.chain(table).collect()
}

impl Bar {
    fn register(&self) -> u16 {
        FIRST + u16::from(self.layout.index) * 4
    }

    /// Adds the BAR to a function's registers. The bits below its size read as zero: so a guest
    /// learns the size.
    pub(crate) fn define(&self, registers: &mut Registers) {
        let mask = !(self.layout.size - 1) & !TYPE;
        let kind = match self.layout.kind {
            BarKind::Memory32 => 0,
            BarKind::Memory64 => IN_64,
            BarKind::Prefetchable64 => IN_64 | PREFETCHABLE,
        };
        registers.fix(self.register(), &kind.to_le_bytes());
        let bytes = if self.layout.kind.is_64() { 8 } else { 4 };
        let mask = mask.to_le_bytes();
        registers.allow(self.register(), mask.get(..bytes).unwrap_or_default());
    }

    /// The addresses that the registers say.
    pub(crate) fn place(&self, registers: &Registers) -> Option<Range<u64>> {
        let low = u64::from(registers.word(self.register())) & !TYPE;
        let high = if self.layout.kind.is_64() {
            u64::from(registers.word(self.register() + 4)) << 32
        } else {
            0
        };
        let start = high | low;
        Some(start..start.checked_add(self.layout.size)?)
    }

    /// Writes an address as firmware does.
    pub(crate) fn assign(&self, registers: &mut Registers, address: u64) {
        let bytes = if self.layout.kind.is_64() { 8 } else { 4 };
        let address = address.to_le_bytes();
        registers.write(self.register(), address.get(..bytes).unwrap_or_default());
    }
}

/// Registers of the function.
#[derive(Debug)]
struct FunctionRange {
    function: Arc<dyn Function>,
    bar: u8,
}

/// Resets and states are the bus's affair: a range that is not decoded has them too.
impl Device for FunctionRange {
    fn name(&self) -> &'static str {
        self.function.name()
    }

    fn read(&self, cx: &dyn AccessContext, offset: u64, data: &mut [u8]) -> Flow {
        self.function.read_bar(cx, self.bar, offset, data)
    }

    fn write(&self, cx: &dyn AccessContext, offset: u64, data: &[u8]) -> Flow {
        self.function.write_bar(cx, self.bar, offset, data)
    }

    fn reset(&self) {}
}

impl Movable for FunctionRange {
    fn moved(&self, at: Option<u64>) {
        self.function.bar_moved(self.bar, at);
    }
}

/// MSI-X table and pending bits.
#[derive(Debug)]
struct MsixRange(Arc<Msix>);

impl Device for MsixRange {
    fn name(&self) -> &'static str {
        "MSI-X table"
    }

    fn read(&self, _: &dyn AccessContext, offset: u64, data: &mut [u8]) -> Flow {
        self.0.read(offset, data);
        Flow::Continue
    }

    fn write(&self, _: &dyn AccessContext, offset: u64, data: &[u8]) -> Flow {
        self.0.write(offset, data);
        Flow::Continue
    }

    fn reset(&self) {}
}

impl Movable for MsixRange {
    fn moved(&self, _: Option<u64>) {}
}
