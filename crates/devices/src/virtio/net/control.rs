//! Commands of the driver (virtio 1.2, section 5.1.6.5).

use vmlet_bus::DmaView;

use super::{
    MacAddress, features,
    filter::MOST_ADDRESSES,
    session::{Settings, Shared},
};
use crate::virtio::{Activation, Chain, QueueFault, VirtQueue};

/// What a command is answered with.
const OK: u8 = 0;
const ERR: u8 = 1;

/// Classes and commands.
const RX_CLASS: u8 = 0;
const MAC_CLASS: u8 = 1;
const TABLE_SET: u8 = 0;
const ADDR_SET: u8 = 1;
const OFFLOADS_CLASS: u8 = 5;
const OFFLOADS_SET: u8 = 0;

/// Bytes before a command's own.
const HEAD: u64 = 2;
const ADDRESS: u64 = 6;

/// Obeys every command that waits.
pub(super) fn run(queue: &VirtQueue, active: &Activation, shared: &Shared) {
    let view = active.dma.view();
    queue.drain(&view, |chain| {
        match answer(&chain, &view, active, shared) {
            Ok(()) => queue.push(&view, chain.head(), 1),
            Err(fault) => queue.fail(&fault),
        }
        true
    });
    queue.notify(&view);
}

fn answer(
    chain: &Chain,
    view: &DmaView,
    active: &Activation,
    shared: &Shared,
) -> Result<(), QueueFault> {
    let head = chain.head();
    if chain.readable_len() < HEAD || chain.writable_len() < 1 {
        let detail = "a command has a class, a number, and room for an answer";
        return Err(QueueFault::Request { head, detail });
    }
    let command = Command {
        chain,
        view,
        features: active.features,
    };
    let done = command.obey(shared)?;
    chain.write(view, 0, &[if done.is_some() { OK } else { ERR }])?;
    Ok(())
}

struct Command<'a> {
    chain: &'a Chain,
    view: &'a DmaView,
    features: u64,
}

impl Command<'_> {
    /// `None`: refused.
    fn obey(&self, shared: &Shared) -> Result<Option<()>, QueueFault> {
        let Some([class, number]) = self.bytes(0)? else {
            return Ok(None);
        };
        match (class, number) {
            (RX_CLASS, _) => self.set_mode(number, &mut shared.settings()),
            (MAC_CLASS, TABLE_SET) => self.set_table(&mut shared.settings()),
            (MAC_CLASS, ADDR_SET) => self.set_address(&mut shared.settings()),
            (OFFLOADS_CLASS, OFFLOADS_SET) => self.set_offloads(shared),
            _ => Ok(None),
        }
    }

    fn has(&self, bit: u64) -> Option<()> {
        (self.features & bit != 0).then_some(())
    }

    /// `N` bytes at `offset`; `None` if there are fewer.
    fn bytes<const N: usize>(&self, offset: u64) -> Result<Option<[u8; N]>, QueueFault> {
        let mut bytes = [0; N];
        let count = self.chain.read(self.view, offset, &mut bytes)?;
        Ok((count == N).then_some(bytes))
    }

    fn set_mode(&self, number: u8, settings: &mut Settings) -> Result<Option<()>, QueueFault> {
        let Some([value]) = self.bytes(HEAD)? else {
            return Ok(None);
        };
        let filter = &mut settings.filter;
        let (bit, place) = match number {
            0 => (features::CTRL_RX, &mut filter.promiscuous),
            1 => (features::CTRL_RX, &mut filter.all_multicast),
            2 => (features::CTRL_RX_EXTRA, &mut filter.all_unicast),
            3 => (features::CTRL_RX_EXTRA, &mut filter.no_multicast),
            4 => (features::CTRL_RX_EXTRA, &mut filter.no_unicast),
            5 => (features::CTRL_RX_EXTRA, &mut filter.no_broadcast),
            _ => return Ok(None),
        };
        Ok(self.has(bit).map(|()| *place = value != 0))
    }

    fn set_address(&self, settings: &mut Settings) -> Result<Option<()>, QueueFault> {
        let address = self.bytes(HEAD)?.map(MacAddress);
        let address = address.filter(|address| address.is_station());
        let allowed = self.has(features::CTRL_MAC_ADDR).and(address);
        Ok(allowed.map(|address| settings.mac = address))
    }

    fn set_table(&self, settings: &mut Settings) -> Result<Option<()>, QueueFault> {
        if self.has(features::CTRL_RX).is_none() {
            return Ok(None);
        }
        let Some((unicast, next)) = self.addresses(HEAD)? else {
            return Ok(None);
        };
        let Some((multicast, _)) = self.addresses(next)? else {
            return Ok(None);
        };
        settings.filter.unicast = unicast;
        settings.filter.multicast = multicast;
        Ok(Some(()))
    }

    /// The list of addresses at `offset`, and where the next thing begins. A list that is too long to
    /// be kept stands for every address.
    #[expect(
        clippy::type_complexity,
        reason = "a list that is there, cut off, or not kept"
    )]
    fn addresses(&self, offset: u64) -> Result<Option<(Option<Vec<MacAddress>>, u64)>, QueueFault> {
        let Some(count) = self.bytes(offset)? else {
            return Ok(None);
        };
        let count = u64::from(u32::from_le_bytes(count));
        let (start, end) = (offset + 4, offset + 4 + count * ADDRESS);
        if end > self.chain.readable_len() {
            return Ok(None);
        }
        if count > MOST_ADDRESSES as u64 {
            return Ok(Some((None, end)));
        }
        let mut list = Vec::new();
        for index in 0..count {
            list.extend(self.bytes(start + index * ADDRESS)?.map(MacAddress));
        }
        Ok(Some((Some(list), end)))
    }

    /// Those that were negotiated can be switched off and on again (section 5.1.6.5.6).
    fn set_offloads(&self, shared: &Shared) -> Result<Option<()>, QueueFault> {
        let Some(wanted) = self.bytes(HEAD)?.map(u64::from_le_bytes) else {
            return Ok(None);
        };
        let known = self.features & features::GUEST_OFFLOADS;
        let fits = wanted & !known == 0 && features::are_complete(wanted | features::CSUM);
        let allowed = self.has(features::CTRL_GUEST_OFFLOADS).filter(|()| fits);
        Ok(allowed.and_then(|()| shared.backend.set_offloads(wanted).ok()))
    }
}
