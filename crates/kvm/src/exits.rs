//! Exits after which a guest cannot go on.

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_MEMORY_FAULT, KVM_EXIT_SYSTEM_EVENT,
};
use kvm_ioctls::VcpuFd;
use vmlet_vcpu::FatalExit;

use crate::ext::RunPage;

const SUBERROR_EMULATION: u32 = 1;

/// What the exit `reason`, which no callback serves, is to the user.
pub(crate) fn fatal(page: &RunPage, fd: &VcpuFd, reason: u32) -> FatalExit {
    match reason {
        KVM_EXIT_FAIL_ENTRY => FatalExit::EntryRefused {
            reason: page.entry_failure(),
        },
        KVM_EXIT_MEMORY_FAULT => FatalExit::Memory {
            gpa: page.memory_fault(),
        },
        KVM_EXIT_INTERNAL_ERROR => internal_error(page, fd),
        KVM_EXIT_SYSTEM_EVENT => FatalExit::Other {
            detail: format!("KVM system event {}", page.system_event()),
        },
        other => FatalExit::Other {
            detail: format!("KVM exit reason {other}"),
        },
    }
}

fn internal_error(page: &RunPage, fd: &VcpuFd) -> FatalExit {
    let (suberror, data) = page.internal_error();
    if suberror != SUBERROR_EMULATION {
        return FatalExit::Other {
            detail: format!("KVM internal error {suberror}, data {data:x?}"),
        };
    }
    let bytes = instruction_bytes(&data);
    FatalExit::Instruction {
        rip: fd.get_regs().unwrap_or_default().rip,
        bytes,
        name: None,
    }
}

/// `KVM_INTERNAL_ERROR_EMULATION` carries flags, then, if bit 0 of them is set, a length byte and
/// up to 15 instruction bytes.
fn instruction_bytes(data: &[u64]) -> Vec<u8> {
    let Some((flags, rest)) = data.split_first() else {
        return Vec::new();
    };
    let raw: Vec<u8> = rest.iter().flat_map(|word| word.to_le_bytes()).collect();
    match raw.split_first() {
        Some((len, bytes)) if flags & 1 != 0 => {
            let len = usize::from(*len).min(15);
            bytes.get(..len).unwrap_or_default().to_vec()
        }
        _ => Vec::new(),
    }
}

/// `KVM_RUN` failed on an access of the guest: its slot's host memory cannot be had, as behind the
/// end of a file that was cut short. Current kernels tell the address.
pub(crate) fn unserved(page: &RunPage) -> FatalExit {
    if page.exit_reason() == KVM_EXIT_MEMORY_FAULT {
        let gpa = page.memory_fault();
        return FatalExit::Memory { gpa };
    }
    FatalExit::Other {
        detail: "the guest accessed memory that the host cannot provide (KVM_RUN: EFAULT)".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruction_bytes_follow_their_length() {
        let data = [1, u64::from_le_bytes([3, 0x0f, 0x01, 0xd0, 0, 0, 0, 0]), 0];
        assert_eq!(instruction_bytes(&data), [0x0f, 0x01, 0xd0]);
    }

    #[test]
    fn without_the_flag_there_are_no_instruction_bytes() {
        for data in [&[][..], &[0, 0xcc01], &[1]] {
            assert!(instruction_bytes(data).is_empty(), "{data:x?}");
        }
    }

    #[test]
    fn a_length_beyond_15_or_the_data_gives_what_is_there_at_most() {
        assert_eq!(instruction_bytes(&[1, u64::MAX, u64::MAX]).len(), 15);
        assert!(instruction_bytes(&[1, u64::MAX]).is_empty());
    }
}
