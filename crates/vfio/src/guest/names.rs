//! What messages call a device.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use vmlet_host::PciAddress;

/// A bus names its functions by constants. One text an address is kept, however often the device is
/// attached.
static NAMES: Mutex<BTreeMap<PciAddress, &'static str>> = Mutex::new(BTreeMap::new());

/// "vfio 0000:01:10.0".
pub(super) fn of(address: PciAddress) -> &'static str {
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    names
        .entry(address)
        .or_insert_with(|| Box::leak(format!("vfio {address}").into_boxed_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_one_name_however_often_it_is_asked_for() {
        let address = "0000:01:10.0".parse().unwrap();
        let (first, second) = (of(address), of(address));
        assert_eq!(first, "vfio 0000:01:10.0");
        assert!(std::ptr::eq(first, second));
    }
}
