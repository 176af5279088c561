//! Rooms of this crate follow.
