//! Walks, page sizes, exits and statistics as dictionaries.

use pyo3::{
    prelude::*,
    types::{PyDict, PyList, PyTuple},
};
use vmlet_machine::{
    ExitKind, ExitReport, PAGE_SIZES, PagePlan, PageReport, SecondStage, Stat, WalkEnd, WalkReport,
    WalkStep,
};

/// A dictionary of the pairs.
macro_rules! dict {
    ($py:expr, $($key:literal: $value:expr),+ $(,)?) => {{
        let dict = PyDict::new($py);
        $(dict.set_item($key, $value)?;)+
        dict
    }};
}

/// The report of a walk.
pub(crate) fn walk<'py>(py: Python<'py>, report: &WalkReport) -> PyResult<Bound<'py, PyDict>> {
    let steps = PyList::empty(py);
    for found in &report.steps {
        steps.append(step(py, found)?)?;
    }
    let dict = dict!(py,
        "address": report.address,
        "cr3": report.cr3,
        "levels": report.levels,
        "steps": steps,
        "fault": None::<String>,
    );
    match &report.end {
        WalkEnd::Fault(fault) => dict.set_item("fault", fault.to_string())?,
        WalkEnd::Page {
            gpa,
            page_size,
            writable,
            user,
            executable,
            stage,
        } => {
            dict.set_item("gpa", gpa)?;
            dict.set_item("page_size", page_size)?;
            dict.set_item("writable", writable)?;
            dict.set_item("user", user)?;
            dict.set_item("executable", executable)?;
            dict.set_item("second_stage", second_stage(py, stage.as_ref())?)?;
        }
    }
    Ok(dict)
}

fn step<'py>(py: Python<'py>, found: &WalkStep) -> PyResult<Bound<'py, PyDict>> {
    let entry = found.step;
    Ok(dict!(py,
        "level": entry.level,
        "name": found.name,
        "gpa": entry.gpa.0,
        "entry": entry.entry,
        "writable": entry.writable,
        "user": entry.user,
        "executable": entry.executable,
        "page_size": entry.page_size,
        "second_stage": second_stage(py, found.stage.as_ref())?,
    ))
}

fn second_stage<'py>(
    py: Python<'py>,
    stage: Option<&SecondStage>,
) -> PyResult<Option<Bound<'py, PyDict>>> {
    let Some(stage) = stage else { return Ok(None) };
    Ok(Some(dict!(py,
        "slot": stage.slot,
        "slot_gpa": stage.slot_gpa,
        "slot_length": stage.slot_len,
        "hva": stage.hva,
        "page_size": stage.page_size,
        "limit": stage.limit.name(),
        "readonly": stage.readonly,
    )))
}

/// The report of page sizes.
pub(crate) fn pages<'py>(py: Python<'py>, report: &PageReport) -> PyResult<Bound<'py, PyDict>> {
    let slots = PyList::empty(py);
    for found in &report.plans {
        slots.append(plan(py, found)?)?;
    }
    let achieved = report.achieved.map(|counts| counted(py, counts));
    Ok(dict!(py,
        "slots": slots,
        "achieved": achieved.transpose()?,
        "reasons": PyTuple::new(py, &report.reasons)?,
    ))
}

fn plan<'py>(py: Python<'py>, plan: &PagePlan) -> PyResult<Bound<'py, PyDict>> {
    Ok(dict!(py,
        "slot": plan.slot.id.0,
        "gpa": plan.slot.gpa.0,
        "length": plan.slot.len,
        "hva": plan.slot.hva.0,
        "achievable": counted(py, plan.pages)?,
        "backing": plan.backing,
        "limit": plan.limit.name(),
    ))
}

/// Page sizes and counts.
fn counted<'py>(py: Python<'py>, counts: [u64; 3]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (size, count) in PAGE_SIZES.iter().zip(counts) {
        dict.set_item(size, count)?;
    }
    Ok(dict)
}

/// Names and numbers; a tuple for the buckets of a histogram.
pub(crate) fn stats<'py>(py: Python<'py>, stats: &[Stat]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for stat in stats {
        match stat.values.as_slice() {
            [value] => dict.set_item(&stat.name, value)?,
            values => dict.set_item(&stat.name, PyTuple::new(py, values)?)?,
        }
    }
    Ok(dict)
}

/// The report of exits: counts by place for each kind.
pub(crate) fn exits<'py>(py: Python<'py>, report: &ExitReport) -> PyResult<Bound<'py, PyDict>> {
    let dict = dict!(py,
        "ends_of_interrupt": report.ends_of_interrupt,
        "elsewhere": report.elsewhere,
    );
    for kind in ExitKind::ALL {
        let places = PyDict::new(py);
        for found in report.places.iter().filter(|found| found.kind == kind) {
            places.set_item(found.place, found.count)?;
        }
        dict.set_item(kind.name(), places)?;
    }
    Ok(dict)
}
