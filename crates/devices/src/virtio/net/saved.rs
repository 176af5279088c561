//! The device's state as plain data. Frames on their way are not in it: networks lose some.

use serde::{Deserialize, Serialize};
use vmlet_bus::{SavedError, SavedState};

use super::{
    MacAddress,
    filter::{Filter, MOST_ADDRESSES},
    session::Settings,
};

pub(super) const NAME: &str = "virtio-net";
const VERSION: u16 = 1;

#[derive(Serialize, Deserialize)]
struct Saved {
    mac: [u8; 6],
    promiscuous: bool,
    all_multicast: bool,
    all_unicast: bool,
    no_multicast: bool,
    no_unicast: bool,
    no_broadcast: bool,
    unicast: Option<Vec<[u8; 6]>>,
    multicast: Option<Vec<[u8; 6]>>,
}

fn bytes(list: &Option<Vec<MacAddress>>) -> Option<Vec<[u8; 6]>> {
    let list = list.as_ref()?;
    Some(list.iter().map(|address| address.0).collect())
}

fn addresses(list: Option<Vec<[u8; 6]>>) -> Result<Option<Vec<MacAddress>>, SavedError> {
    if list
        .as_ref()
        .is_some_and(|list| list.len() > MOST_ADDRESSES)
    {
        return Err(SavedError::Damaged {
            kind: NAME,
            detail: "too many addresses".to_owned(),
        });
    }
    Ok(list.map(|list| list.into_iter().map(MacAddress).collect()))
}

pub(super) fn save(settings: &Settings) -> SavedState {
    let filter = &settings.filter;
    let saved = Saved {
        mac: settings.mac.0,
        promiscuous: filter.promiscuous,
        all_multicast: filter.all_multicast,
        all_unicast: filter.all_unicast,
        no_multicast: filter.no_multicast,
        no_unicast: filter.no_unicast,
        no_broadcast: filter.no_broadcast,
        unicast: bytes(&filter.unicast),
        multicast: bytes(&filter.multicast),
    };
    SavedState::new(NAME, VERSION, &saved)
}

/// The address and the filter of `saved`.
pub(super) fn load(saved: &SavedState) -> Result<(MacAddress, Filter), SavedError> {
    let saved: Saved = saved.read(NAME, VERSION)?;
    let filter = Filter {
        promiscuous: saved.promiscuous,
        all_multicast: saved.all_multicast,
        all_unicast: saved.all_unicast,
        no_multicast: saved.no_multicast,
        no_unicast: saved.no_unicast,
        no_broadcast: saved.no_broadcast,
        unicast: addresses(saved.unicast)?,
        multicast: addresses(saved.multicast)?,
    };
    Ok((MacAddress(saved.mac), filter))
}
