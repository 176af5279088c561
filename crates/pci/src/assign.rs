//! Addresses for BARs and bridge windows, as firmware gives them before the guest starts.
//!
//! Every port has a window below 4 GiB and, where there is room, one above for prefetchable BARs:
//! large enough for what is in it, and otherwise for what may come.

use std::ops::Range;

use crate::{BarKind, BarLayout, PciError, Windows};

/// Bridge windows come in mebibytes (PCIe 6.0, section 7.5.1.3.8).
const GRANULE: u64 = 1 << 20;
/// What an empty port gets.
const LOW_SPARE: u64 = 8 << 20;
const HIGH_SPARE: u64 = 1 << 30;

/// What is in a port.
#[derive(Clone, Debug)]
pub(crate) struct Needs {
    pub(crate) device: &'static str,
    pub(crate) bars: Vec<BarLayout>,
}

/// What a port gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) low: Range<u64>,
    pub(crate) high: Range<u64>,
    /// BAR register and address.
    pub(crate) bars: Vec<(u8, u64)>,
}

/// A window, and the BARs in it: register and address.
type Placed = (Range<u64>, Vec<(u8, u64)>);

/// Addresses that are given away from the lowest up.
struct Pool {
    next: u64,
    end: u64,
    spare: u64,
}

impl Pool {
    /// The pool of `window`, of which each of `ports` can have `most`, or an equal part.
    fn new(window: &Range<u64>, ports: usize, most: u64) -> Pool {
        let bytes = window.end.saturating_sub(window.start);
        let part = bytes / (ports as u64 * 2).max(1);
        // A power of two, or nothing.
        let part = if part < GRANULE { 0 } else { 1 << part.ilog2() };
        Pool {
            next: window.start,
            end: window.end,
            spare: part.min(most),
        }
    }

    /// A window that holds `bars`, and their places.
    fn take(&mut self, mut bars: Vec<BarLayout>) -> Option<Placed> {
        // The largest first: each is then where its size wants it.
        bars.sort_by_key(|bar| std::cmp::Reverse(bar.size));
        let align = bars
            .first()
            .map_or(0, |bar| bar.size)
            .max(self.spare)
            .max(GRANULE);
        let start = self.next.checked_next_multiple_of(align)?;
        let (mut at, mut placed) = (start, Vec::new());
        for bar in bars {
            placed.push((bar.index, at));
            at = at.checked_add(bar.size)?;
        }
        let end = at.max(start.checked_add(self.spare)?);
        let end = end.checked_next_multiple_of(GRANULE)?;
        if end > self.end {
            return None;
        }
        if end > start {
            self.next = end;
        }
        Some((start..end, placed))
    }
}

/// Shares `windows` among the ports.
pub(crate) fn plan(windows: &Windows, ports: &[Option<Needs>]) -> Result<Vec<Share>, PciError> {
    let mut low = Pool::new(&windows.low, ports.len(), LOW_SPARE);
    let mut high = Pool::new(&windows.high, ports.len(), HIGH_SPARE);
    let share = |needs: &Option<Needs>| {
        let bars = needs.iter().flat_map(|needs| needs.bars.iter().copied());
        let above = |bar: &BarLayout| bar.kind == BarKind::Prefetchable64 && high.spare > 0;
        let (above, mut below): (Vec<_>, Vec<_>) = bars.partition(above);
        let (high, mut bars) = high.take(above.clone()).unwrap_or_else(|| {
            below.extend(above);
            (0..0, Vec::new())
        });
        let bytes = below.iter().map(|bar| bar.size).sum();
        let (low, more) = low.take(below).ok_or_else(|| PciError::NoRoom {
            device: needs.as_ref().map_or("an empty port", |needs| needs.device),
            bytes,
            left: low.end.saturating_sub(low.next),
        })?;
        bars.extend(more);
        Ok(Share { low, high, bars })
    };
    ports.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOW: Range<u64> = 0xc000_0000..0xe000_0000;
    const HIGH: Range<u64> = 0x10_0000_0000..0x20_0000_0000;

    fn needs(bars: &[(u64, BarKind)]) -> Option<Needs> {
        let bar = |(index, (size, kind)): (u8, &(u64, BarKind))| BarLayout {
            index: index * 2,
            size: *size,
            kind: *kind,
        };
        Some(Needs {
            device: "test",
            bars: (0..).zip(bars).map(bar).collect(),
        })
    }

    fn windows(high: Range<u64>) -> Windows {
        Windows { low: LOW, high }
    }

    #[test]
    fn an_empty_port_has_room_for_what_may_come() {
        let shares = plan(&windows(HIGH), &[None, None]).unwrap();
        assert_eq!(shares[0].low, 0xc000_0000..0xc080_0000);
        assert_eq!(shares[1].low, 0xc080_0000..0xc100_0000);
        assert_eq!(shares[1].high, 0x10_4000_0000..0x10_8000_0000);
    }

    #[test]
    fn prefetchable_bars_are_above_4_gib_where_there_is_room() {
        let bars = needs(&[
            (0x4000, BarKind::Prefetchable64),
            (0x4000, BarKind::Memory64),
        ]);
        let share = &plan(&windows(HIGH), std::slice::from_ref(&bars)).unwrap()[0];
        assert_eq!(share.bars, [(0, 0x10_0000_0000), (2, 0xc000_0000)]);
        let share = &plan(&windows(0..0), &[bars]).unwrap()[0];
        assert_eq!(share.bars, [(0, 0xc000_0000), (2, 0xc000_4000)]);
        assert_eq!(share.high, 0..0);
    }

    #[test]
    fn a_bar_that_no_window_holds_is_refused_by_its_name_and_size() {
        let error = plan(&windows(HIGH), &[needs(&[(1 << 31, BarKind::Memory32)])]).unwrap_err();
        assert!(matches!(
            error,
            PciError::NoRoom {
                device: "test",
                bytes: 0x8000_0000,
                left: 0x2000_0000
            }
        ));
    }

    proptest! {
        #[test]
        fn shares_never_overlap_and_hold_their_aligned_bars(
            ports in proptest::collection::vec(
                proptest::collection::vec((7u32..26, 0u8..3), 0..3), 1..30)
        ) {
            let kind = |kind| [BarKind::Memory32, BarKind::Memory64, BarKind::Prefetchable64][kind];
            let ports: Vec<_> = ports.iter().map(|bars| {
                let bars: Vec<_> = bars.iter().map(|(s, k)| (1 << s, kind(usize::from(*k)))).collect();
                needs(&bars)
            }).collect();
            if let Ok(shares) = plan(&windows(HIGH), &ports) {
                for pair in shares.windows(2) {
                    prop_assert!(pair[0].low.end <= pair[1].low.start);
                    prop_assert!(pair[0].high.end <= pair[1].high.start);
                }
                for (share, needs) in shares.iter().zip(&ports) {
                    for (index, at) in &share.bars {
                        let bar = needs.as_ref().unwrap().bars.iter().find(|b| b.index == *index).unwrap();
                        let inside = |w: &Range<u64>| w.start <= *at && at + bar.size <= w.end;
                        prop_assert!(at.is_multiple_of(bar.size));
                        prop_assert!(inside(&share.low) || inside(&share.high));
                    }
                }
            }
        }
    }
}
