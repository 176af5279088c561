//! The register page as it is saved and restored; a running timer is saved by what is left of it.

use std::sync::atomic::Ordering;

use super::{
    COUNT, CURRENT, ID, IRR, LVT_TIMER, Lapic, PAGE, TIMER_DEADLINE, TIMER_MODE, TIMER_PERIODIC,
};

impl Lapic {
    /// The register page.
    pub(crate) fn save(&self, now: u64) -> Vec<u8> {
        let state = self.lock();
        let mut page = vec![0; PAGE];
        for (chunk, word) in page.chunks_mut(16).zip(state.words) {
            if let Some(bytes) = chunk.get_mut(..4) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
        if let (true, Some(bytes)) = (state.x2apic(), page.get_mut(ID..ID + 4)) {
            bytes.copy_from_slice(&(self.id << 24).to_le_bytes());
        }
        let current = state.current(now);
        if let Some(bytes) = page.get_mut(CURRENT..CURRENT + 4) {
            bytes.copy_from_slice(&current.to_le_bytes());
        }
        page
    }

    /// Takes over a register page.
    pub(crate) fn restore(&self, page: &[u8], now: u64) {
        let mut state = self.lock();
        for (word, chunk) in state.words.iter_mut().zip(page.chunks(16)) {
            if let Some(Ok(bytes)) = chunk.get(..4).map(TryInto::try_into) {
                *word = u32::from_le_bytes(bytes);
            }
        }
        let shown = if state.x2apic() {
            self.id
        } else {
            self.id << 24
        };
        state.put(ID, shown);
        state.deadline = None;
        let counts = state.get(LVT_TIMER) & TIMER_MODE != TIMER_DEADLINE;
        let mut current = u64::from(state.get(CURRENT));
        if current == 0 && state.get(LVT_TIMER) & TIMER_MODE == TIMER_PERIODIC {
            // Caught between two periods.
            current = state.get(COUNT).into();
        }
        if counts && current != 0 {
            let left = current * state.tick();
            state.deadline = Some(now.saturating_add(left));
        }
        self.waits
            .store(state.highest(IRR).is_some(), Ordering::SeqCst);
        drop(state);
        self.signal.wake();
    }
}
