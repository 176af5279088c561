//! States in which a run does not begin.

use vmlet_vcpu::FatalExit;

use crate::{
    cpu::{CR0_CD, CR0_NW, CR0_PE, CR0_PG, CR4_KNOWN, CR4_PAE, CS, Cpu, EFER_LMA, EFER_LME},
    exec::segment::{BIG, LONG},
    flags,
};

/// "VM-entry failure due to invalid guest state" (Intel SDM volume 3, appendix C).
const INVALID_STATE: u64 = 0x8000_0021;
pub(crate) const CR4_LA57: u64 = 1 << 12;

impl Cpu {
    /// Why the state cannot be run: no processor has it, or this engine lacks the mode.
    pub(crate) fn refused(&self) -> Option<FatalExit> {
        if let Some(name) = self.mode_lacking() {
            let detail = format!("the software CPU lacks {name}");
            return Some(FatalExit::Other { detail });
        }
        let reason = INVALID_STATE;
        self.is_impossible()
            .then_some(FatalExit::EntryRefused { reason })
    }

    /// The mode or feature this state is in that the engine lacks.
    fn mode_lacking(&self) -> Option<&'static str> {
        let more = self.cr4 & !CR4_KNOWN;
        if self.rflags & flags::VM != 0 {
            Some("virtual-8086 mode")
        } else if more & CR4_LA57 != 0 {
            Some("5-level paging (CR4.LA57)")
        } else {
            (more != 0).then_some("a feature that CR4 has enabled")
        }
    }

    /// Combinations that no instruction leads to (Intel SDM volume 3, section 2.5; AMD APM volume
    /// 2, section 15.5.1).
    fn is_impossible(&self) -> bool {
        let (cr0, efer, cs) = (self.cr0, self.efer, self.seg(CS).attributes);
        let long = efer & EFER_LMA != 0;
        let wanted = efer & EFER_LME != 0 && cr0 & CR0_PG != 0;
        cr0 >> 32 != 0
            || cr0 & (CR0_PG | CR0_PE) == CR0_PG
            || cr0 & (CR0_NW | CR0_CD) == CR0_NW
            || long != wanted
            || long && self.cr4 & CR4_PAE == 0
            || long && cs & (LONG | BIG) == LONG | BIG
    }
}
