//! Saved state of a device: untrusted until the device has taken it.

use thiserror::Error;

/// A device's state, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedState {
    /// Which device.
    pub kind: String,
    /// Which layout of `data`; a device refuses a version it does not know.
    pub version: u16,
    /// Little-endian fields in the layout's order.
    pub data: Vec<u8>,
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
        detail: &'static str,
    },
}

impl SavedState {
    /// The data, if it is `kind`'s in layout `version`.
    pub fn expect(&self, kind: &'static str, version: u16) -> Result<&[u8], SavedError> {
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
        Ok(&self.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_devices_state_and_unknown_versions_are_refused() {
        let state = SavedState {
            kind: "rtc".into(),
            version: 2,
            data: vec![1],
        };
        assert!(matches!(
            state.expect("serial", 2),
            Err(SavedError::Kind { .. })
        ));
        assert!(matches!(
            state.expect("rtc", 1),
            Err(SavedError::Version { version: 2, .. })
        ));
        assert_eq!(state.expect("rtc", 2), Ok(&[1][..]));
    }
}
