//! The VM and its vCPUs are made on a thread of their own while memory is being filled.
//!
//! Both take about as long on KVM. The thread becomes the first vCPU's: it would have been started
//! anyway.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
};

use vmlet_vcpu::{EngineError, Hypervisor, Vcpu, Vm};

use super::ThreadStarter;
use crate::MachineError;

/// Pins of the I/O APIC, mirrored in the first interrupt numbers.
const PINS: u32 = 24;

type Vcpus = Vec<Box<dyn Vcpu>>;
/// Makes the vCPUs of a VM.
pub(crate) type VcpuMaker =
    Box<dyn FnOnce(&dyn Hypervisor, &dyn Vm) -> Result<Vcpus, MachineError> + Send>;
/// What a vCPU's thread does.
type Body = Box<dyn FnOnce() + Send>;

/// The thread of the first vCPU, before there is one.
#[derive(Debug)]
pub(super) struct Making {
    vm: Receiver<Result<Arc<dyn Vm>, MachineError>>,
    vcpus: Receiver<Result<Vcpus, MachineError>>,
    bodies: Option<Sender<Body>>,
}

impl Making {
    /// Starts the thread.
    pub(super) fn start(
        engine: Arc<dyn Hypervisor>,
        make: VcpuMaker,
        spawn: &ThreadStarter,
    ) -> Result<Making, MachineError> {
        let (vm_made, vm) = channel();
        let (vcpus_made, vcpus) = channel();
        let (bodies, body) = channel::<Body>();
        let life = move || {
            work(&vcpus_made, &vm_made, engine, make);
            // What waits for the end of a making that is given up waits for these.
            drop((vm_made, vcpus_made));
            if let Ok(body) = body.recv() {
                body();
            }
        };
        spawn("vmlet-vcpu0".to_owned(), Box::new(life))
            .map_err(|source| EngineError::call("starting a vCPU thread", source))?;
        Ok(Making {
            vm,
            vcpus,
            bodies: Some(bodies),
        })
    }

    /// The VM: memory slots can be set.
    pub(super) fn vm(&self) -> Result<Arc<dyn Vm>, MachineError> {
        self.vm.recv().unwrap_or_else(|_| Err(ended()))
    }

    /// The vCPUs, and an interrupt controller before them.
    pub(super) fn vcpus(&self) -> Result<Vcpus, MachineError> {
        self.vcpus.recv().unwrap_or_else(|_| Err(ended()))
    }

    /// Has the thread run the first vCPU, instead of starting another.
    pub(super) fn spawner(
        &self,
    ) -> impl Fn(String, Body) -> io::Result<()> + Send + Sync + 'static {
        let bodies = self.bodies.clone();
        move |_, body| {
            let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
            let bodies = bodies.as_ref().ok_or_else(gone)?;
            bodies.send(body).map_err(|_| gone())
        }
    }
}

impl Drop for Making {
    /// A making that is given up leaves nothing behind.
    fn drop(&mut self) {
        self.bodies = None;
        while self.vm.recv().is_ok() {}
        while self.vcpus.recv().is_ok() {}
    }
}

fn ended() -> MachineError {
    EngineError::Ended { id: 0 }.into()
}

fn work(
    vcpus_made: &Sender<Result<Vcpus, MachineError>>,
    vm_made: &Sender<Result<Arc<dyn Vm>, MachineError>>,
    engine: Arc<dyn Hypervisor>,
    make: VcpuMaker,
) {
    match engine.create_vm() {
        Err(error) => drop(vm_made.send(Err(error.into()))),
        Ok(vm) => {
            let _ = vm_made.send(Ok(Arc::clone(&vm)));
            let vcpus = vm
                .create_irqchip(PINS)
                .map_err(MachineError::from)
                .and_then(|()| make(&*engine, &*vm));
            let _ = vcpus_made.send(vcpus);
        }
    }
}
