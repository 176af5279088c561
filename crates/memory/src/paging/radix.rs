//! What every x86 page-table format shares: a radix tree whose levels each take index bits of an
//! address, from the highest down.

/// How the levels of a tree split an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Levels, at most five; 0 for no tree at all.
    pub(crate) levels: u8,
    /// Index bits a level.
    pub(crate) index_bits: u32,
    /// Bytes an entry.
    pub(crate) entry_size: u64,
}

/// What an entry leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next<L> {
    /// A table of the next lower level, at this address.
    Table(u64),
    /// The end.
    Leaf(L),
}

impl Geometry {
    /// 512 entries of eight bytes a table.
    pub(crate) const fn long(levels: u8) -> Geometry {
        Geometry {
            levels,
            index_bits: 9,
            entry_size: 8,
        }
    }

    /// Number of the lowest address bit that the index of `level` takes.
    pub(crate) fn shift(&self, level: u8) -> u32 {
        12 + self.index_bits * (u32::from(level).saturating_sub(1))
    }

    /// Bytes that one entry of `level` spans.
    pub(crate) fn span(&self, level: u8) -> u64 {
        1 << self.shift(level)
    }

    /// Address bits that the whole tree takes.
    pub(crate) fn address_bits(&self) -> u32 {
        self.shift(self.levels) + self.index_bits
    }

    /// Where the entry for `address` lies in the table of `level` at `table`.
    pub(crate) fn entry_address(&self, table: u64, level: u8, address: u64) -> u64 {
        let index = (address >> self.shift(level)) & ((1 << self.index_bits) - 1);
        table.wrapping_add(index * self.entry_size)
    }

    /// Follows the entries for `address` from the table at `root` down. `visit` gets the level and
    /// the place of an entry and says where it leads; it is called at most once a level, whatever
    /// the tables hold. `None`: the entry of the last level led to a table.
    pub(crate) fn descend<L, E>(
        &self,
        root: u64,
        address: u64,
        visit: &mut dyn FnMut(u8, u64) -> Result<Next<L>, E>,
    ) -> Result<Option<L>, E> {
        let mut table = root;
        for level in (1..=self.levels).rev() {
            match visit(level, self.entry_address(table, level, address))? {
                Next::Table(next) => table = next,
                Next::Leaf(leaf) => return Ok(Some(leaf)),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_levels_of_nine_bits_take_forty_eight() {
        assert_eq!(Geometry::long(4).address_bits(), 48);
        assert_eq!(Geometry::long(5).address_bits(), 57);
        assert_eq!(Geometry::long(4).span(3), 1 << 30);
    }

    #[test]
    fn a_tree_that_never_ends_is_left_after_its_last_level() {
        let mut visits = 0;
        let found = Geometry::long(4).descend(0x1000, 0, &mut |_, _| {
            visits += 1;
            Ok::<Next<()>, ()>(Next::Table(0x1000))
        });
        assert_eq!((found, visits), (Ok(None), 4));
    }
}
