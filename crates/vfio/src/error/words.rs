//! Lists and choices in the texts of errors.

use vmlet_host::{PciAddress, Use};

use crate::Touched;

pub(super) fn list(uses: &[Use], part: fn(&Use) -> &String) -> String {
    let parts: Vec<&str> = uses.iter().map(|one| part(one).as_str()).collect();
    parts.join(", ")
}

/// "process 812 (python3) has", "a and b have".
pub(super) fn having(users: &[String]) -> String {
    match users {
        [] => "somebody has".to_owned(),
        [one] => format!("{one} has"),
        several => format!("{} have", several.join(" and ")),
    }
}

pub(super) fn addresses(all: &[PciAddress]) -> String {
    let each: Vec<String> = all.iter().map(PciAddress::to_string).collect();
    each.join(", ")
}

pub(super) fn touches(touched: &[Touched]) -> String {
    let each = touched.iter();
    let each: Vec<String> = each
        .map(|one| format!("{} ({})", one.address, one.holder))
        .collect();
    each.join(", ")
}

/// How to get what a reset touches.
pub(super) fn give(touched: &[Touched]) -> String {
    let each = touched.iter();
    let each: Vec<String> = each
        .map(|one| format!("vmlet vfio bind {}", one.address))
        .collect();
    format!(
        "As root: {}; and open them for the same VM, or beside this device",
        each.join(", ")
    )
}

pub(super) fn nvme_range(what: &str, least: u16, most: u16, step: u16) -> String {
    match step {
        _ if most < least => format!("{most} {what} and needs {least}"),
        0 | 1 => format!("{least} to {most} {what}"),
        _ => format!("{least} to {most} {what} in steps of {step}"),
    }
}

pub(super) fn no_vf_driver(driver: Option<&str>) -> String {
    match driver {
        Some(driver) => format!("its driver {driver} does not do that"),
        None => "no driver has it".to_owned(),
    }
}
