//! Ports.

use vmlet_vcpu::SpaceId;

use crate::{
    cpu::{Cpu, Exec, RAX, RDX},
    flags,
    op::Op,
};

const IO_MAP: u64 = 0x66;

impl Cpu {
    /// Whether the current code may use `bytes` ports from `port` on: by IOPL, else by the
    /// permission map of the task (Intel SDM volume 1, section 19.5).
    pub(crate) fn check_port(&mut self, port: u16, bytes: u16) -> Exec {
        let by_level = self.cpl <= self.iopl() && self.rflags & flags::VM == 0;
        if !self.protected() && self.rflags & flags::VM == 0 || by_level {
            return Ok(());
        }
        let tr = self.tr;
        let is_big_tss = tr.attributes & 0x89 == 0x89;
        if !is_big_tss || u64::from(tr.limit) < IO_MAP + 1 {
            return self.gp(0);
        }
        let start = self.load_system::<u16>(tr.base.wrapping_add(IO_MAP))?;
        let at = u64::from(start) + u64::from(port / 8);
        if at + 1 > u64::from(tr.limit) {
            return self.gp(0);
        }
        let bits = self.load_system::<u16>(tr.base.wrapping_add(at))?;
        let mask = ((1u16 << bytes) - 1) << (port & 7);
        if bits & mask != 0 { self.gp(0) } else { Ok(()) }
    }

    fn port(&self, op: &Op) -> u16 {
        if op.imm & 0x100 != 0 {
            self.reg(RDX) as u16
        } else {
            op.imm as u16
        }
    }
}

/// `in`; the port is `op.imm` or, with bit 8 set, DX.
pub(crate) fn read(cpu: &mut Cpu, op: &Op) -> Exec {
    let (size, port) = (op.size(), cpu.port(op));
    cpu.check_port(port, 1 << size)?;
    let mut data = [0; 8];
    if let Some(data) = data.get_mut(..1 << size) {
        cpu.bus_read(SpaceId::PORT, port.into(), data);
    }
    cpu.watch_port(port, 1 << size);
    cpu.put_sized(RAX, size, u64::from_le_bytes(data));
    Ok(())
}

/// `out`.
pub(crate) fn write(cpu: &mut Cpu, op: &Op) -> Exec {
    let (size, port) = (op.size(), cpu.port(op));
    cpu.check_port(port, 1 << size)?;
    cpu.watch_port(port, 1 << size);
    let data = cpu.reg(RAX).to_le_bytes();
    if let Some(data) = data.get(..1 << size)
        && !cpu.io_event(SpaceId::PORT, port.into(), data)
    {
        cpu.bus_write(SpaceId::PORT, port.into(), data);
    }
    Ok(())
}
