//! Linear addresses to memory: the walk with its faults and accessed/dirty bits, and the slow half
//! of every access.
//!
//! Source: Intel SDM volume 3, chapter 5 "Paging"; section 5.7 for error codes, 5.8 for accessed
//! and dirty bits.

use std::sync::atomic::Ordering;

use vmlet_memory::{
    Gpa,
    paging::{PagingContext, walk},
};
use vmlet_vcpu::SpaceId;

use crate::{
    cpu::{
        AC, CR0_PG, CR0_WP, CR4_PAE, CR4_PGE, CR4_PSE, Cpu, EFER_NXE, Exec, GP, PF, SS, STACK, Stop,
    },
    int::Int,
    memory::HAS_CODE,
    op::Op,
    tlb::{self, ALIGNED, FETCH, Fill, READ, USER, WRITE},
};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER_PAGE: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
/// Physical addresses have 40 bits, as CPUID 0x80000008 says.
pub(crate) const PHYSICAL_BITS: u32 = 40;
const PHYSICAL: u64 = (1 << PHYSICAL_BITS) - 1;
const FRAME: u64 = PHYSICAL & !0xfff;
const RESERVED: u64 = 0x000f_ffff_ffff_f000 & !PHYSICAL;
const OFFSET: u64 = 0xfff;

const CODE_PRESENT: u32 = 1;
const CODE_WRITE: u32 = 2;
const CODE_USER: u32 = 4;
const CODE_RESERVED: u32 = 8;
const CODE_FETCH: u32 = 16;

/// What an access wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    Read,
    Write,
    Fetch,
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    pub(crate) gpa: u64,
    global: bool,
    large: bool,
}

/// Where a write goes.
#[derive(Clone, Copy, Debug)]
enum Target {
    Host(u64),
    Device(u64),
}

/// How a mode lays out its tables: levels, index bits, bytes an entry.
#[derive(Clone, Copy)]
struct Format {
    levels: u32,
    bits: u32,
    bytes: u64,
}

/// A refused translation: the bits of the error code.
struct Refused(u32);

fn canonical(addr: u64) -> bool {
    let sign = (addr.cast_signed() >> 47).cast_unsigned();
    sign == 0 || sign == u64::MAX
}

impl Cpu {
    fn format(&self) -> Format {
        if self.long_mode() {
            Format {
                levels: 4,
                bits: 9,
                bytes: 8,
            }
        } else if self.cr4 & CR4_PAE != 0 {
            Format {
                levels: 3,
                bits: 9,
                bytes: 8,
            }
        } else {
            Format {
                levels: 2,
                bits: 10,
                bytes: 4,
            }
        }
    }

    /// Translates for an access at CPL 3 (`user`) or by the system.
    fn walk(&mut self, addr: u64, want: Want, user: bool) -> Result<Page, Refused> {
        if self.cr0 & CR0_PG == 0 {
            let gpa = addr & 0xffff_ffff;
            return Ok(Page {
                gpa,
                global: false,
                large: false,
            });
        }
        let format = self.format();
        let mut table = match format.levels {
            4 => self.cr3 & FRAME,
            3 => self.cr3 & 0xffff_ffe0,
            _ => self.cr3 & 0xffff_f000,
        };
        let nx_on = self.efer & EFER_NXE != 0;
        let fetch_bit = if want == Want::Fetch && nx_on && format.bytes == 8 {
            CODE_FETCH
        } else {
            0
        };
        let base = fetch_bit
            | if want == Want::Write { CODE_WRITE } else { 0 }
            | if user { CODE_USER } else { 0 };
        let mut rights = WRITABLE | USER_PAGE;
        let mut no_execute = false;
        let mut level = format.levels;
        loop {
            let shift = 12 + format.bits * (level - 1);
            let at = table + ((addr >> shift) & ((1 << format.bits) - 1)) * format.bytes;
            let entry = self.entry(at, format.bytes).ok_or(Refused(base))?;
            if entry & PRESENT == 0 {
                return Err(Refused(base));
            }
            let pointer = format.levels == 3 && level == 3;
            let large = self.is_large(entry, level, format);
            if entry & self.reserved(entry, level, format) != 0 {
                return Err(Refused(base | CODE_PRESENT | CODE_RESERVED));
            }
            if !pointer {
                rights &= entry;
            }
            no_execute |= entry & NO_EXECUTE != 0 && format.bytes == 8;
            if level > 1 && !large {
                if !pointer {
                    self.mark_entry(at, format.bytes, entry, ACCESSED);
                }
                table = entry
                    & if format.bytes == 8 {
                        FRAME
                    } else {
                        0xffff_f000
                    };
                level -= 1;
                continue;
            }
            if !self.allowed(rights, no_execute, want, user) {
                return Err(Refused(base | CODE_PRESENT));
            }
            let dirty = if want == Want::Write { DIRTY } else { 0 };
            self.mark_entry(at, format.bytes, entry, ACCESSED | dirty);
            let size = 1u64 << shift;
            let mut frame = entry & FRAME & !(size - 1);
            if format.bytes == 4 {
                frame &= 0xffff_ffff;
                if large {
                    frame |= ((entry >> 13) & 0xff) << 32;
                }
            }
            return Ok(Page {
                gpa: frame | (addr & (size - 1)),
                global: entry & GLOBAL != 0 && self.cr4 & CR4_PGE != 0,
                large: level > 1,
            });
        }
    }

    fn allowed(&self, rights: u64, no_execute: bool, want: Want, user: bool) -> bool {
        if user && rights & USER_PAGE == 0 {
            return false;
        }
        match want {
            Want::Read => true,
            Want::Write => rights & WRITABLE != 0 || (!user && self.cr0 & CR0_WP == 0),
            Want::Fetch => !(no_execute && self.efer & EFER_NXE != 0),
        }
    }

    fn is_large(&self, entry: u64, level: u32, format: Format) -> bool {
        let allowed = match (format.levels, level) {
            (2, 2) => self.cr4 & CR4_PSE != 0,
            (3, 2) | (4, 2 | 3) => true,
            _ => false,
        };
        allowed && entry & LARGE != 0
    }

    /// The bits that must be zero in a present entry.
    fn reserved(&self, entry: u64, level: u32, format: Format) -> u64 {
        let large = self.is_large(entry, level, format);
        if format.bytes == 4 {
            return if large { 1 << 21 } else { 0 };
        }
        let mut reserved = RESERVED;
        if self.efer & EFER_NXE == 0 {
            reserved |= NO_EXECUTE;
        }
        if format.levels == 3 {
            reserved |= 0x7ff0_0000_0000_0000;
            if level == 3 {
                return reserved | NO_EXECUTE | 0x1e6;
            }
        }
        if large {
            reserved |= ((1u64 << (12 + 9 * (level - 1))) - 1) & !0x1fff;
        } else if level == 4 {
            reserved |= LARGE;
        }
        reserved
    }

    fn entry(&self, gpa: u64, bytes: u64) -> Option<u64> {
        let host = self.host(gpa)?;
        Some(if bytes == 8 {
            tlb::load::<u64>(host)
        } else {
            tlb::load::<u32>(host).u()
        })
    }

    /// Sets bits of an entry if it is still what was read.
    fn mark_entry(&mut self, gpa: u64, bytes: u64, entry: u64, bits: u64) {
        if entry & bits == bits {
            return;
        }
        let Some(Target::Host(host)) = self.writable(gpa) else {
            return;
        };
        if bytes == 8 {
            tlb::exchange::<u64>(host, entry, entry | bits);
        } else {
            tlb::exchange::<u32>(host, entry as u32, (entry | bits) as u32);
        }
    }

    /// The host address of a guest-physical one.
    pub(crate) fn host(&self, gpa: u64) -> Option<u64> {
        self.map.host(gpa)
    }

    /// Where a write to `gpa` goes: code decoded from the page is given up, the write is logged.
    /// `None` when it goes nowhere because the slot is read-only and so reaches the board.
    fn writable(&mut self, gpa: u64) -> Option<Target> {
        let slot = self.map.find(gpa)?;
        if slot.slot.readonly {
            return Some(Target::Device(gpa));
        }
        if let Some(mark) = slot.marks.get(slot.page(gpa))
            && mark.load(Ordering::Relaxed) & HAS_CODE != 0
        {
            mark.fetch_add(1, Ordering::Relaxed);
            self.cut = true;
            let writes = self.memory.code_written();
            // Otherwise others wrote too, and `renew` sees it.
            if writes == self.code_writes + 1 {
                self.code_writes = writes;
            }
            self.cache.written(gpa);
        }
        slot.touch(gpa);
        Some(Target::Host(slot.slot.hva.0 + (gpa - slot.slot.gpa.0)))
    }

    #[cold]
    fn page_fault<T>(&mut self, addr: u64, code: u32) -> Result<T, Stop> {
        self.cr2 = addr;
        self.raise_code(PF, code)
    }

    fn translate(&mut self, addr: u64, want: Want, user: bool) -> Result<Page, Stop> {
        let addr = if self.long_mode() {
            if !canonical(addr) {
                self.bad_address = true;
                return self.raise_code(GP, 0);
            }
            addr
        } else {
            addr & 0xffff_ffff
        };
        match self.walk(addr, want, user) {
            Ok(page) => Ok(page),
            Err(Refused(code)) => self.page_fault(addr, code),
        }
    }

    /// #GP for an address that is not aligned as the instruction wants it; one that is not
    /// canonical is found first.
    #[cold]
    pub(crate) fn misaligned<T>(&mut self, addr: u64) -> Result<T, Stop> {
        self.bad_address = self.long_mode() && !canonical(addr);
        self.gp(0)
    }

    /// An address of the stack segment that is not canonical is #SS (Intel SDM volume 1, section
    /// 3.3.7.1): known from the instruction that used it.
    #[cold]
    pub(crate) fn name_stack_fault(&mut self, op: &Op) {
        let bad = std::mem::take(&mut self.bad_address);
        if bad && op.is_mem() && op.segment() == SS as u8 && self.fault.vector == GP {
            self.fault.vector = STACK;
        }
    }

    /// The guest-physical address behind a linear one, without any effect. It is asked between runs
    /// too, when the vCPU has not taken up the latest map yet.
    pub(crate) fn look_up(&self, addr: u64) -> Option<u64> {
        let context = PagingContext {
            cr0: self.cr0,
            cr3: self.cr3,
            cr4: self.cr4,
            efer: self.efer,
            physical_bits: PHYSICAL_BITS as u8,
            gibibyte_pages: true,
        };
        let map = self.memory.map();
        let read = |gpa: Gpa| map.host(gpa.0).map(tlb::load::<u64>);
        walk(&context, addr, &read)
            .result
            .ok()
            .map(|found| found.gpa.0)
    }

    /// The guest-physical address of code at `addr`, and whether its page is global.
    pub(crate) fn fetch_page(&mut self, addr: u64) -> Result<(u64, bool), Stop> {
        let set = FETCH + self.tlb_mode;
        if let Some(found) = self.tlb.find_code(set, addr) {
            return Ok(found);
        }
        let page = self.translate(addr, Want::Fetch, self.tlb_mode & USER != 0)?;
        let Page { gpa, global, large } = page;
        self.tlb.fill(
            set,
            Fill {
                linear: addr,
                target: gpa,
                global,
                large,
            },
        );
        Ok((gpa, global))
    }

    /// The guest-physical address of code at `addr`.
    pub(crate) fn fetch_address(&mut self, addr: u64) -> Result<u64, Stop> {
        self.fetch_page(addr).map(|(gpa, _)| gpa)
    }

    /// Reads at a linear address.
    #[inline(always)]
    pub(crate) fn load<T: Int>(&mut self, addr: u64) -> Result<T, Stop> {
        match self.tlb.find(READ + self.tlb_mode, addr, T::BYTES) {
            Some(host) => Ok(tlb::load(host)),
            None => self.load_slow(addr, self.tlb_mode),
        }
    }

    /// Reads at a linear address as the processor itself does: descriptors, gates.
    pub(crate) fn load_system<T: Int>(&mut self, addr: u64) -> Result<T, Stop> {
        match self.tlb.find(READ, addr, T::BYTES) {
            Some(host) => Ok(tlb::load(host)),
            None => self.load_slow(addr, 0),
        }
    }

    #[cold]
    #[inline(never)]
    fn load_slow<T: Int>(&mut self, addr: u64, mode: usize) -> Result<T, Stop> {
        self.check_alignment(addr, T::BYTES, mode)?;
        let head = 0x1000 - (addr & OFFSET);
        if head < T::BYTES {
            let next = self.wrap(addr.wrapping_add(head));
            let low = self.load_part(addr, head, mode)?;
            let high = self.load_part(next, T::BYTES - head, mode)?;
            return Ok(T::of(low | high << (8 * head)));
        }
        let Page { gpa, global, large } = self.translate(addr, Want::Read, mode & USER != 0)?;
        self.watch_data(self.wrap(addr), T::BYTES, false);
        if let Some(target) = self.host(gpa) {
            if !self.stays_out(addr, mode) {
                self.tlb.fill(
                    READ + mode,
                    Fill {
                        linear: self.wrap(addr),
                        target,
                        global,
                        large,
                    },
                );
            }
            return Ok(tlb::load(target));
        }
        Ok(T::of(self.device_read(gpa, T::BYTES as usize)))
    }

    /// Reads `bytes` bytes, fewer than 8, in one page.
    fn load_part(&mut self, addr: u64, bytes: u64, mode: usize) -> Result<u64, Stop> {
        let gpa = self.translate(addr, Want::Read, mode & USER != 0)?.gpa;
        self.watch_data(self.wrap(addr), bytes, false);
        let Some(host) = self.host(gpa) else {
            let value = self.device_read(gpa, bytes as usize);
            return Ok(value & ((1 << (8 * bytes)) - 1));
        };
        let byte = |at| u64::from(tlb::load::<u8>(host + at)) << (8 * at);
        Ok((0..bytes).fold(0, |value, at| value | byte(at)))
    }

    /// Whether a page is kept out of the TLB, so that every access of it is looked at.
    fn stays_out(&self, addr: u64, mode: usize) -> bool {
        mode == ALIGNED || self.watch.keeps_out(self.wrap(addr))
    }

    /// #AC for a misaligned operand at CPL 3 where it is asked for, mapped or not (Intel SDM
    /// volume 3, section 7.15 "Interrupt 17").
    fn check_alignment(&mut self, addr: u64, bytes: u64, mode: usize) -> Exec {
        if mode != ALIGNED || addr & (bytes - 1) == 0 {
            return Ok(());
        }
        if self.long_mode() && !canonical(addr) {
            return self.gp(0);
        }
        self.raise_code(AC, 0)
    }

    fn wrap(&self, addr: u64) -> u64 {
        if self.long_mode() {
            addr
        } else {
            addr & 0xffff_ffff
        }
    }

    /// Writes at a linear address.
    #[inline(always)]
    pub(crate) fn store<T: Int>(&mut self, addr: u64, value: T) -> Exec {
        match self.tlb.find(WRITE + self.tlb_mode, addr, T::BYTES) {
            Some(host) => {
                tlb::store(host, value);
                Ok(())
            }
            None => self.store_slow(addr, value, self.tlb_mode),
        }
    }

    /// Writes at a linear address as the processor itself does.
    pub(crate) fn store_system<T: Int>(&mut self, addr: u64, value: T) -> Exec {
        match self.tlb.find(WRITE, addr, T::BYTES) {
            Some(host) => {
                tlb::store(host, value);
                Ok(())
            }
            None => self.store_slow(addr, value, 0),
        }
    }

    #[cold]
    #[inline(never)]
    fn store_slow<T: Int>(&mut self, addr: u64, value: T, mode: usize) -> Exec {
        self.check_alignment(addr, T::BYTES, mode)?;
        let head = 0x1000 - (addr & OFFSET);
        if head < T::BYTES {
            let next = self.wrap(addr.wrapping_add(head));
            self.translate(addr, Want::Write, mode & USER != 0)?;
            self.translate(next, Want::Write, mode & USER != 0)?;
            self.store_part(addr, value.u(), head, mode)?;
            return self.store_part(next, value.u() >> (8 * head), T::BYTES - head, mode);
        }
        let target = self.write_target(addr, mode)?;
        self.watch_data(self.wrap(addr), T::BYTES, true);
        match target {
            Target::Host(host) => tlb::store(host, value),
            Target::Device(gpa) => {
                self.device_write(gpa, &value.u().to_le_bytes(), T::BYTES as usize)
            }
        }
        Ok(())
    }

    /// Writes the low `bytes` bytes of `value`, fewer than 8, in one page.
    fn store_part(&mut self, addr: u64, value: u64, bytes: u64, mode: usize) -> Exec {
        let target = self.write_target(addr, mode)?;
        self.watch_data(self.wrap(addr), bytes, true);
        match target {
            Target::Host(host) => {
                for (at, byte) in (0..bytes).zip(value.to_le_bytes()) {
                    tlb::store(host + at, byte);
                }
            }
            Target::Device(gpa) => self.device_write(gpa, &value.to_le_bytes(), bytes as usize),
        }
        Ok(())
    }

    fn write_target(&mut self, addr: u64, mode: usize) -> Result<Target, Stop> {
        let Page { gpa, global, large } = self.translate(addr, Want::Write, mode & USER != 0)?;
        let target = self.writable(gpa).unwrap_or(Target::Device(gpa));
        let stays_out = self.stays_out(addr, mode);
        if let Target::Host(target) = target
            && !stays_out
        {
            self.tlb.fill(
                WRITE + mode,
                Fill {
                    linear: self.wrap(addr),
                    target,
                    global,
                    large,
                },
            );
        }
        Ok(target)
    }

    /// Checks that a byte can be read, without reading a device.
    pub(crate) fn probe_read(&mut self, addr: u64) -> Exec {
        let user = self.tlb_mode & USER != 0;
        self.translate(addr, Want::Read, user).map(|_| ())
    }

    /// Checks that `bytes` bytes can be written, so that a later store does not fault.
    pub(crate) fn probe_write(&mut self, addr: u64, bytes: u64) -> Exec {
        let user = self.tlb_mode & USER != 0;
        if bytes.is_power_of_two() {
            self.check_alignment(addr, bytes.min(8), self.tlb_mode)?;
        }
        if self.tlb.find(WRITE + self.tlb_mode, addr, bytes).is_none() {
            self.translate(addr, Want::Write, user)?;
            let last = self.wrap(addr.wrapping_add(bytes - 1));
            if (last ^ addr) & !OFFSET != 0 {
                self.translate(last & !OFFSET, Want::Write, user)?;
            }
        }
        Ok(())
    }

    /// Reads, changes and writes back; nothing happens when the write would fault. `change` may
    /// set flags.
    #[inline(always)]
    pub(crate) fn modify<T: Int>(
        &mut self,
        addr: u64,
        change: impl FnOnce(&mut Cpu, T) -> T,
    ) -> Exec {
        if let Some(host) = self.tlb.find(WRITE + self.tlb_mode, addr, T::BYTES) {
            let value = change(self, tlb::load(host));
            tlb::store(host, value);
            return Ok(());
        }
        self.probe_write(addr, T::BYTES)?;
        let old = self.load(addr)?;
        let value = change(self, old);
        self.store(addr, value)
    }

    fn device_read(&mut self, gpa: u64, len: usize) -> u64 {
        if let Some(offset) = self.apic_offset(gpa) {
            return self.apic_read(offset);
        }
        let mut data = [0xff; 8];
        if let Some(data) = data.get_mut(..len) {
            self.bus_read(SpaceId::MMIO, gpa, data);
        }
        u64::from_le_bytes(data)
    }

    fn device_write(&mut self, gpa: u64, data: &[u8; 8], len: usize) {
        if let Some(offset) = self.apic_offset(gpa) {
            let value = u64::from_le_bytes(*data) as u32;
            self.apic_write(offset, value);
            return;
        }
        if let Some(data) = data.get(..len)
            && !self.io_event(SpaceId::MMIO, gpa, data)
        {
            self.bus_write(SpaceId::MMIO, gpa, data);
        }
    }
}
