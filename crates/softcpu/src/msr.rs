//! Model-specific registers (Intel SDM volume 4).

use vmlet_vcpu::x86_64::{MsrAccess, MsrPolicy, X2APIC, msr as number};

use crate::{
    clock::TSC_KHZ,
    cpu::{CR0_PG, Cpu, EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE, Exec, FS, GS, Stop},
    lapic::{BASE_ENABLED, BASE_X2APIC},
    mmu::PHYSICAL_BITS,
};

const PLATFORM_ID: u32 = 0x17;
const FEATURE_CONTROL: u32 = 0x3a;
const MICROCODE_REVISION: u32 = 0x8b;
const ARCH_CAPABILITIES: u32 = 0x10a;
const MISC_ENABLE: u32 = 0x1a0;
const X2APIC_FIRST: u32 = 0x800;
const X2APIC_LAST: u32 = 0x83f;
const X2APIC_ICR: u32 = 0x830;

/// RDCL_NO, SKIP_VMENTRY_L1DFLUSH, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO: nothing to mitigate.
const NOT_VULNERABLE: u64 = 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8;

/// The registers that a saved state lists, in the order they are to be set; the bases of FS and GS
/// are with the segments.
pub(crate) const SAVED: [u32; 15] = [
    number::TSC,
    MICROCODE_REVISION,
    number::SYSENTER_CS,
    number::SYSENTER_ESP,
    number::SYSENTER_EIP,
    MISC_ENABLE,
    number::EFER,
    number::STAR,
    number::LSTAR,
    number::CSTAR,
    number::SFMASK,
    number::KERNEL_GS_BASE,
    PLATFORM_ID,
    ARCH_CAPABILITIES,
    number::TSC_DEADLINE,
];

/// What has no other place in the vCPU's state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Msrs {
    pub(crate) star: u64,
    pub(crate) lstar: u64,
    pub(crate) cstar: u64,
    pub(crate) sfmask: u64,
    pub(crate) kernel_gs: u64,
    pub(crate) sysenter_cs: u64,
    pub(crate) sysenter_esp: u64,
    pub(crate) sysenter_eip: u64,
    pub(crate) misc_enable: u64,
    /// Kilohertz of the time-stamp counter.
    pub(crate) tsc_khz: u32,
    /// Added to the scaled clock for the time-stamp counter.
    pub(crate) tsc_offset: u64,
    /// The counter's value that the timer waits for, while it does.
    tsc_deadline: u64,
    /// The base register while there is no local APIC.
    pub(crate) apic_base: u64,
    /// CR8 while there is no local APIC.
    pub(crate) cr8: u64,
    /// What the guest sees of these; none: all of them.
    pub(crate) policy: Option<&'static MsrPolicy>,
}

impl Msrs {
    pub(crate) fn new(first: bool) -> Msrs {
        Msrs {
            misc_enable: 1,
            tsc_khz: TSC_KHZ,
            apic_base: 0xfee0_0000 | BASE_ENABLED | if first { 1 << 8 } else { 0 },
            ..Msrs::default()
        }
    }
}

fn canonical(value: u64) -> bool {
    let sign = (value.cast_signed() >> 47).cast_unsigned();
    sign == 0 || sign == u64::MAX
}

impl Cpu {
    /// The time-stamp counter.
    pub(crate) fn tsc(&self) -> u64 {
        self.ticks(self.clock.now())
            .wrapping_add(self.msrs.tsc_offset)
    }

    /// Nanoseconds of the clock in ticks of the time-stamp counter.
    fn ticks(&self, nanoseconds: u64) -> u64 {
        if self.msrs.tsc_khz == TSC_KHZ {
            return nanoseconds;
        }
        let ticks = u128::from(nanoseconds) * u128::from(self.msrs.tsc_khz);
        (ticks / u128::from(TSC_KHZ)) as u64
    }

    /// Ticks in nanoseconds, rounded up: whoever waits for one does not wake before it.
    fn nanoseconds(&self, ticks: u64) -> u64 {
        let scaled = u128::from(ticks) * u128::from(TSC_KHZ);
        let nanoseconds = scaled.div_ceil(u128::from(self.msrs.tsc_khz.max(1)));
        u64::try_from(nanoseconds).unwrap_or(u64::MAX)
    }

    /// `None`: there is no such register.
    pub(crate) fn read_msr(&self, index: u32) -> Option<u64> {
        let m = &self.msrs;
        Some(match index {
            number::TSC => self.tsc(),
            number::APIC_BASE => self.lapic.as_ref().map_or(m.apic_base, |l| l.base()),
            PLATFORM_ID | FEATURE_CONTROL | MICROCODE_REVISION => 0,
            ARCH_CAPABILITIES => NOT_VULNERABLE,
            number::SYSENTER_CS => m.sysenter_cs,
            number::SYSENTER_ESP => m.sysenter_esp,
            number::SYSENTER_EIP => m.sysenter_eip,
            MISC_ENABLE => m.misc_enable,
            number::TSC_DEADLINE => {
                let at = self.lapic.as_ref()?.tsc_deadline();
                at.map_or(0, |_| m.tsc_deadline)
            }
            number::EFER => self.efer,
            number::STAR => m.star,
            number::LSTAR => m.lstar,
            number::CSTAR => m.cstar,
            number::SFMASK => m.sfmask,
            number::FS_BASE => self.seg(FS).base,
            number::GS_BASE => self.seg(GS).base,
            number::KERNEL_GS_BASE => m.kernel_gs,
            X2APIC_FIRST..=X2APIC_LAST => return self.read_x2apic(index),
            _ => return None,
        })
    }

    /// False: there is no such register, or the value is refused.
    pub(crate) fn write_msr(&mut self, index: u32, value: u64) -> bool {
        match index {
            number::TSC => {
                self.msrs.tsc_offset = value.wrapping_sub(self.ticks(self.clock.now()));
            }
            number::APIC_BASE => return self.write_apic_base(value),
            MICROCODE_REVISION | PLATFORM_ID => {}
            ARCH_CAPABILITIES => return value == NOT_VULNERABLE,
            number::SYSENTER_CS => self.msrs.sysenter_cs = value,
            number::SYSENTER_ESP if canonical(value) => self.msrs.sysenter_esp = value,
            number::SYSENTER_EIP if canonical(value) => self.msrs.sysenter_eip = value,
            MISC_ENABLE => self.msrs.misc_enable = value,
            number::TSC_DEADLINE => self.write_deadline(value),
            number::EFER => return self.write_efer(value),
            number::STAR => self.msrs.star = value,
            number::LSTAR if canonical(value) => self.msrs.lstar = value,
            number::CSTAR if canonical(value) => self.msrs.cstar = value,
            number::SFMASK => self.msrs.sfmask = value & 0xffff_ffff,
            number::FS_BASE if canonical(value) => self.seg_mut(FS).base = value,
            number::GS_BASE if canonical(value) => self.seg_mut(GS).base = value,
            number::KERNEL_GS_BASE if canonical(value) => self.msrs.kernel_gs = value,
            X2APIC_FIRST..=X2APIC_LAST => return self.write_x2apic(index, value),
            _ => return false,
        }
        true
    }

    /// Whether the base register says that there is a local APIC.
    pub(crate) fn apic_enabled(&self) -> bool {
        let base = self.read_msr(number::APIC_BASE);
        base.is_some_and(|base| base & BASE_ENABLED != 0)
    }

    fn write_deadline(&mut self, value: u64) {
        let left = value.saturating_sub(self.tsc());
        let at = self.clock.now().saturating_add(self.nanoseconds(left));
        self.msrs.tsc_deadline = value;
        if let Some(lapic) = &self.lapic {
            lapic.set_deadline((value != 0).then_some(at));
        }
        self.look = true;
    }

    fn write_efer(&mut self, value: u64) -> bool {
        let known = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
        let paging = self.cr0 & CR0_PG != 0;
        if value & !known != 0 || (paging && (value ^ self.efer) & EFER_LME != 0) {
            return false;
        }
        let flush = (value ^ self.efer) & EFER_NXE != 0;
        self.efer = (value & !EFER_LMA) | (self.efer & EFER_LMA);
        if flush {
            self.flush_all();
        }
        true
    }

    fn write_apic_base(&mut self, value: u64) -> bool {
        let reserved = !((1u64 << PHYSICAL_BITS) - 1) | 0x2ff;
        let mode = value & (BASE_ENABLED | BASE_X2APIC);
        let Some(lapic) = &self.lapic else {
            self.msrs.apic_base = value;
            return true;
        };
        let from_x2apic = lapic.base() & BASE_X2APIC != 0;
        if value & reserved != 0 || mode == BASE_X2APIC || (from_x2apic && mode == BASE_ENABLED) {
            return false;
        }
        lapic.set_base(value);
        self.flush_all();
        true
    }

    fn read_x2apic(&self, index: u32) -> Option<u64> {
        let lapic = self.lapic.as_ref().filter(|l| l.in_x2apic_mode())?;
        if index == X2APIC_ICR {
            return Some(lapic.read_icr());
        }
        let offset = ((index - X2APIC_FIRST) * 16) as usize;
        Some(lapic.read(offset, self.clock.now()).into())
    }

    fn write_x2apic(&mut self, index: u32, value: u64) -> bool {
        let Some(lapic) = self.lapic.clone().filter(|l| l.in_x2apic_mode()) else {
            return false;
        };
        if index == X2APIC_ICR {
            lapic.command(value as u32, (value >> 32) as u32);
            self.look = true;
            return true;
        }
        if value >> 32 != 0 {
            return false;
        }
        self.apic_write(((index - X2APIC_FIRST) * 16) as usize, value as u32);
        true
    }

    /// The offset of `gpa` in the local APIC's page.
    pub(crate) fn apic_offset(&self, gpa: u64) -> Option<usize> {
        self.lapic.as_ref()?.offset(gpa)
    }

    pub(crate) fn apic_read(&self, offset: usize) -> u64 {
        let lapic = self.lapic.as_ref();
        lapic.map_or(u64::MAX, |l| l.read(offset, self.clock.now()).into())
    }

    pub(crate) fn apic_write(&mut self, offset: usize, value: u32) {
        let Some(lapic) = self.lapic.clone() else {
            return;
        };
        if let Some(vector) = lapic.write(offset, value, self.clock.now()) {
            self.bus_eoi(vector);
        }
        self.look = true;
    }

    /// What the guest may do with register `index`; none: it faults.
    fn msr_access(&self, index: u32) -> Option<MsrAccess> {
        match self.msrs.policy {
            Some(policy) if !X2APIC.contains(&index) => policy.access(index),
            _ => Some(MsrAccess::State),
        }
    }

    /// `rdmsr`.
    pub(crate) fn rdmsr(&mut self, index: u32) -> Result<u64, Stop> {
        let value = match self.msr_access(index) {
            Some(MsrAccess::State) => self.read_msr(index),
            Some(MsrAccess::Constant(value) | MsrAccess::Ignored(value)) => Some(value),
            None => None,
        };
        match value {
            Some(value) => Ok(value),
            None => {
                self.unknown_msrs += 1;
                self.gp(0)
            }
        }
    }

    /// `wrmsr`.
    pub(crate) fn wrmsr(&mut self, index: u32, value: u64) -> Exec {
        let taken = match self.msr_access(index) {
            Some(MsrAccess::State) => self.write_msr(index, value),
            Some(MsrAccess::Ignored(_)) => true,
            Some(MsrAccess::Constant(_)) | None => false,
        };
        if taken {
            Ok(())
        } else {
            self.unknown_msrs += 1;
            self.gp(0)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        clock::{Clock, ClockMode},
        cpu::Shared,
    };

    fn cpu(khz: u32) -> (Cpu, Arc<Clock>) {
        let clock = Arc::new(Clock::new(ClockMode::Instructions));
        let signal = Arc::new(crate::signal::Signal::default());
        let shared = Shared {
            memory: Arc::default(),
            clock: Arc::clone(&clock),
            lapic: Some(Arc::new(crate::lapic::Lapic::new(0, Arc::clone(&signal)))),
            signal,
            io_events: Arc::default(),
        };
        let mut cpu = Cpu::new(0, crate::cpuid::table(), shared);
        cpu.msrs.tsc_khz = khz;
        (cpu, clock)
    }

    #[test]
    fn the_counter_runs_at_its_rate_and_goes_on_from_what_is_written() {
        let (mut cpu, clock) = cpu(2_500_000);
        clock.skip_to(1_000_000);
        assert_eq!(cpu.tsc(), 2_500_000);
        assert!(cpu.write_msr(number::TSC, 7));
        clock.skip_to(1_000_100);
        assert_eq!(cpu.tsc(), 257);
    }

    #[test]
    fn a_deadline_is_met_at_the_first_nanosecond_that_has_it() {
        let (mut cpu, clock) = cpu(3_000_001);
        clock.skip_to(1_000);
        let lapic = cpu.lapic.clone().unwrap();
        lapic.write(0xf0, 0x1ff, 0);
        lapic.write(0x320, 2 << 17 | 0x20, 0);
        let deadline = cpu.tsc() + 1_000_000;
        assert!(cpu.write_msr(number::TSC_DEADLINE, deadline));
        assert_eq!(cpu.read_msr(number::TSC_DEADLINE), Some(deadline));
        let at = lapic.deadline().unwrap();
        clock.skip_to(at);
        assert!(cpu.tsc() >= deadline);
        assert!(at <= 1_000 + 333_334);
    }

    #[test]
    fn a_deadline_in_the_past_is_met_at_once_even_before_the_counters_start() {
        let (mut cpu, clock) = cpu(TSC_KHZ);
        clock.skip_to(5);
        assert!(cpu.write_msr(number::TSC, 1 << 40));
        let lapic = cpu.lapic.clone().unwrap();
        lapic.write(0xf0, 0x1ff, 0);
        lapic.write(0x320, 2 << 17 | 0x20, 0);
        assert!(cpu.write_msr(number::TSC_DEADLINE, 1));
        assert_eq!(lapic.deadline(), Some(5));
    }
}
