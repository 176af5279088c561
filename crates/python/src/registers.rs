//! Registers to and from dictionaries.

use pyo3::{prelude::*, types::PyDict};
use vmlet_machine::{Regs, Segment, Sregs, Table};

macro_rules! fields {
    ($to:ident, $from:ident, $type:ty, $($field:ident),+) => {
        pub(crate) fn $to<'py>(py: Python<'py>, regs: &$type) -> PyResult<Bound<'py, PyDict>> {
            let dict = PyDict::new(py);
            $(dict.set_item(stringify!($field), regs.$field)?;)+
            Ok(dict)
        }

        pub(crate) fn $from(dict: &Bound<'_, PyDict>, regs: &mut $type) -> PyResult<()> {
            $(if let Some(value) = dict.get_item(stringify!($field))? {
                regs.$field = value.extract()?;
            })+
            Ok(())
        }
    };
}

fields!(
    regs_to_dict,
    regs_from_dict,
    Regs,
    rax,
    rbx,
    rcx,
    rdx,
    rsi,
    rdi,
    rsp,
    rbp,
    r8,
    r9,
    r10,
    r11,
    r12,
    r13,
    r14,
    r15,
    rip,
    rflags
);
fields!(
    control_to_dict,
    control_from_dict,
    Sregs,
    cr0,
    cr2,
    cr3,
    cr4,
    cr8,
    efer,
    apic_base
);

type SegmentTuple = (u64, u32, u16, u16);
type TableTuple = (u64, u16);

macro_rules! each_segment {
    ($do:ident) => {
        $do!(cs, ds, es, fs, gs, ss, tr, ldt)
    };
}

/// Control registers as numbers, segments as (base, limit, selector, attributes), descriptor
/// tables as (base, limit).
pub(crate) fn sregs_to_dict<'py>(py: Python<'py>, sregs: &Sregs) -> PyResult<Bound<'py, PyDict>> {
    let dict = control_to_dict(py, sregs)?;
    macro_rules! put {
        ($($name:ident),+) => {
            $({
                let Segment { base, limit, selector, attributes } = sregs.$name;
                dict.set_item(stringify!($name), (base, limit, selector, attributes))?;
            })+
        };
    }
    each_segment!(put);
    dict.set_item("gdt", (sregs.gdt.base, sregs.gdt.limit))?;
    dict.set_item("idt", (sregs.idt.base, sregs.idt.limit))?;
    Ok(dict)
}

/// Takes what the dictionary names.
pub(crate) fn sregs_from_dict(dict: &Bound<'_, PyDict>, sregs: &mut Sregs) -> PyResult<()> {
    control_from_dict(dict, sregs)?;
    macro_rules! take {
        ($($name:ident),+) => {
            $(if let Some(value) = dict.get_item(stringify!($name))? {
                let (base, limit, selector, attributes): SegmentTuple = value.extract()?;
                sregs.$name = Segment { base, limit, selector, attributes };
            })+
        };
    }
    each_segment!(take);
    for (name, table) in [("gdt", &mut sregs.gdt), ("idt", &mut sregs.idt)] {
        if let Some(value) = dict.get_item(name)? {
            let (base, limit): TableTuple = value.extract()?;
            *table = Table { base, limit };
        }
    }
    Ok(())
}
