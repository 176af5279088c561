//! What this host offers, and images for guests.

use std::path::PathBuf;

use pyo3::{prelude::*, types::PyBytes};
use serde_json::{Map, Value, json};
use vmlet_host::HostRoot;
use vmlet_machine::{
    Choice, EngineChoice, EngineReport, MachineError, ModelReport,
    initramfs::{Archive, Node, add_directory, select},
};

use crate::{finalization, gateway};

/// What procfs and sysfs say of this host: a JSON list of findings.
#[pyfunction]
pub(crate) fn host_findings(py: Python<'_>) -> String {
    finalization::detach(py, || {
        json!(vmlet_host::findings(&HostRoot::default())).to_string()
    })
}

/// For each CPU model and each engine what of the model the engine lacks, and what guests see of
/// the processor though the model has not got it.
fn models(reports: &[ModelReport]) -> Value {
    let mut all = Map::new();
    for report in reports {
        let engines = all.entry(report.model).or_insert_with(|| json!({}));
        if let Some(engines) = engines.as_object_mut() {
            let found = json!({"missing": report.missing, "unmasked": report.unmasked});
            engines.insert(report.engine.to_owned(), found);
        }
    }
    Value::Object(all)
}

/// What small guests on /dev/kvm found out: a JSON object.
#[pyfunction]
pub(crate) fn kvm_probe(py: Python<'_>) -> String {
    let EngineReport {
        engine,
        usable,
        runs_kernels,
        detail,
        remedy,
        vendor,
        tsc_khz,
    } = finalization::detach(py, vmlet_machine::report);
    let models = models(&finalization::detach(py, vmlet_machine::models));
    json!({
        "engine": engine,
        "usable": usable,
        "runs_kernels": runs_kernels,
        "detail": detail,
        "remedy": remedy,
        "vendor": vendor,
        "tsc_khz": tsc_khz,
        "cpu_models": models,
    })
    .to_string()
}

/// The engine that "auto" stands for, why, and what would give a faster one.
#[pyfunction]
pub(crate) fn choose_engine(py: Python<'_>) -> PyResult<(&'static str, String, Option<String>)> {
    let Choice {
        engine,
        reason,
        remedy,
    } = gateway::call(py, vmlet_machine::choose)?;
    Ok((engine.name(), reason, remedy))
}

/// What the default command line of a Linux guest carries on `engine` ("kvm" or "soft") alone.
#[pyfunction]
pub(crate) fn linux_cmdline(engine: &str) -> &'static str {
    let known = [EngineChoice::Kvm, EngineChoice::Soft];
    let found = known.into_iter().find(|known| known.name() == engine);
    found.map_or("", vmlet_machine::linux_cmdline)
}

/// An initramfs image: what lies in `directory`, then `files` (name, permission bits, content),
/// then `links` (name, target), then the console device, then `modules` of the kernel whose
/// modules lie in `modules_directory`, with what they need: /modules/NN-NAME.ko in load order.
#[pyfunction]
#[pyo3(signature = (*, directory = None, files = vec![], links = vec![], modules = vec![], modules_directory = None))]
pub(crate) fn build_initramfs<'py>(
    py: Python<'py>,
    directory: Option<PathBuf>,
    files: Vec<(String, u32, Vec<u8>)>,
    links: Vec<(String, String)>,
    modules: Vec<String>,
    modules_directory: Option<PathBuf>,
) -> PyResult<Bound<'py, PyBytes>> {
    let bytes = gateway::call(py, || {
        let mut archive = Archive::new();
        if let Some(directory) = directory {
            add_directory(&mut archive, &directory)?;
        }
        for (name, mode, content) in files {
            archive.add(&name, Node::File { mode, content })?;
        }
        for (name, target) in links {
            archive.add(&name, Node::Symlink { target })?;
        }
        archive.add(
            "dev/console",
            Node::Character {
                mode: 0o600,
                major: 5,
                minor: 1,
            },
        )?;
        add_modules(&mut archive, &modules, modules_directory)?;
        Ok(archive.finish()?)
    })?;
    Ok(PyBytes::new(py, &bytes))
}

fn add_modules(
    archive: &mut Archive,
    modules: &[String],
    directory: Option<PathBuf>,
) -> Result<(), MachineError> {
    if modules.is_empty() {
        return Ok(());
    }
    let directory = directory.ok_or(MachineError::Config {
        what: "modules_directory",
        detail: "None when modules are asked for".to_owned(),
        remedy: "Give the kernel's modules directory.",
    })?;
    for (number, module) in select(&directory, modules)?.into_iter().enumerate() {
        let name = format!("modules/{number:02}-{}.ko", module.name);
        archive.add(
            &name,
            Node::File {
                mode: 0o644,
                content: module.content,
            },
        )?;
    }
    Ok(())
}

/// Waits until the kernel has freed what closed VMs held.
#[pyfunction]
pub(crate) fn drain(py: Python<'_>) {
    finalization::detach(py, vmlet_machine::drain);
}
