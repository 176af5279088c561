//! The I/O APIC (Intel 82093AA data sheet; version 0x20 with the EOI register, as in ICH
//! data sheets): 24 pins, each of which sends the message of its redirection entry.
//!
//! It is an ordinary requester of messages: interrupt remapping applies to it like to any device.
//!
//! Not supported: delivery modes are passed on as the guest wrote them, without checks.

mod device;
mod entry;

pub use device::{IoApic, Pin};
pub use entry::RedirectionEntry;
