//! Saved state of a device: untrusted until the device has taken it.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

/// A device's state, as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedState {
    /// Which device.
    pub kind: String,
    /// Which layout of `data`; a device refuses a version it does not know.
    pub version: u16,
    /// The layout's fields, as JSON.
    pub data: String,
}

/// Why a device does not take a state.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SavedError {
    /// Another device's state.
    #[error("state of {found}, not of {expected}")]
    Kind {
        /// What the device is.
        expected: &'static str,
        /// What the state is of.
        found: String,
    },
    /// A layout this version does not know.
    #[error("{kind} state of version {version}, known is up to {known}")]
    Version {
        /// The device.
        kind: &'static str,
        /// The state's version.
        version: u16,
        /// The highest known.
        known: u16,
    },
    /// Values the device can never have.
    #[error("{kind} state is damaged: {detail}")]
    Damaged {
        /// The device.
        kind: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// The board has no such device there.
    #[error("the board has no {kind} at {start:#x}")]
    NoDevice {
        /// What the state is of.
        kind: String,
        /// First address of the device's range.
        start: u64,
    },
}

impl SavedState {
    /// `fields` of `kind` in layout `version`.
    pub fn new<T: Serialize>(kind: &'static str, version: u16, fields: &T) -> SavedState {
        SavedState {
            kind: kind.to_owned(),
            version,
            // Structures of numbers have no value that JSON lacks.
            data: serde_json::to_string(fields).unwrap_or_default(),
        }
    }

    /// The fields, if they are `kind`'s in layout `version`.
    pub fn read<T: DeserializeOwned>(
        &self,
        kind: &'static str,
        version: u16,
    ) -> Result<T, SavedError> {
        if self.kind != kind {
            return Err(SavedError::Kind {
                expected: kind,
                found: self.kind.clone(),
            });
        }
        if self.version != version {
            return Err(SavedError::Version {
                kind,
                version: self.version,
                known: version,
            });
        }
        serde_json::from_str(&self.data).map_err(|error| SavedError::Damaged {
            kind,
            detail: error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_devices_state_and_unknown_versions_are_refused() {
        let state = SavedState::new("rtc", 2, &(1u8, 300u16));
        assert!(matches!(
            state.read::<(u8, u16)>("serial", 2),
            Err(SavedError::Kind { .. })
        ));
        assert!(matches!(
            state.read::<(u8, u16)>("rtc", 1),
            Err(SavedError::Version { version: 2, .. })
        ));
        assert_eq!(state.read("rtc", 2), Ok((1u8, 300u16)));
    }

    #[test]
    fn fields_out_of_range_are_damage() {
        let state = SavedState::new("rtc", 2, &(1u8, 70_000u32));
        assert!(matches!(
            state.read::<(u8, u16)>("rtc", 2),
            Err(SavedError::Damaged { kind: "rtc", .. })
        ));
    }
}
