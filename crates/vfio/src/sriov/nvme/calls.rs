//! The ioctl of NVMe's admin commands (`include/uapi/linux/nvme_ioctl.h`).
//!
//! Invariant: the command is a structure of ours in the kernel's layout, and names no memory but the
//! caller's `data`, with its length, which outlives the call.

#![expect(unsafe_code, reason = "an ioctl")]

use std::{ffi::c_ulong, fs::File, io, path::Path};

use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use super::command::{AdminCommand, AdminQueue};
use crate::sysfs::Sysfs;

/// `_IOWR('N', 0x41, struct nvme_admin_cmd)`.
const ADMIN_COMMAND: c_ulong = 0xc048_4e41;
const PATIENCE_MILLIS: u32 = 10_000;

/// `struct nvme_admin_cmd`.
#[repr(C)]
#[derive(Default)]
struct Passthrough {
    opcode: u8,
    flags: u8,
    reserved: u16,
    namespace: u32,
    dwords_2_3: [u32; 2],
    metadata: u64,
    address: u64,
    metadata_len: u32,
    data_len: u32,
    dwords_10_15: [u32; 6],
    timeout_millis: u32,
    result: u32,
}

const _: () = assert!(size_of::<Passthrough>() == 0x48);

impl AdminQueue for Sysfs {
    fn admin(&self, file: &Path, command: AdminCommand, data: &mut [u8]) -> io::Result<u16> {
        let file = File::open(file)?;
        let [dword_10, dword_11] = command.dwords;
        let mut passed = Passthrough {
            opcode: command.opcode,
            address: if data.is_empty() {
                0
            } else {
                data.as_mut_ptr() as u64
            },
            data_len: u32::try_from(data.len()).map_err(io::Error::other)?,
            dwords_10_15: [dword_10, dword_11, 0, 0, 0, 0],
            timeout_millis: PATIENCE_MILLIS,
            ..Passthrough::default()
        };
        // SAFETY: the structure has the layout that the number of the call stands for, and `data` is
        // borrowed until the call returns, when the controller has done with it.
        let status = unsafe { ioctl_with_mut_ref(&file, ADMIN_COMMAND, &mut passed) };
        // Below 0: the call's own failure; above: the controller's answer.
        u16::try_from(status).map_err(|_| io::Error::last_os_error())
    }
}
