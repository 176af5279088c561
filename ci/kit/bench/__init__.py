"""Benchmarks: what vmlet costs against a reference that runs in the same minutes.

* `cli.py`: `ci/bench NAME [--json]`; `host.py`: what the figures belong to.
* `statistics.py`: low percentiles, ratios, when a row is decided.
* `rounds.py`: interleaved rounds of subject, reference and control, until every row is decided.
* `result.py`: the JSON object and the table.
* `worker.py`: a process that measures on demand and times itself.
* `floors.py`: what is compiled from `floor/`, programs of bare ioctls, and assembled as guests.
* `create.py`: making and ending VMs; its two sides are `subject/create.py`, through the public API,
  and `floor/create.c`, bare ioctls.
* `exit.py`: round trips to a device; `subject/exit.py` and `floor/exit.c`.
* `density.py`: a thousand VMs in one process, by `subject/density.py` with the guest `echo.s`.
* `boot_soft.py`, `mips.py`: the software CPU against QEMU's translator and the host's processor, on
  what `guests.py` makes; their sides are `subject/linux.py`, `tcg.py` and `native.py`.
* `boot_kvm.py`: boots under KVM against QEMU's microvm, by `subject/boot.py` with `subject/init.c`
  as init.
* `vfio.py`: devices of the host: maps for DMA by `subject/dma.py` against `floor/vfio.c`, guests
  with devices by `subject/vfio.py` and `subject/vfioload.c` against QEMU's vfio-pci.
* `native.py`: programs in a guest under KVM against the same outside; `kernels.py` has what it
  shares with `mips.py`.
"""
