//! Images as users name them.

use std::{
    fs::File,
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use imago::{FormatCreateBuilder, StorageOpenOptions, file::File as Storage, qcow2::Qcow2};
use vmlet_bus::Dma;
use vmlet_memory::Iova;

use super::*;
use crate::virtio::{
    Buffer,
    testing::{BUFFERS, dma},
};

const BYTES: u64 = 1 << 20;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn options(path: PathBuf) -> DiskOptions {
    DiskOptions {
        path,
        ..DiskOptions::default()
    }
}

fn raw(folder: &Path) -> PathBuf {
    let path = folder.join("disk.img");
    let mut file = File::create(&path).unwrap();
    file.write_all(&vec![7; 1 << 20]).unwrap();
    path
}

fn qcow2(folder: &Path) -> DiskOptions {
    let path = folder.join("disk.qcow2");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    let storage = Storage::from_open_file(file, StorageOpenOptions::new().write(true)).unwrap();
    let builder = Qcow2::<Storage>::create_builder(storage);
    builder.size(BYTES).create().unwrap();
    DiskOptions {
        format: DiskFormat::Qcow2,
        ..options(path)
    }
}

fn memory(dma: &Dma, at: u64, len: u32, write: bool) -> GuestIo {
    let addr = Iova(at);
    GuestIo::hold(&dma.view(), [Buffer { addr, len }].into_iter(), write).unwrap()
}

/// Writes `len` bytes of `value` at `offset`, from an odd address.
fn write(image: &dyn Image, offset: u64, len: u32, value: u8) {
    let dma = dma();
    dma.write(Iova(BUFFERS + 8), &vec![value; len as usize])
        .unwrap();
    image
        .write(offset, &memory(&dma, BUFFERS + 8, len, false))
        .unwrap();
}

fn read(image: &dyn Image, offset: u64, len: u32) -> Vec<u8> {
    let dma = dma();
    image
        .read(offset, &memory(&dma, BUFFERS + 8, len, true))
        .unwrap();
    let mut data = vec![0; len as usize];
    dma.read(Iova(BUFFERS + 8), &mut data).unwrap();
    data
}

#[track_caller]
fn works(image: &dyn Image) {
    write(image, 512, 512, 1);
    write(image, 8192, 8192, 2);
    image.flush().unwrap();
    image.write_zeroes(12288, 4096, false).unwrap();
    image.discard(65536, 65536).unwrap();
    assert_eq!(read(image, 512, 512), [1; 512]);
    assert_eq!(read(image, 8192, 4096), [2; 4096]);
    assert_eq!(read(image, 12288, 4096), [0; 4096]);
}

#[test]
fn images_of_every_kind_keep_what_is_written() {
    let folder = folder();
    let path = raw(folder.path());
    let kinds = [
        options(path.clone()),
        DiskOptions {
            direct: true,
            ..options(path.clone())
        },
        DiskOptions {
            overlay: true,
            ..options(path)
        },
        qcow2(folder.path()),
    ];
    for options in kinds {
        let image = match open(&options) {
            // A folder of temporary files in memory may have no direct I/O.
            Err(BlockError::Open { source, .. }) if options.direct => {
                assert_eq!(source.raw_os_error(), Some(libc::EINVAL));
                continue;
            }
            image => image.unwrap(),
        };
        assert_eq!(image.len(), BYTES);
        works(&*image);
        image.close().unwrap();
    }
}

#[test]
fn a_qcow2_image_has_what_was_written_when_it_is_opened_again() {
    let folder = folder();
    let options = qcow2(folder.path());
    let image = open(&options).unwrap();
    write(&*image, 4096, 512, 9);
    image.close().unwrap();
    drop(image);
    let image = open(&DiskOptions {
        readonly: true,
        ..options
    });
    let image = image.unwrap();
    assert!(image.is_readonly());
    assert_eq!(read(&*image, 4096, 512), [9; 512]);
    assert_eq!(read(&*image, 8192, 512), [0; 512]);
}

#[test]
fn a_format_is_what_the_user_says() {
    let folder = folder();
    let as_qcow2 = DiskOptions {
        format: DiskFormat::Qcow2,
        ..options(raw(folder.path()))
    };
    assert!(matches!(
        open(&as_qcow2),
        Err(BlockError::WrongFormat { .. })
    ));
    let as_raw = DiskOptions {
        format: DiskFormat::Raw,
        ..qcow2(folder.path())
    };
    let image = open(&as_raw).unwrap();
    assert_eq!(read(&*image, 0, 512)[..4], *b"QFI\xfb");
}

#[test]
fn a_damaged_qcow2_image_is_refused() {
    let folder = folder();
    let options = qcow2(folder.path());
    let file = File::options().write(true).open(&options.path).unwrap();
    // The number of bits of a cluster.
    file.write_all_at(&[0xff; 4], 20).unwrap();
    assert!(matches!(open(&options), Err(BlockError::Format { .. })));
}

#[test]
fn an_image_has_one_writer_or_any_number_of_readers() {
    let folder = folder();
    let writer = options(raw(folder.path()));
    let reader = DiskOptions {
        readonly: true,
        ..writer.clone()
    };
    let readers: Vec<Arc<dyn Image>> = (0..3).map(|_| open(&reader).unwrap()).collect();
    assert!(matches!(open(&writer), Err(BlockError::InUse { .. })));
    readers.iter().for_each(|image| image.close().unwrap());
    let _image = open(&writer).unwrap();
    assert!(matches!(open(&reader), Err(BlockError::InUse { .. })));
}

#[test]
fn sizes_that_are_no_sectors_are_refused() {
    let folder = folder();
    for (len, ragged) in [(0, false), (511, false), (513, true)] {
        let path = folder.path().join("odd.img");
        std::fs::write(&path, vec![0; len]).unwrap();
        match open(&options(path)).unwrap_err() {
            BlockError::Ragged { .. } => assert!(ragged),
            BlockError::TooShort { .. } => assert!(!ragged),
            other => panic!("{other}"),
        }
    }
}
