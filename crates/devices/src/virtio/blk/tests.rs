//! Clauses of virtio 1.2, section 5.2, and images that misbehave.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use vmlet_reactor::{Reactor, Spawner};

use super::{
    Blk, BlkOptions,
    spec::{feature, kind},
};
use crate::{
    backend::block::{GuestIo, Image, Overlay, RawImage},
    virtio::{
        Place, VirtioDevice,
        testing::{BUFFERS, Driver, Heard, Lent, activate, dma, readable, writable},
    },
};

const SECTORS: u8 = 64;
const BYTES: u64 = 64 * 512;
const HEADER_AT: u64 = BUFFERS;
const STATUS_AT: u64 = BUFFERS + 0x100;
const DATA_AT: u64 = BUFFERS + 0x1000;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const NO_ANSWER: u8 = 0xee;
const ALL: u64 = feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES;

fn spawner() -> Arc<Spawner> {
    Arc::new(|name, body| thread::Builder::new().name(name).spawn(body).map(drop))
}

/// A disk whose sector N is full of the byte N.
fn file() -> File {
    let mut file = tempfile::tempfile().unwrap();
    for sector in 0..SECTORS {
        file.write_all(&[sector; 512]).unwrap();
    }
    file
}

fn content(file: &File, sector: impl Into<u64>) -> [u8; 512] {
    let (mut file, mut bytes) = (file, [0; 512]);
    file.seek(SeekFrom::Start(sector.into() * 512)).unwrap();
    file.read_exact(&mut bytes).unwrap();
    bytes
}

struct Bench {
    device: Arc<Blk>,
    driver: Driver,
    heard: Arc<Heard>,
    file: File,
}

impl Bench {
    fn with(image: Arc<dyn Image>, file: File, place: &Place, bits: u64) -> Bench {
        let options = BlkOptions {
            queues: 1,
            serial: "serial".to_owned(),
        };
        let device = Blk::new(image, &options, place, &spawner());
        let driver = Driver::new(&dma(), 0x1000, 64);
        let heard = activate(&*device, &driver, bits);
        Bench {
            device,
            driver,
            heard,
            file,
        }
    }

    fn at(place: &Place) -> Bench {
        let file = file();
        let image = RawImage::new(file.try_clone().unwrap(), BYTES, false, false);
        Bench::with(Arc::new(image), file, place, ALL)
    }

    fn new() -> Bench {
        Bench::at(&Place::Guest)
    }

    /// Sends a request and gives its status and the length that the ring says.
    fn ask(&self, wanted: u32, sector: impl Into<u64>, data: &[Lent]) -> (u8, u32) {
        let mut header = wanted.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.into().to_le_bytes());
        self.driver.write(HEADER_AT, &header);
        self.driver.write(STATUS_AT, &[NO_ANSWER]);
        let mut chain = vec![readable(HEADER_AT, 16)];
        chain.extend(data);
        chain.push(writable(STATUS_AT, 1));
        let before = self.driver.used_index();
        self.driver.send(&chain);
        self.device.queue_ready(0);
        self.device.pause();
        let [status] = self.driver.read(STATUS_AT);
        if self.driver.used_index() == before {
            return (status, 0);
        }
        (status, self.driver.used(before).1)
    }

    fn segment(&self, sector: impl Into<u64>, sectors: u32, flags: u32) -> Lent {
        let mut bytes = sector.into().to_le_bytes().to_vec();
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        self.driver.write(DATA_AT, &bytes);
        readable(DATA_AT, 16)
    }
}

/// Every way that requests can run.
fn places() -> Vec<Place> {
    let reactor = Reactor::start("test", &*spawner()).unwrap();
    vec![Place::Guest, Place::Reactor(reactor)]
}

#[test]
fn sectors_are_read_and_written_at_every_place_of_work() {
    for place in places() {
        let bench = Bench::at(&place);
        let data = [writable(DATA_AT, 512), writable(DATA_AT + 0x800, 1024)];
        assert_eq!(bench.ask(kind::IN, 3u8, &data), (OK, 1537));
        assert_eq!(bench.driver.read::<512>(DATA_AT), [3; 512]);
        assert_eq!(bench.driver.read::<512>(DATA_AT + 0xa00), [5; 512]);
        bench.driver.write(DATA_AT, &[0x77; 512]);
        let data = [readable(DATA_AT, 100), readable(DATA_AT + 100, 412)];
        assert_eq!(bench.ask(kind::OUT, 9u8, &data), (OK, 1));
        assert_eq!(content(&bench.file, 9u8), [0x77; 512]);
        assert_eq!(bench.ask(kind::FLUSH, 0u8, &[]), (OK, 1));
        assert_eq!(bench.heard.queue.load(Ordering::SeqCst), 3);
    }
}

#[test]
fn many_requests_at_once_are_all_answered() {
    for place in places() {
        let bench = Bench::at(&place);
        for number in 0..20u8 {
            let at = BUFFERS + 0x1_0000 + u64::from(number) * 0x1000;
            let mut header = kind::IN.to_le_bytes().to_vec();
            header.extend([0; 4]);
            header.extend(u64::from(number).to_le_bytes());
            bench.driver.write(at, &header);
            bench.driver.send(&[
                readable(at, 16),
                writable(at + 0x200, 512),
                writable(at + 0x100, 1),
            ]);
        }
        bench.device.queue_ready(0);
        bench.device.reset();
        assert_eq!(bench.driver.used_index(), 20);
        for number in 0..20u8 {
            let at = BUFFERS + 0x1_0000 + u64::from(number) * 0x1000;
            assert_eq!(bench.driver.read::<512>(at + 0x200), [number; 512]);
        }
    }
}

#[test]
fn virtio_5_2_4_the_configuration_says_capacity_segments_and_queues() {
    let bench = Bench::new();
    let mut config = [0; 64];
    bench.device.read_config(0, &mut config);
    assert_eq!(config[..8], u64::from(SECTORS).to_le_bytes());
    assert_eq!(config[12..16], 510u32.to_le_bytes());
    assert_eq!(config[20..24], 512u32.to_le_bytes());
    assert_eq!((config[24], config[32], config[34]), (3, 1, 1));
    assert_eq!(config[60..], [0; 4], "past its end");
    bench.device.read_config(u64::MAX, &mut config);
    assert_eq!(config, [0; 64]);
}

#[test]
fn virtio_5_2_6_2_sectors_past_the_end_are_an_error_and_nothing_is_written() {
    let bench = Bench::new();
    let two = [writable(DATA_AT, 1024)];
    assert_eq!(bench.ask(kind::IN, SECTORS - 1, &two), (IOERR, 1));
    assert_eq!(bench.ask(kind::IN, SECTORS, &two), (IOERR, 1));
    assert_eq!(bench.ask(kind::IN, u64::MAX, &two), (IOERR, 1));
    assert_eq!(bench.ask(kind::IN, u64::MAX / 512, &two), (IOERR, 1));
    let out = [readable(DATA_AT, 1024)];
    assert_eq!(bench.ask(kind::OUT, SECTORS - 1, &out), (IOERR, 1));
    assert_eq!(content(&bench.file, SECTORS - 1), [63; 512]);
    assert_eq!(bench.file.metadata().unwrap().len(), BYTES);
}

#[test]
fn virtio_5_2_6_1_lengths_that_are_no_sectors_are_an_error() {
    let bench = Bench::new();
    assert_eq!(
        bench.ask(kind::IN, 0u8, &[writable(DATA_AT, 511)]),
        (IOERR, 1)
    );
    assert_eq!(
        bench.ask(kind::OUT, 0u8, &[readable(DATA_AT, 513)]),
        (IOERR, 1)
    );
    assert_eq!(bench.ask(kind::IN, 0u8, &[]), (OK, 1));
}

#[test]
fn virtio_5_2_6_2_an_unknown_type_is_unsupported() {
    let bench = Bench::new();
    for wanted in [2, 3, 5, 10, 14, 15, u32::MAX] {
        assert_eq!(
            bench.ask(wanted, 0u8, &[writable(DATA_AT, 512)]),
            (UNSUPP, 1)
        );
    }
}

#[test]
fn virtio_5_2_6_2_a_read_only_disk_refuses_writes_and_writes_nothing() {
    let file = file();
    let image = RawImage::new(file.try_clone().unwrap(), BYTES, true, false);
    let bench = Bench::with(Arc::new(image), file, &Place::Guest, feature::FLUSH);
    let features = bench.device.features();
    assert_ne!(features & feature::RO, 0);
    assert_eq!(features & (feature::DISCARD | feature::WRITE_ZEROES), 0);
    assert_eq!(
        bench.ask(kind::OUT, 1u8, &[readable(DATA_AT, 512)]),
        (IOERR, 1)
    );
    assert_eq!(content(&bench.file, 1u8), [1; 512]);
    assert_eq!(bench.ask(kind::FLUSH, 0u8, &[]), (OK, 1));
}

#[test]
fn virtio_5_2_6_2_write_zeroes_reads_as_zeros_with_and_without_unmap() {
    for (unmap, sector) in [(0, 5u8), (1, 7)] {
        let bench = Bench::new();
        let segment = bench.segment(sector, 2, unmap);
        assert_eq!(bench.ask(kind::WRITE_ZEROES, 0u8, &[segment]), (OK, 1));
        assert_eq!(content(&bench.file, sector), [0; 512]);
        assert_eq!(content(&bench.file, sector + 1), [0; 512]);
        assert_eq!(content(&bench.file, sector + 2), [sector + 2; 512]);
    }
}

#[test]
fn virtio_5_2_6_2_discard_with_flags_is_unsupported() {
    let bench = Bench::new();
    for flags in [1, 2, u32::MAX] {
        let segment = bench.segment(5u8, 1, flags);
        assert_eq!(bench.ask(kind::DISCARD, 0u8, &[segment]), (UNSUPP, 1));
    }
    let segment = bench.segment(5u8, 1, 2);
    assert_eq!(bench.ask(kind::WRITE_ZEROES, 0u8, &[segment]), (UNSUPP, 1));
    assert_eq!(content(&bench.file, 5u8), [5; 512]);
    let segment = bench.segment(5u8, 1, 0);
    assert_eq!(bench.ask(kind::DISCARD, 0u8, &[segment]), (OK, 1));
}

#[test]
fn virtio_5_2_6_2_segments_out_of_range_are_an_error_before_any_is_done() {
    let bench = Bench::new();
    for (sector, sectors) in [(64u64, 1), (0, 65), (u64::MAX, 1), (0, u32::MAX)] {
        let segment = bench.segment(sector, sectors, 0);
        assert_eq!(bench.ask(kind::WRITE_ZEROES, 0u8, &[segment]), (IOERR, 1));
    }
    let good = bench.segment(4u8, 1, 0);
    let wrong = readable(DATA_AT + 0x100, 16);
    bench.driver.write(DATA_AT + 0x100, &[0xff; 12]);
    assert_eq!(
        bench.ask(kind::WRITE_ZEROES, 0u8, &[good, wrong]),
        (IOERR, 1)
    );
    assert_eq!(content(&bench.file, 4u8), [4; 512]);
    let ragged = readable(DATA_AT, 15);
    assert_eq!(bench.ask(kind::DISCARD, 0u8, &[ragged]), (IOERR, 1));
    let many = readable(DATA_AT, 17 * 16);
    assert_eq!(bench.ask(kind::DISCARD, 0u8, &[many]), (IOERR, 1));
}

#[test]
fn virtio_5_2_3_what_was_not_negotiated_is_unsupported() {
    let file = file();
    let image = RawImage::new(file.try_clone().unwrap(), BYTES, false, false);
    let bench = Bench::with(Arc::new(image), file, &Place::Guest, 0);
    let segment = bench.segment(5u8, 1, 0);
    for wanted in [kind::DISCARD, kind::WRITE_ZEROES] {
        assert_eq!(bench.ask(wanted, 0u8, &[segment]), (UNSUPP, 1));
    }
    assert_eq!(bench.ask(kind::FLUSH, 0u8, &[]), (UNSUPP, 1));
}

#[test]
fn the_id_is_the_serial_number_padded_with_zeros() {
    let bench = Bench::new();
    assert_eq!(
        bench.ask(kind::GET_ID, 0u8, &[writable(DATA_AT, 20)]),
        (OK, 21)
    );
    assert_eq!(&bench.driver.read::<20>(DATA_AT)[..7], b"serial\0");
    assert_eq!(
        bench.ask(kind::GET_ID, 0u8, &[writable(DATA_AT, 19)]),
        (IOERR, 1)
    );
}

#[test]
fn a_request_without_header_or_status_breaks_the_queue() {
    for chain in [
        vec![readable(HEADER_AT, 15), writable(STATUS_AT, 1)],
        vec![readable(HEADER_AT, 16)],
        vec![writable(STATUS_AT, 1)],
        vec![readable(u64::MAX - 3, 16), writable(STATUS_AT, 1)],
        vec![readable(HEADER_AT, 16), writable(u64::MAX - 3, 1)],
    ] {
        let bench = Bench::new();
        bench.driver.send(&chain);
        bench.device.queue_ready(0);
        assert_eq!(bench.heard.reset.load(Ordering::SeqCst), 1, "{chain:?}");
        assert_eq!(bench.driver.used_index(), 0);
    }
}

#[test]
fn data_outside_memory_is_an_io_error() {
    let bench = Bench::new();
    let lost = 1 << 40;
    assert_eq!(bench.ask(kind::IN, 0u8, &[writable(lost, 512)]), (IOERR, 1));
    assert_eq!(
        bench.ask(kind::OUT, 0u8, &[readable(lost, 512)]),
        (IOERR, 1)
    );
    assert_eq!(bench.heard.reset.load(Ordering::SeqCst), 0);
}

#[test]
fn a_file_that_was_cut_short_is_an_io_error_and_the_rest_works() {
    for place in places() {
        let bench = Bench::at(&place);
        bench.file.set_len(10 * 512).unwrap();
        assert_eq!(
            bench.ask(kind::IN, 9u8, &[writable(DATA_AT, 1024)]),
            (IOERR, 1)
        );
        assert_eq!(
            bench.ask(kind::IN, 20u8, &[writable(DATA_AT, 512)]),
            (IOERR, 1)
        );
        assert_eq!(
            bench.ask(kind::IN, 9u8, &[writable(DATA_AT, 512)]),
            (OK, 513)
        );
    }
}

#[test]
fn a_file_that_grows_keeps_its_size_for_the_guest() {
    let bench = Bench::new();
    bench.file.set_len(1 << 20).unwrap();
    assert_eq!(
        bench.ask(kind::IN, SECTORS, &[writable(DATA_AT, 512)]),
        (IOERR, 1)
    );
}

#[test]
fn a_full_host_disk_is_an_io_error() {
    for place in places() {
        // Writes to it fail with ENOSPC.
        let full = File::options().read(true).write(true).open("/dev/full");
        let full = full.unwrap();
        let image = RawImage::new(full.try_clone().unwrap(), BYTES, false, false);
        let bench = Bench::with(Arc::new(image), full, &place, ALL);
        assert_eq!(
            bench.ask(kind::OUT, 0u8, &[readable(DATA_AT, 512)]),
            (IOERR, 1)
        );
    }
}

#[test]
fn an_overlay_takes_writes_and_leaves_the_image_as_it_is() {
    for place in places() {
        let file = file();
        let base = RawImage::new(file.try_clone().unwrap(), BYTES, true, false);
        let overlay = Overlay::new(Arc::new(base), tempfile::tempfile().unwrap()).unwrap();
        let bench = Bench::with(Arc::new(overlay), file, &place, ALL);
        bench.driver.write(DATA_AT, &[0x77; 1024]);
        // Neither end lies between blocks of the overlay.
        assert_eq!(
            bench.ask(kind::OUT, 7u8, &[readable(DATA_AT, 1024)]),
            (OK, 1)
        );
        let zeros = bench.segment(17u8, 1, 1);
        assert_eq!(bench.ask(kind::WRITE_ZEROES, 0u8, &[zeros]), (OK, 1));
        let all = writable(DATA_AT, 64 * 512);
        assert_eq!(bench.ask(kind::IN, 0u8, &[all]), (OK, 64 * 512 + 1));
        for sector in 0..SECTORS {
            let expected = match sector {
                7 | 8 => 0x77,
                17 => 0,
                other => other,
            };
            let found = bench.driver.read::<512>(DATA_AT + u64::from(sector) * 512);
            assert_eq!(found, [expected; 512], "sector {sector}");
            assert_eq!(content(&bench.file, sector), [sector; 512]);
        }
    }
}

#[test]
fn virtio_5_2_5_2_the_writeback_field_is_the_drivers_and_resets() {
    let bench = Bench::new();
    let writeback = || {
        let mut byte = [0];
        bench.device.read_config(32, &mut byte);
        byte[0]
    };
    bench.device.write_config(32, &[0]);
    assert_eq!(writeback(), 0);
    bench.device.write_config(32, &[7]);
    bench.device.write_config(0, &[9; 8]);
    assert_eq!(writeback(), 0);
    bench.device.reset();
    assert_eq!(writeback(), 1);
}

#[test]
fn virtio_5_2_5_2_flush_is_offered_with_config_wce_and_writeback_is_off_without_it() {
    let file = file();
    let image = RawImage::new(file.try_clone().unwrap(), BYTES, false, false);
    let bits = feature::CONFIG_WCE;
    let bench = Bench::with(Arc::new(image), file, &Place::Guest, bits);
    let both = feature::CONFIG_WCE | feature::FLUSH;
    assert_eq!(bench.device.features() & both, both);
    let mut byte = [7];
    bench.device.read_config(32, &mut byte);
    assert_eq!(byte, [0]);
}

/// Counts what is put on the medium.
#[derive(Debug)]
struct Counting(RawImage, AtomicUsize);

impl Image for Counting {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn is_readonly(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, to: &GuestIo) -> io::Result<()> {
        self.0.read(offset, to)
    }

    fn read_bytes(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.0.read_bytes(offset, data)
    }

    fn write(&self, offset: u64, from: &GuestIo) -> io::Result<()> {
        self.0.write(offset, from)
    }

    fn flush(&self) -> io::Result<()> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.0.write_zeroes(offset, len, unmap)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

#[test]
fn virtio_5_2_6_2_writes_without_write_back_are_on_the_medium_when_done() {
    let both = feature::FLUSH | feature::CONFIG_WCE;
    // Negotiated, the driver's writeback field, flushes after a write and a flush request.
    for (bits, field, expected) in [
        (0, 1, (1, 1)),
        (feature::FLUSH, 1, (0, 1)),
        (both, 1, (0, 1)),
        (both, 0, (1, 2)),
        (both | feature::WRITE_ZEROES, 1, (0, 1)),
        (both | feature::WRITE_ZEROES, 0, (1, 2)),
    ] {
        let file = file();
        let raw = RawImage::new(file.try_clone().unwrap(), BYTES, false, false);
        let image = Arc::new(Counting(raw, AtomicUsize::new(0)));
        let counted = Arc::<Counting>::clone(&image);
        let bench = Bench::with(image, file, &Place::Guest, bits);
        bench.device.write_config(32, &[field]);
        bench.ask(kind::OUT, 0u8, &[readable(DATA_AT, 512)]);
        let after_write = counted.1.load(Ordering::SeqCst);
        bench.ask(kind::FLUSH, 0u8, &[]);
        let after_flush = counted.1.load(Ordering::SeqCst);
        assert_eq!((after_write, after_flush), expected, "{bits:#x} {field}");
        if bits & feature::WRITE_ZEROES != 0 {
            let segment = bench.segment(5u8, 1, 0);
            bench.ask(kind::WRITE_ZEROES, 0u8, &[segment]);
            assert_eq!(counted.1.load(Ordering::SeqCst), after_flush + after_write);
        }
    }
}

#[test]
fn a_state_of_another_size_is_refused() {
    let bench = Bench::new();
    let mut saved = bench.device.save().unwrap();
    assert!(bench.device.restore(&saved).is_ok());
    saved.data = saved.data.replace("32768", "32256");
    assert!(bench.device.restore(&saved).is_err());
}
