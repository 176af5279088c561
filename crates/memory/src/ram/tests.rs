use std::io::Write;

use super::*;
use crate::fork::tests::status_of_child;

fn file_with(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn backings() -> Vec<Backing> {
    let (file, trusted) = (file_with(&[0; 8192]), file_with(&[0; 8192]));
    vec![
        Backing::Anon,
        Backing::Memfd,
        Backing::FilePrivate {
            file,
            trusted: false,
        },
        Backing::FilePrivate {
            file: trusted,
            trusted: true,
        },
    ]
}

#[test]
fn what_is_written_is_read() {
    for backing in backings() {
        let ram = Ram::new(8192, backing).unwrap();
        ram.write(4094, b"abcd").unwrap();
        let mut data = [0; 4];
        ram.read(4094, &mut data).unwrap();
        assert_eq!(&data, b"abcd");
        assert_eq!(ram.take_written(0, 8192), [3]);
    }
}

#[test]
fn accesses_past_the_end_are_refused() {
    let ram = Ram::new(4096, Backing::Anon).unwrap();
    assert!(matches!(
        ram.read(4095, &mut [0; 2]),
        Err(MemoryError::OutsideRam { .. })
    ));
    assert!(matches!(
        ram.write(u64::MAX, &[0]),
        Err(MemoryError::OutsideRam { .. })
    ));
    assert!(ram.load_u64(4092).is_err());
}

#[test]
fn sizes_that_are_no_pages_are_refused() {
    for len in [0, 1, 4097, u64::MAX, !4095] {
        assert!(Ram::new(len, Backing::Anon).is_err(), "{len}");
    }
}

#[test]
fn mappings_start_at_two_mebibytes() {
    let ram = Ram::new(4096, Backing::Memfd).unwrap();
    assert!(ram.hva().is_aligned(2 << 20));
}

#[test]
fn a_pool_too_small_refuses_with_its_numbers() {
    let page_size = HUGE_PAGE;
    if HugePool::all().is_empty() {
        let error = Ram::new(page_size, Backing::HugeTlb { page_size }).unwrap_err();
        assert!(matches!(error, MemoryError::NoHugePages { .. }), "{error}");
    }
    for pool in HugePool::all() {
        let page_size = pool.page_size;
        let pages = pool.available() + 3;
        let error = Ram::new(pages * page_size, Backing::HugeTlb { page_size }).unwrap_err();
        let MemoryError::HugePool { needed, wanted, .. } = error else {
            panic!("{error}");
        };
        assert_eq!((needed, wanted), (pages, pool.total + 3));
    }
}

#[test]
fn a_size_that_is_no_multiple_of_the_huge_page_is_refused() {
    let page_size = HUGE_PAGE;
    let pool = HugePool {
        page_size,
        total: 9,
        free: 9,
        reserved: 0,
    };
    let error = huge_memfd(page_size + 4096, &pool).unwrap_err();
    assert!(matches!(error, MemoryError::NotHugePages { .. }), "{error}");
}

#[test]
fn prefaulted_pages_are_there_and_keep_their_content() {
    for backing in backings() {
        let ram = Ram::new(8192, backing).unwrap();
        ram.write(4096, &[5]).unwrap();
        ram.prefault().unwrap();
        let mut resident = [0u8; 2];
        // SAFETY: two pages of our own mapping, one byte each.
        let asked = unsafe { libc::mincore(ram.base.cast(), 8192, resident.as_mut_ptr()) };
        assert_eq!((asked, resident.map(|page| page & 1)), (0, [1, 1]));
        let mut byte = [0];
        ram.read(4096, &mut byte).unwrap();
        assert_eq!(byte, [5]);
    }
}

#[test]
fn file_content_is_there_and_stays_as_it_is() {
    for trusted in [false, true] {
        let file = file_with(&[7; 4096]);
        let mut original = file.try_clone().unwrap();
        let ram = Ram::new(4096, Backing::FilePrivate { file, trusted }).unwrap();
        let mut byte = [0];
        ram.read(100, &mut byte).unwrap();
        assert_eq!(byte, [7]);
        ram.write(100, &[9]).unwrap();
        original.rewind().unwrap();
        let mut kept = Vec::new();
        io::Read::read_to_end(&mut original, &mut kept).unwrap();
        assert!(kept.iter().all(|b| *b == 7), "trusted {trusted}");
    }
}

#[test]
fn a_file_cut_short_leaves_copied_ram_alone() {
    let file = file_with(&[7; 8192]);
    let other = file.try_clone().unwrap();
    let ram = Ram::new(
        8192,
        Backing::FilePrivate {
            file,
            trusted: false,
        },
    )
    .unwrap();
    other.set_len(0).unwrap();
    let mut byte = [0];
    ram.read(5000, &mut byte).unwrap();
    assert_eq!(byte, [7]);
}

#[test]
fn a_memfd_cannot_be_cut_short() {
    let ram = Ram::new(8192, Backing::Memfd).unwrap();
    assert!(ram.file().unwrap().set_len(0).is_err());
}

#[test]
fn a_child_reads_zeros_and_leaves_the_parent_alone() {
    for backing in backings() {
        let ram = Ram::new(8192, backing).unwrap();
        ram.write(4096, &[5]).unwrap();
        let seen = status_of_child(|| {
            let mut byte = [1];
            let zero = ram.read(4096, &mut byte).is_ok() && byte == [0];
            zero && ram.write(4096, &[6]).is_ok()
        });
        assert_eq!(seen, 0);
        let mut byte = [0];
        ram.read(4096, &mut byte).unwrap();
        assert_eq!(byte, [5]);
    }
}

#[test]
fn a_lease_forbids_and_its_end_allows() {
    let ram = Ram::new(8192, Backing::Anon).unwrap();
    let lease = ram
        .lease(LeaseKind::View, 0..4096, "a view".into())
        .unwrap();
    let refused = ram.check_unleased(4095..8192, "unmapping");
    assert!(refused.unwrap_err().to_string().contains("a view"));
    assert!(ram.check_unleased(4096..8192, "unmapping").is_ok());
    drop(lease);
    assert!(ram.check_unleased(0..8192, "unmapping").is_ok());
}

#[test]
fn discarded_pages_read_as_zeros_and_count_as_written() {
    for backing in backings() {
        let trusted = matches!(backing, Backing::FilePrivate { trusted: true, .. });
        let ram = Ram::new(8192, backing).unwrap();
        ram.write(0, &[5; 8192]).unwrap();
        ram.take_written(0, 8192);
        assert_eq!(ram.discard(4096, 4096).unwrap(), !trusted);
        let mut bytes = [1; 2];
        ram.read(4095, &mut bytes).unwrap();
        assert_eq!(bytes, [5, if trusted { 5 } else { 0 }]);
        let written = if trusted { 0 } else { 2 };
        assert_eq!(ram.take_written(0, 8192), [written]);
    }
}

#[test]
fn parts_of_pages_and_pages_that_somebody_holds_are_not_discarded() {
    let ram = Ram::new(8192, Backing::Anon).unwrap();
    ram.write(0, &[5; 8192]).unwrap();
    for (offset, len) in [(1, 4096), (0, 4095), (0, 0)] {
        assert!(!ram.discard(offset, len).unwrap());
    }
    assert!(ram.discard(4096, 8192).is_err());
    let lease = ram.lease(LeaseKind::DmaMap, 0..4096, "a device".into());
    let refused = ram.discard(0, 8192).unwrap_err();
    assert!(refused.to_string().contains("a device"), "{refused}");
    drop(lease);
    assert!(ram.discard(0, 8192).unwrap());
}

#[test]
fn pages_under_a_writable_view_count_as_written_and_once_more_after_it() {
    let ram = Ram::new(8192, Backing::Anon).unwrap();
    let lease = ram
        .lease(LeaseKind::WritableView, 4096..8192, "view".into())
        .unwrap();
    assert_eq!(ram.take_written(0, 8192), [2]);
    assert_eq!(ram.take_written(0, 8192), [2]);
    drop(lease);
    assert_eq!(ram.take_written(0, 8192), [2]);
    assert_eq!(ram.take_written(0, 8192), [0]);
}
