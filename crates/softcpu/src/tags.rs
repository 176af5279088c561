//! When blocks of code have to be looked at again: the vCPU's tags (`block.rs`) change.

use crate::cpu::Cpu;

impl Cpu {
    /// Drops every cached translation.
    pub(crate) fn flush_all(&mut self) {
        self.tlb.flush();
        self.forget_fetched(true);
    }

    /// Drops the cached translations of pages that are not global.
    pub(crate) fn flush_local(&mut self) {
        self.tlb.flush_local();
        self.forget_fetched(false);
    }

    /// Has blocks look again where their code is, or those in global pages not.
    pub(crate) fn forget_fetched(&mut self, global: bool) {
        let epoch = self.epochs[0].max(self.epochs[1]) + 1;
        self.epochs[0] = epoch;
        if global {
            self.epochs[1] = epoch;
        }
        self.set_tags();
    }

    /// The tags of this mode.
    pub(crate) fn set_tags(&mut self) {
        let user = u64::from(self.tlb_mode != 0);
        // The lowest bit tells a tag from none.
        let mode = user << 3 | (self.width as u64) << 1 | 1;
        self.tags = self.epochs.map(|epoch| epoch << 4 | mode);
    }
}
