//! A CPUID table: leaves, subleaves and their four registers.

use serde::{Deserialize, Serialize};

/// One answer of `cpuid`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are the architecture's own names")]
pub struct CpuidEntry {
    pub leaf: u32,
    pub subleaf: u32,
    /// Whether the answer depends on the subleaf (ECX).
    pub indexed: bool,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// All answers, in the engine's order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidTable {
    /// The answers.
    pub entries: Vec<CpuidEntry>,
}

impl CpuidTable {
    /// The answer for `leaf` and `subleaf`.
    pub fn get(&self, leaf: u32, subleaf: u32) -> Option<&CpuidEntry> {
        self.entries
            .iter()
            .find(|e| e.leaf == leaf && (!e.indexed || e.subleaf == subleaf))
    }

    /// Changes every answer of `leaf`.
    pub fn edit(&mut self, leaf: u32, change: impl FnMut(&mut CpuidEntry)) {
        self.entries
            .iter_mut()
            .filter(|e| e.leaf == leaf)
            .for_each(change);
    }

    /// Replaces all answers of `leaf` by `entries`.
    pub fn replace(&mut self, leaf: u32, entries: impl IntoIterator<Item = CpuidEntry>) {
        self.entries.retain(|e| e.leaf != leaf);
        self.entries.extend(entries);
        self.entries.sort_by_key(|e| (e.leaf, e.subleaf));
    }

    /// The vendor string of leaf 0, such as "AuthenticAMD".
    pub fn vendor(&self) -> String {
        let Some(leaf) = self.get(0, 0) else {
            return String::new();
        };
        let bytes = [leaf.ebx, leaf.edx, leaf.ecx]
            .map(u32::to_le_bytes)
            .concat();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether guests may use 1 GiB pages (leaf 0x80000001 EDX bit 26).
    pub fn gibibyte_pages(&self) -> bool {
        self.get(0x8000_0001, 0)
            .is_some_and(|e| e.edx & 1 << 26 != 0)
    }

    /// Physical address bits (leaf 0x80000008 EAX bits 7-0), 36 when the table does not say.
    pub fn physical_address_bits(&self) -> u8 {
        self.get(0x8000_0008, 0)
            .map_or(36, |e| (e.eax & 0xff) as u8)
    }
}
