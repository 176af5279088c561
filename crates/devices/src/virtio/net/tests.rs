//! Clauses of virtio 1.2, section 5.1, with a driver of plain memory and a cable of plain queues.

mod late;
mod receive;

use std::{
    collections::VecDeque,
    io, slice,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use vmlet_bus::Dma;
use vmlet_reactor::Source;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{CONTROL, HEADER, MacAddress, Net, NetConfig, RX, TX, features as bit};
use crate::{
    backend::net::{LONGEST, NetBackend, PacketSocket, Piece, gather, scatter},
    virtio::{
        Activation, Place, QueueState, VirtQueue, VirtioDevice, VirtioInterrupt, features,
        testing::{BUFFERS, Driver, Heard, dma, readable, running, writable},
    },
};

const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const OTHER: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);

/// What a test sends and sees on the host's side.
#[derive(Debug, Default)]
struct Cable {
    sent: Mutex<Vec<Vec<u8>>>,
    coming: Mutex<VecDeque<Vec<u8>>>,
    full: AtomicBool,
    header: bool,
    offloads: u64,
    set: AtomicU64,
}

impl NetBackend for Cable {
    fn has_header(&self) -> bool {
        self.header
    }

    fn offloads(&self) -> u64 {
        self.offloads
    }

    fn set_offloads(&self, features: u64) -> io::Result<()> {
        self.set.store(features, Ordering::SeqCst);
        Ok(())
    }

    fn source(&self) -> Option<Arc<dyn Source>> {
        None
    }

    fn send(&self, frame: &[Piece<'_>]) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.sent.lock().unwrap().push(gather(frame));
        Ok(())
    }

    fn receive(&self, room: &[Piece<'_>], tail: &mut [u8]) -> io::Result<usize> {
        let frame = self.coming.lock().unwrap().pop_front();
        let frame = frame.ok_or(io::ErrorKind::WouldBlock)?;
        Ok(scatter(&frame, room, tail))
    }
}

struct Rig {
    net: Net,
    cable: Arc<Cable>,
    heard: Arc<Heard>,
    rx: Driver,
    tx: Driver,
    control: Driver,
    queues: Vec<Arc<VirtQueue>>,
}

fn config(mtu: Option<u16>) -> NetConfig {
    NetConfig { mac: MAC, mtu }
}

fn queue(index: u16, driver: &Driver, heard: &Arc<Heard>, negotiated: u64) -> Arc<VirtQueue> {
    let state = QueueState {
        event_idx: negotiated & features::EVENT_IDX != 0,
        ..driver.state
    };
    let interrupt: Arc<dyn VirtioInterrupt> = Arc::<Heard>::clone(heard);
    let bell = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    Arc::new(VirtQueue::new(index, &state, interrupt, Some(bell)).unwrap())
}

fn drivers(dma: &Dma) -> [Driver; 3] {
    [0, 1, 2].map(|index| Driver::new(dma, index * 0x1_0000, 16))
}

impl Rig {
    fn with(cable: Cable, negotiated: u64, place: Place) -> Rig {
        let dma = dma();
        let [rx, tx, control] = drivers(&dma);
        let cable = Arc::new(cable);
        let backend: Arc<dyn NetBackend> = Arc::<Cable>::clone(&cable);
        let mtu = (negotiated & bit::MTU != 0).then_some(100);
        let net = Net::new(config(mtu), backend, place, None);
        let heard = Arc::<Heard>::default();
        let all = [(RX, &rx), (TX, &tx), (CONTROL, &control)];
        let queues = all.map(|(index, driver)| queue(index, driver, &heard, negotiated));
        let queues = Vec::from(queues);
        net.activate(Activation {
            features: negotiated | features::VERSION_1,
            queues: queues.clone(),
            interrupt: Arc::<Heard>::clone(&heard),
            dma,
        });
        Rig {
            net,
            cable,
            heard,
            rx,
            tx,
            control,
            queues,
        }
    }

    fn new(negotiated: u64) -> Rig {
        Rig::with(Cable::default(), negotiated, Place::Reactor(running()))
    }

    /// A frame from the host, to the device's address.
    fn come(&self, len: usize) -> Vec<u8> {
        let frame = frame(MAC, len);
        self.cable.coming.lock().unwrap().push_back(frame.clone());
        frame
    }

    fn lend(&self, at: u64, len: u32) {
        self.rx.send(&[writable(at, len)]);
    }

    /// Runs a command; its answer.
    fn command(&self, bytes: &[u8]) -> u8 {
        let answer = BUFFERS + 0x8000;
        self.control.write(BUFFERS, bytes);
        self.control.write(answer, &[0x55]);
        let len = u32::try_from(bytes.len()).unwrap();
        self.control
            .send(&[readable(BUFFERS, len), writable(answer, 1)]);
        self.net.queue_ready(CONTROL);
        self.control.read::<1>(answer)[0]
    }

    fn received(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.rx
            .dma
            .read(vmlet_memory::Iova(at), &mut bytes)
            .unwrap();
        bytes
    }
}

fn frame(to: MacAddress, len: usize) -> Vec<u8> {
    let body = (0..len - 6).map(|byte| u8::try_from(byte % 251).unwrap());
    to.0.into_iter().chain(body).collect()
}

#[test]
fn virtio_5_1_3_1_features_without_what_they_need_are_refused() {
    let net = Rig::new(0).net;
    assert!(net.accepts(bit::GUEST_CSUM | bit::GUEST_TSO4 | bit::GUEST_ECN));
    for alone in [
        bit::GUEST_TSO4,
        bit::GUEST_TSO6,
        bit::GUEST_UFO,
        bit::HOST_TSO4,
        bit::HOST_TSO6,
        bit::HOST_UFO,
        bit::GUEST_CSUM | bit::GUEST_ECN,
        bit::CSUM | bit::HOST_ECN,
        bit::CTRL_RX,
        bit::CTRL_RX_EXTRA,
        bit::CTRL_MAC_ADDR,
        bit::CTRL_GUEST_OFFLOADS,
    ] {
        assert!(!net.accepts(alone), "{alone:#x}");
    }
}

#[test]
fn offloads_are_offered_as_the_back_end_has_them() {
    let offered = Rig::new(0).net.features();
    assert_eq!(
        offered & (bit::CSUM | bit::GUEST_CSUM | bit::GUEST_OFFLOADS),
        0
    );
    let cable = Cable {
        offloads: bit::CSUM | bit::GUEST_CSUM,
        header: true,
        ..Cable::default()
    };
    let net = Rig::with(cable, bit::GUEST_CSUM, Place::Guest);
    let wanted = bit::CSUM | bit::GUEST_CSUM | bit::CTRL_GUEST_OFFLOADS;
    assert_eq!(net.net.features() & wanted, wanted);
    assert_eq!(net.cable.set.load(Ordering::SeqCst), bit::GUEST_CSUM);
}

#[test]
fn virtio_5_1_4_configuration_holds_address_status_and_mtu() {
    let backend = Arc::new(Cable::default());
    let net = Net::new(config(Some(9000)), backend, Place::Guest, None);
    let mut image = [0xff; 16];
    net.read_config(0, &mut image);
    assert_eq!(image[..6], MAC.0);
    assert_eq!(image[6..12], [1, 0, 1, 0, 0x28, 0x23]);
    assert_eq!(image[12..], [0; 4]);
    net.set_link(false);
    net.read_config(6, &mut image[..2]);
    assert_eq!(image[..2], [0, 0]);
    assert_eq!(net.features() & bit::MTU, bit::MTU);
}

#[test]
fn virtio_5_1_4_2_link_status_changes_are_told() {
    let rig = Rig::new(bit::STATUS);
    rig.net.set_link(false);
    rig.net.set_link(false);
    assert_eq!(rig.heard.config.load(Ordering::SeqCst), 1);
}

#[test]
fn a_frame_is_sent_without_its_header_to_who_takes_none() {
    let rig = Rig::new(0);
    let frame = frame(OTHER, 60);
    rig.tx.write(BUFFERS, &[0; HEADER]);
    rig.tx.write(BUFFERS + 0x1000, &frame);
    // The header may lie in several buffers, and frames in the same as it (section 2.7.4).
    rig.tx.send(&[
        readable(BUFFERS, 5),
        readable(BUFFERS + 5, 7),
        readable(BUFFERS + 0x1000, 60),
    ]);
    rig.net.queue_ready(TX);
    assert_eq!(*rig.cable.sent.lock().unwrap(), [frame]);
    assert_eq!((rig.tx.used_index(), rig.tx.used(0)), (1, (0, 0)));
}

#[test]
fn a_header_passes_to_who_takes_it() {
    let cable = Cable {
        header: true,
        ..Cable::default()
    };
    let rig = Rig::with(cable, 0, Place::Guest);
    rig.tx.write(BUFFERS, &[7; 30]);
    rig.tx.send(&[readable(BUFFERS, 30)]);
    rig.net.queue_ready(TX);
    assert_eq!(*rig.cable.sent.lock().unwrap(), [vec![7; 30]]);
}

#[test]
fn frames_that_no_driver_sends_break_the_queue() {
    let outside = 1 << 40;
    let wrong: [&[_]; 3] = [
        &[readable(BUFFERS, 11)],
        &[readable(BUFFERS, 20), writable(BUFFERS, 20)],
        &[readable(outside, 60)],
    ];
    for buffers in wrong {
        let rig = Rig::new(0);
        rig.tx.send(buffers);
        rig.net.queue_ready(TX);
        assert!(rig.queues[1].is_broken(), "{buffers:?}");
        assert_eq!(rig.heard.reset.load(Ordering::SeqCst), 1);
        assert!(rig.cable.sent.lock().unwrap().is_empty());
    }
}

#[test]
fn a_frame_too_long_for_any_network_is_lost_and_its_buffer_given_back() {
    let rig = Rig::new(0);
    let len = u32::try_from(LONGEST + 1).unwrap();
    rig.tx.send(&[readable(BUFFERS, len)]);
    rig.net.queue_ready(TX);
    assert_eq!(rig.tx.used_index(), 1);
    assert!(rig.cable.sent.lock().unwrap().is_empty());
}

#[test]
fn a_full_back_end_gets_the_frame_later() {
    let rig = Rig::new(0);
    rig.cable.full.store(true, Ordering::SeqCst);
    rig.tx.send(&[readable(BUFFERS, 72)]);
    rig.net.queue_ready(TX);
    assert_eq!(rig.tx.used_index(), 0);
    rig.cable.full.store(false, Ordering::SeqCst);
    rig.net.pause();
    rig.net.resume();
    rig.net.queue_ready(TX);
    assert_eq!(rig.tx.used_index(), 1);
}

#[test]
fn on_the_guests_thread_a_full_back_end_loses_the_frame() {
    let rig = Rig::with(Cable::default(), 0, Place::Guest);
    rig.cable.full.store(true, Ordering::SeqCst);
    rig.tx.send(&[readable(BUFFERS, 72)]);
    rig.net.queue_ready(TX);
    assert_eq!(rig.tx.used_index(), 1);
}

#[test]
fn virtio_5_1_6_4_1_a_frame_comes_behind_a_header_with_one_buffer() {
    let rig = Rig::new(0);
    rig.rx.write(BUFFERS, &[0xee; 100]);
    rig.lend(BUFFERS, 1526);
    let frame = rig.come(60);
    rig.net.queue_ready(RX);
    assert_eq!(
        rig.received(BUFFERS, HEADER),
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    );
    assert_eq!(rig.received(BUFFERS + 12, 60), frame);
    assert_eq!((rig.rx.used_index(), rig.rx.used(0)), (1, (0, 72)));
    assert_eq!(rig.heard.queue.load(Ordering::SeqCst), 1);
}

#[test]
fn virtio_2_7_7_2_event_index_interrupts_once_for_frames_it_lies_between() {
    let rig = Rig::new(bit::MRG_RXBUF | features::EVENT_IDX);
    // The driver wants to hear of the second buffer that is used.
    rig.rx.write(rig.rx.state.avail + 4 + 2 * 16, &[1, 0]);
    for at in 0..4 {
        rig.lend(BUFFERS + at * 0x1000, 100);
    }
    rig.come(60);
    rig.net.queue_ready(RX);
    assert_eq!(rig.heard.queue.load(Ordering::SeqCst), 0);
    rig.come(200);
    rig.net.queue_ready(RX);
    assert_eq!(rig.heard.queue.load(Ordering::SeqCst), 1);
    assert_eq!(rig.rx.used_index(), 4);
}

#[test]
fn a_frame_waits_for_the_buffers_it_needs() {
    let rig = Rig::new(bit::MRG_RXBUF);
    rig.lend(BUFFERS, 100);
    let frame = rig.come(150);
    rig.net.queue_ready(RX);
    assert_eq!(rig.rx.used_index(), 0);
    rig.lend(BUFFERS + 0x1000, 100);
    rig.net.queue_ready(RX);
    assert_eq!(rig.rx.used_index(), 2);
    let parts = [
        rig.received(BUFFERS + 12, 88),
        rig.received(BUFFERS + 0x1000, 62),
    ];
    assert_eq!(parts.concat(), frame);
}

#[test]
fn without_merging_a_frame_too_long_for_its_buffer_is_lost() {
    let rig = Rig::new(0);
    rig.lend(BUFFERS, 100);
    rig.come(150);
    rig.come(60);
    rig.net.queue_ready(RX);
    assert_eq!((rig.rx.used_index(), rig.rx.used(0)), (1, (0, 72)));
}

#[test]
fn buffers_that_no_driver_lends_break_the_queue() {
    let outside = 1 << 40;
    let wrong = [
        readable(BUFFERS, 1526),
        writable(BUFFERS, 11),
        writable(outside, 1526),
    ];
    for lent in wrong {
        let rig = Rig::new(bit::MRG_RXBUF);
        rig.rx.send(slice::from_ref(&lent));
        rig.come(60);
        rig.net.queue_ready(RX);
        assert!(rig.queues[0].is_broken(), "{lent:?}");
    }
}

#[test]
fn virtio_5_1_4_1_frames_past_the_negotiated_mtu_are_lost_unless_they_are_to_be_cut() {
    let rig = Rig::new(bit::MTU);
    (0..2).for_each(|at| rig.lend(BUFFERS + at * 0x1000, 1526));
    rig.come(119);
    rig.come(118);
    rig.net.queue_ready(RX);
    assert_eq!((rig.rx.used_index(), rig.rx.used(0)), (1, (0, 130)));
    let cable = Cable {
        header: true,
        ..Cable::default()
    };
    let rig = Rig::with(cable, bit::MTU, Place::Reactor(running()));
    (0..2).for_each(|at| rig.lend(BUFFERS + at * 0x1000, 1526));
    for gso in [0, 1] {
        let header = [0, gso, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let whole = [&header[..], &frame(MAC, 500)].concat();
        rig.cable.coming.lock().unwrap().push_back(whole);
    }
    rig.net.queue_ready(RX);
    assert_eq!((rig.rx.used_index(), rig.rx.used(0)), (1, (0, 512)));
}

#[test]
fn a_pause_gives_buffers_back_that_hold_no_frame() {
    let rig = Rig::new(bit::MRG_RXBUF);
    (0..4).for_each(|at| rig.lend(BUFFERS + at * 0x1000, 100));
    rig.come(60);
    rig.net.queue_ready(RX);
    rig.net.pause();
    let saved = rig.queues[0].save();
    assert_eq!((saved.next_avail, saved.next_used), (1, 1));
    rig.net.resume();
    rig.come(60);
    rig.net.queue_ready(RX);
    assert_eq!((rig.rx.used_index(), rig.rx.used(1)), (2, (1, 72)));
}

#[test]
fn virtio_5_1_6_5_1_commands_choose_frames() {
    let rig = Rig::new(bit::CTRL_VQ | bit::CTRL_RX);
    (0..4).for_each(|at| rig.lend(BUFFERS + 0x10_0000 + at * 0x1000, 1526));
    let other = || rig.cable.coming.lock().unwrap().push_back(frame(OTHER, 60));
    other();
    rig.net.queue_ready(RX);
    assert_eq!(rig.rx.used_index(), 1);
    assert_eq!(rig.command(&[0, 0, 0]), 0);
    other();
    rig.come(60);
    rig.net.queue_ready(RX);
    assert_eq!(rig.rx.used_index(), 2);
    let table = [&[1, 0, 1, 0, 0, 0][..], &OTHER.0, &[0; 4]].concat();
    assert_eq!(rig.command(&table), 0);
    other();
    rig.net.queue_ready(RX);
    assert_eq!(rig.rx.used_index(), 3);
}

#[test]
fn commands_that_were_not_negotiated_or_are_not_whole_are_refused() {
    let rig = Rig::new(bit::CTRL_VQ | bit::CTRL_RX);
    for refused in [
        &[0, 2, 1][..],
        &[0, 9, 1],
        &[0, 0],
        &[1, 0, 2, 0, 0, 0],
        &[1, 0, 0xff, 0xff, 0xff, 0xff, 1],
        &[1, 1, 2, 0, 0, 0, 0, 9],
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[4, 0, 1, 0],
    ] {
        assert_eq!(rig.command(refused), 1, "{refused:?}");
    }
    assert_eq!(rig.net.mac(), MAC);
}

#[test]
fn a_command_without_room_for_its_answer_breaks_the_queue() {
    let rig = Rig::new(bit::CTRL_VQ);
    rig.control.send(&[readable(BUFFERS, 3)]);
    rig.net.queue_ready(CONTROL);
    assert!(rig.queues[2].is_broken());
}

#[test]
fn virtio_5_1_6_5_2_the_address_is_set_by_command_and_back_after_reset() {
    let rig = Rig::new(bit::CTRL_VQ | bit::CTRL_MAC_ADDR);
    let command = [&[1, 1][..], &OTHER.0].concat();
    assert_eq!(rig.command(&command), 0);
    assert_eq!(rig.net.mac(), OTHER);
    // One that is no station's is refused.
    assert_eq!(rig.command(&[1, 1, 1, 0, 0, 0, 0, 0]), 1);
    let saved = rig.net.save().unwrap();
    rig.net.reset();
    assert_eq!(rig.net.mac(), MAC);
    rig.net.restore(&saved).unwrap();
    assert_eq!(rig.net.mac(), OTHER);
}

#[test]
fn virtio_5_1_6_5_6_offloads_change_within_what_was_negotiated() {
    let cable = Cable {
        header: true,
        offloads: bit::CSUM | bit::GUEST_CSUM | bit::GUEST_TSO4,
        ..Cable::default()
    };
    let negotiated = bit::CTRL_VQ | bit::CTRL_GUEST_OFFLOADS | bit::GUEST_CSUM | bit::GUEST_TSO4;
    let rig = Rig::with(cable, negotiated, Place::Guest);
    assert_eq!(rig.command(&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]), 0);
    assert_eq!(rig.cable.set.load(Ordering::SeqCst), bit::GUEST_CSUM);
    // TSO6 was not negotiated; TSO4 needs checksums.
    assert_eq!(rig.command(&[5, 0, 2, 1, 0, 0, 0, 0, 0, 0]), 1);
    assert_eq!(rig.command(&[5, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]), 1);
}

#[test]
fn in_a_counted_run_frames_enter_by_input_and_are_lost_without_buffers() {
    let rig = Rig::with(Cable::default(), bit::MRG_RXBUF, Place::Guest);
    let frame = frame(MAC, 60);
    rig.net.input(&frame);
    rig.lend(BUFFERS, 1526);
    rig.lend(BUFFERS + 0x1000, 1526);
    rig.net.queue_ready(RX);
    assert_eq!(rig.rx.used_index(), 0);
    rig.net.input(&frame);
    assert_eq!((rig.rx.used_index(), rig.rx.used(0)), (1, (0, 72)));
    assert_eq!(rig.received(BUFFERS + 12, 60), frame);
    rig.net.input(&[0; 3]);
    assert_eq!(rig.rx.used_index(), 1);
}

#[test]
fn an_ended_peer_takes_the_link_down() {
    let [ours, theirs] = PacketSocket::pair().unwrap();
    let dma = dma();
    let [rx, tx, _] = drivers(&dma);
    let backend = Arc::new(PacketSocket::new(ours));
    let net = Net::new(config(None), backend, Place::Reactor(running()), None);
    let heard = Arc::<Heard>::default();
    let queues = vec![queue(RX, &rx, &heard, 0), queue(TX, &tx, &heard, 0)];
    rx.send(&[writable(BUFFERS, 1526)]);
    net.activate(Activation {
        features: features::VERSION_1,
        queues,
        interrupt: Arc::<Heard>::clone(&heard),
        dma,
    });
    net.queue_ready(RX);
    drop(theirs);
    while net.link_is_up() {
        std::thread::yield_now();
    }
    net.reset();
    assert_eq!(heard.config.load(Ordering::SeqCst), 1);
}
