//! A vCPU behind the engine contract.

use std::sync::Arc;

use vmlet_memory::fork::Origin;
use vmlet_vcpu::{
    DebugControl, EngineError, GuestBus, Kicker, RunEnd, Vcpu,
    x86_64::{MpState, Regs, Sregs, VcpuState},
};

use crate::{
    bus,
    clock::TSC_KHZ,
    counted::Fence,
    cpu::{CS, Cpu, DS, ES, FS, GS, SS, Shared},
    save,
    turns::Turns,
};

/// A vCPU of the software engine.
#[derive(Debug)]
pub(crate) struct SoftVcpu {
    pub(crate) cpu: Cpu,
    pub(crate) turns: Arc<Turns>,
    pub(crate) mp: MpState,
    pub(crate) slices: u32,
    pub(crate) fence: Fence,
    /// A run ends when the guest can take an interrupt.
    pub(crate) interrupt_window: bool,
    origin: Origin,
    bound: bool,
}

impl SoftVcpu {
    pub(crate) fn new(
        id: u32,
        cpuid: vmlet_vcpu::cpuid::CpuidTable,
        shared: Shared,
        turns: Arc<Turns>,
    ) -> SoftVcpu {
        // Without local APICs nobody could start the others.
        let waits = id != 0 && shared.lapic.is_some();
        SoftVcpu {
            cpu: Cpu::new(id, cpuid, shared),
            turns,
            mp: if waits {
                MpState::Uninitialized
            } else {
                MpState::Runnable
            },
            fence: Fence::default(),
            slices: 0,
            interrupt_window: false,
            origin: Origin::here(),
            bound: false,
        }
    }

    fn here(&self) -> Result<(), EngineError> {
        self.origin.check().map_err(|_| EngineError::Forked)
    }
}

impl Cpu {
    pub(crate) fn all_regs(&self) -> Regs {
        let mut values = [0; 18];
        for (number, value) in (0..16).zip(&mut values) {
            *value = self.reg(number);
        }
        Regs {
            rip: self.rip,
            rflags: self.flags(),
            ..Regs::from_numbers(values)
        }
    }

    pub(crate) fn set_all_regs(&mut self, regs: &Regs) {
        for (number, value) in (0..16).zip(regs.by_number()) {
            self.set_reg(number, value);
        }
        self.rip = regs.rip;
        self.set_flags(regs.rflags);
        self.mode_changed();
    }

    pub(crate) fn all_sregs(&self) -> Sregs {
        let s = |number| *self.seg(number);
        Sregs {
            cs: s(CS),
            ds: s(DS),
            es: s(ES),
            fs: s(FS),
            gs: s(GS),
            ss: s(SS),
            tr: self.tr,
            ldt: self.ldt,
            gdt: self.gdt,
            idt: self.idt,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            cr8: self.cr8(),
            efer: self.efer,
            apic_base: self
                .read_msr(vmlet_vcpu::x86_64::msr::APIC_BASE)
                .unwrap_or(0),
        }
    }

    pub(crate) fn set_all_sregs(&mut self, sregs: &Sregs) {
        let pairs = [
            (CS, sregs.cs),
            (DS, sregs.ds),
            (ES, sregs.es),
            (FS, sregs.fs),
            (GS, sregs.gs),
            (SS, sregs.ss),
        ];
        for (number, segment) in pairs {
            *self.seg_mut(number) = segment;
        }
        (self.tr, self.ldt, self.gdt, self.idt) = (sregs.tr, sregs.ldt, sregs.gdt, sregs.idt);
        (self.cr0, self.cr2, self.cr3, self.cr4) = (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4);
        self.efer = sregs.efer;
        if let Some(lapic) = &self.lapic {
            lapic.set_base(sregs.apic_base);
            lapic.set_tpr((sregs.cr8 as u8) << 4);
        } else {
            self.msrs.apic_base = sregs.apic_base;
            self.msrs.cr8 = sregs.cr8 & 0xf;
        }
        self.mode_changed();
        self.flush_all();
    }
}

impl Vcpu for SoftVcpu {
    fn id(&self) -> u32 {
        self.cpu.id
    }

    fn kicker(&self) -> Arc<dyn Kicker> {
        Arc::clone(&self.cpu.signal) as Arc<dyn Kicker>
    }

    fn bind(&mut self) -> Result<(), EngineError> {
        self.here()?;
        self.bound = true;
        Ok(())
    }

    fn unbind(&mut self) {
        self.bound = false;
    }

    fn run(&mut self, bus: &mut dyn GuestBus) -> Result<RunEnd, EngineError> {
        self.here()?;
        if let Some(exit) = self.cpu.refused() {
            return Ok(RunEnd::Fatal(exit));
        }
        let turns = Arc::clone(&self.turns);
        Ok(bus::with_bus(
            self,
            |vcpu| &mut vcpu.cpu,
            bus,
            |vcpu| turns.run(vcpu),
        ))
    }

    fn set_debug(&mut self, control: &DebugControl) -> Result<(), EngineError> {
        self.control(control);
        self.cpu.look = true;
        Ok(())
    }

    fn regs(&self) -> Result<Regs, EngineError> {
        self.here()?;
        Ok(self.cpu.all_regs())
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<(), EngineError> {
        self.here()?;
        self.cpu.set_all_regs(regs);
        self.cpu.look = true;
        Ok(())
    }

    fn sregs(&self) -> Result<Sregs, EngineError> {
        self.here()?;
        Ok(self.cpu.all_sregs())
    }

    fn set_sregs(&mut self, sregs: &Sregs) -> Result<(), EngineError> {
        self.here()?;
        self.cpu.set_all_sregs(sregs);
        self.cpu.look = true;
        Ok(())
    }

    fn mp_state(&self) -> Result<MpState, EngineError> {
        Ok(if self.cpu.halted {
            MpState::Halted
        } else {
            self.mp
        })
    }

    fn set_mp_state(&mut self, state: MpState) -> Result<(), EngineError> {
        self.turns.was_set(self.cpu.id);
        self.cpu.look = true;
        self.cpu.halted = state == MpState::Halted;
        self.mp = if self.cpu.halted {
            MpState::Runnable
        } else {
            state
        };
        Ok(())
    }

    fn msr(&self, index: u32) -> Result<u64, EngineError> {
        self.cpu.read_msr(index).ok_or(EngineError::Msr { index })
    }

    fn set_msr(&mut self, index: u32, value: u64) -> Result<(), EngineError> {
        if self.cpu.write_msr(index, value) {
            Ok(())
        } else {
            Err(EngineError::Msr { index })
        }
    }

    fn set_tsc_khz(&mut self, khz: u32) -> Result<(), EngineError> {
        if khz == 0 {
            return Err(EngineError::TscRate {
                wanted: khz,
                host: TSC_KHZ,
            });
        }
        let now = self.cpu.tsc();
        self.cpu.msrs.tsc_khz = khz;
        self.cpu.write_msr(vmlet_vcpu::x86_64::msr::TSC, now);
        Ok(())
    }

    fn inject_nmi(&mut self) -> Result<(), EngineError> {
        self.cpu.signal.set_nmi(true);
        Ok(())
    }

    fn inject_interrupt(&mut self, vector: u8) -> Result<(), EngineError> {
        self.cpu.injected = Some(vector);
        Ok(())
    }

    fn set_interrupt_window(&mut self, on: bool) -> Result<(), EngineError> {
        self.interrupt_window = on;
        Ok(())
    }

    fn translate(&self, linear: u64) -> Result<Option<u64>, EngineError> {
        self.here()?;
        Ok(self.cpu.look_up(linear))
    }

    fn save(&mut self) -> Result<VcpuState, EngineError> {
        self.here()?;
        self.start_up();
        Ok(save::save(self))
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        self.here()?;
        save::restore(self, state)
    }
}
