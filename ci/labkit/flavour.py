"""The places a command can run in: one flavour is one emulated machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flavour:
    """An emulated machine and what it promises to the tests."""

    name: str
    summary: str
    provides: tuple[str, ...]  # becomes VMLET_REQUIRE: a test skipped for one of these fails
    time_factor: int  # becomes VMLET_TIME_FACTOR: every timeout in tests is multiplied by it
    qemu: tuple[str, ...]  # arguments that make the machine
    kernel_cmdline: str
    modules: tuple[str, ...]  # loaded in L1 before its state is saved
    root_ports: int  # empty slots for hot-plug: rp0, rp1, ...


AMD = Flavour(
    name="amd",
    summary="AMD-V with nested paging, VT-d with interrupt remapping and device IOTLB",
    provides=("kvm", "linux", "svm", "npt", "vtd", "vfio", "hugetlb"),
    time_factor=10,
    qemu=(
        *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"),
        # `caching-mode` makes the guest flush after a map too, as passing a device on needs.
        *("-device", "intel-iommu,intremap=on,device-iotlb=on,caching-mode=on"),
    ),
    kernel_cmdline=(
        "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check "
        "audit=0 apparmor=0 cryptomgr.notests intel_iommu=on"
    ),
    modules=(
        *("virtio_pci", "virtio_console", "9p", "9pnet_virtio", "qemu_fw_cfg", "overlay"),
        *("kvm-amd", "vfio-pci", "vfio_iommu_type1", "tun", "vhost_net", "vhost_vsock"),
        *("virtio_net", "virtio_blk", "igb", "nvme"),
    ),
    root_ports=4,
)

FLAVOURS = {AMD.name: AMD}
