//! The socket device: any queues, packets of a guest that has connections, and host's ends that send,
//! read and close in between.
#![no_main]

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use libfuzzer_sys::fuzz_target;
use vmlet_devices::virtio::vsock::{Vsock, VsockConfig};
use vmlet_fuzz::{Input, MemoryCap, seeds, virtio};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

#[global_allocator]
static MEMORY: MemoryCap = MemoryCap::mebibytes(256);

/// The host's ends that there are at once.
const MOST: usize = 32;

fuzz_target!(init: seeds::plant("virtio_vsock"), |data: &[u8]| {
    let config = VsockConfig { cid: 3, path: None };
    let device = Vsock::new(&config, None).expect("a device");
    let inbox = device.listen(1).expect("a free port");
    inbox.set_nonblocking(true).expect("a socket");
    let mut ends: Vec<UnixStream> = Vec::new();
    virtio::drive(&*device, &mut Input::new(data), |kind, bytes| {
        let end = ends.get(usize::from(kind >> 3) % MOST);
        match (kind % 8, end) {
            (0, _) => {
                let mut stream = device.connect().expect("few streams");
                let _ = stream.write_all(b"CONNECT 1\n");
                ends.push(stream);
            }
            (1, Some(_)) => drop(ends.swap_remove(usize::from(kind >> 3) % MOST)),
            (2, Some(mut end)) => drop(end.read(&mut [0; 4096])),
            (3, Some(end)) => drop(end.shutdown(Shutdown::Write)),
            (4 | 5, Some(mut end)) => drop(end.write(bytes)),
            _ => {
                if let Ok((_, Some(file))) = inbox.recv_with_fd(&mut [0; 4]) {
                    ends.push(UnixStream::from(OwnedFd::from(file)));
                }
            }
        }
        ends.truncate(MOST);
        ends.iter().for_each(|end| drop(end.set_nonblocking(true)));
        device.look();
    });
});
