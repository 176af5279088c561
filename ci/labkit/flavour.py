"""The places a command can run in: one flavour is one emulated machine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .bochs.models import HASWELL, Model

# In the folder that the command may write: what the emulator tells of `traced`.
TRACE = "emulator.log"


@dataclass(frozen=True)
class Flavour:
    """An emulated machine and what it promises to the tests."""

    name: str
    summary: str
    provides: tuple[str, ...]  # becomes VMLET_REQUIRE: a test skipped for one of these fails
    time_factor: int  # becomes VMLET_TIME_FACTOR: every timeout in tests is multiplied by it
    cpus: int  # processors of L1 unless asked for otherwise
    memory: int  # MiB of L1 unless asked for otherwise
    memory_max: int
    kernel_cmdline: str
    modules: tuple[str, ...]  # loaded in L1 before the command runs, each with its options
    guest_cmdline: str = field(default="", kw_only=True)  # VMLET_GUEST_CMDLINE: for L2's kernels


@dataclass(frozen=True)
class QemuFlavour(Flavour):
    """A machine of the emulator that shares the host's files and can save its state."""

    qemu: tuple[str, ...]  # arguments that make the machine
    root_ports: int  # empty slots for hot-plug: rp0, rp1, ...
    state: str  # names the saved state; flavours of one machine share it
    plugged: tuple[str, ...] = ()  # devices that every run finds in the first slots
    backends: tuple[str, ...] = ()  # arguments of what those devices need
    traced: tuple[str, ...] = ()  # events that the emulator writes to TRACE
    saved: bool = True  # whether the machine's state can be saved; else every run boots it
    iommufd: bool = False  # a kernel with iommufd and files of devices
    older: bool = False  # the emulator of the release itself


@dataclass(frozen=True)
class BochsFlavour(Flavour):
    """A machine of the emulator that has VT-x and no way to share files."""

    model: Model


# Self-tests, page-table isolation and messages are most of what a kernel does at start.
_GUEST_CMDLINE = "quiet cryptomgr.notests mitigations=off"

# Kernels and C libraries copy by `rep movsb` where a processor says that it is fast at that. The
# emulator does it byte by byte, 50 ns each. A fifth level of page tables makes each walk through
# two stages a third longer.
_CPU = "max,-erms,-fsrm,-la57"
_MACHINE = ("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", _CPU)
_KERNEL_CMDLINE = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check "
    "audit=0 apparmor=0 cryptomgr.notests sysrq_always_enabled"
)
# A machine with devices to pass on has one processor, but where it is measured. When a device's
# memory comes or goes (it is bound, reset, let go of), the emulator numbers its ranges of memory
# anew while another processor still looks one up by its old number, so that a write goes to a
# neighbour (QEMU 10.0.2): an end of interrupt that the chipset got instead of the local APIC blocks
# that processor for good.
_CPUS_WITH_DEVICES = 1
# All 32 bits of an address: interrupt messages are writes beyond the 28 it does otherwise.
_EDU = "edu,dma_mask=0xffffffff"
_CARD = "igb,netdev=card0"
_CARD_BACKEND = ("-netdev", "user,id=card0,restrict=on")

AMD = QemuFlavour(
    name="amd",
    summary="AMD-V with nested paging, VT-d with interrupt remapping and device IOTLB",
    provides=("kvm", "kvm-linux", "linux", "svm", "npt", "vtd", "vfio"),
    time_factor=10,
    cpus=2,
    # All of L1's RAM must be below 4 GiB: the emulator truncates the addresses of
    # SR-IOV functions when the firmware opens a 64-bit window.
    memory=2560,
    memory_max=2815,
    qemu=(
        *_MACHINE,
        # `caching-mode` makes the guest flush after a map too, as passing a device on needs.
        *("-device", "intel-iommu,intremap=on,device-iotlb=on,caching-mode=on"),
    ),
    kernel_cmdline=f"{_KERNEL_CMDLINE} intel_iommu=on",
    modules=(
        *("virtio_pci", "virtio_console", "9p", "9pnet_virtio", "qemu_fw_cfg", "overlay"),
        *("kvm-amd", "vfio-pci", "vfio_iommu_type1", "tun", "vhost_net", "vhost_vsock"),
        *("virtio_net", "virtio_blk", "igb", "nvme"),
        *("loop", "dm-log-writes", "aer_inject"),
    ),
    root_ports=4,
    state="amd",
    guest_cmdline=_GUEST_CMDLINE,
)

# `edu` does DMA and interrupts by order of its driver. It has no saved state, so it is plugged in
# after the machine is resumed, as a card with virtual functions and one with an address cache are.
VTD = replace(
    AMD,
    name="vtd",
    cpus=_CPUS_WITH_DEVICES,
    summary="VT-d, and devices to pass on: edu, cards with SR-IOV, with ATS, with three functions",
    provides=(
        *("kvm", "kvm-linux", "linux", "vfio", "vtd"),
        *("edu", "sriov", "ats", "shared-group", "aer", "fault-log"),
    ),
    plugged=(
        _EDU,
        _CARD,
        "virtio-net-pci,netdev=card1,disable-legacy=on,iommu_platform=on,ats=on",
        # Functions of one card are one group. The first is plugged in last and shows all. None can
        # be reset alone; as conventional ones they have no power management, with which Linux
        # waits after a reset for a link that the emulator's ports do not report.
        "virtio-rng-pci,bus=rp3,addr=0.1,multifunction=on,disable-legacy=on,x-disable-pcie=on",
        f"{_EDU},bus=rp3,addr=0.2,multifunction=on",
        f"{_EDU},bus=rp3,addr=0.0,multifunction=on",
    ),
    backends=(*_CARD_BACKEND, "-netdev", "user,id=card1,restrict=on"),
    # Who has an address cache is told to forget, which nothing in L1 shows.
    traced=("vtd_inv_desc",),
)

# A controller that shares its queues among virtual functions. It has no saved state, and cannot be
# plugged in later. Its disk is memory: what is written goes with the machine.
NVME = replace(
    AMD,
    name="nvme",
    cpus=_CPUS_WITH_DEVICES,
    summary="VT-d, and an NVMe controller with SR-IOV to pass on",
    provides=("kvm", "kvm-linux", "linux", "vfio", "vtd", "nvme"),
    qemu=(*AMD.qemu, "-device", "nvme-subsys,id=subsystem"),
    modules=(*AMD.modules, "crc32c_generic", "ext4"),
    state="nvme",
    saved=False,
    plugged=(
        # A queue for administration and two for requests stay with the controller itself.
        "nvme,id=card,serial=lab,subsys=subsystem,sriov_max_vfs=2,sriov_vq_flexible=4,"
        "sriov_vi_flexible=2,max_ioqpairs=6,msix_qsize=5",
        "nvme-ns,drive=disk,bus=card,nsid=1,shared=on",
    ),
    backends=("-drive", "if=none,id=disk,driver=null-co,size=64M,read-zeroes=on,snapshot=on"),
)

# Two of each kind, so that who is compared has one each at the same time. Disks answer at once.
CARDS = replace(
    AMD,
    name="cards",
    summary="VT-d, and devices to measure with: a network card with SR-IOV, two NVMe controllers",
    provides=("kvm", "kvm-linux", "linux", "vfio", "vtd", "sriov"),
    plugged=(
        _CARD,
        "nvme,drive=disk0,serial=disk0",
        "nvme,drive=disk1,serial=disk1",
    ),
    backends=(
        *_CARD_BACKEND,
        *("-drive", "if=none,id=disk0,driver=null-co,size=64M,read-zeroes=on"),
        *("-drive", "if=none,id=disk1,driver=null-co,size=64M,read-zeroes=on"),
    ),
)

# The same by the kernel's newer interface: /dev/iommu, and a file for each device.
IOMMUFD = replace(
    VTD,
    name="iommufd",
    summary="VT-d by iommufd and files of devices; what vtd has to pass on",
    provides=(*VTD.provides, "iommufd"),
    modules=("iommufd", *AMD.modules),
    state="iommufd",
    iommufd=True,
)

# It remaps no interrupts, so who passes a device on has to allow that in so many words.
_UNSAFE = tuple(
    f"{name} allow_unsafe_interrupts=1" if name == "vfio_iommu_type1" else name
    for name in AMD.modules
)

VIOMMU = replace(
    AMD,
    name="viommu",
    cpus=_CPUS_WITH_DEVICES,
    summary="virtio-iommu, unsafe interrupts allowed; edu and a card with SR-IOV to pass on",
    provides=(
        *("kvm", "kvm-linux", "linux", "vfio", "edu", "sriov", "viommu"),
        *("fault-log", "unremapped"),
    ),
    qemu=(*_MACHINE, "-device", "virtio-iommu-pci"),
    kernel_cmdline=_KERNEL_CMDLINE,
    # Functions that it serves are not given to drivers before its own is there.
    modules=("virtio-iommu", *_UNSAFE),
    state="viommu",
    plugged=(_EDU, _CARD),
    backends=_CARD_BACKEND,
)

# Its devices are on the root bus from the start: behind a port their requests are not translated.
AMDVI = replace(
    AMD,
    name="amdvi",
    summary="AMD-Vi with interrupt remapping, in an older emulator; edu to pass on",
    provides=("kvm", "kvm-linux", "linux", "svm", "npt", "vfio", "edu", "amdvi"),
    time_factor=20,
    cpus=_CPUS_WITH_DEVICES,
    qemu=(
        # This emulator runs on with code that another processor has just changed, as the kernel
        # does when KVM starts: its processors take turns.
        *("-machine", "q35", "-accel", "tcg,thread=single", "-cpu", _CPU),
        *("-device", "amd-iommu,intremap=on,device-iotlb=on"),
    ),
    kernel_cmdline=_KERNEL_CMDLINE,
    # The emulator has no card `igb`.
    modules=tuple(name for name in AMD.modules if name not in ("igb", "nvme")),
    root_ports=0,
    state="",
    plugged=(_EDU,),
    older=True,
    saved=False,
)

# Parts of L1's kernel that cost many instructions to start and that no test needs.
_NOT_STARTED = (
    *("crypto_algapi_init", "load_system_certificate_list", "init_kprobe_trace"),
    *("crypto_kdf108_init", "blake2s_mod_init", "init_encrypted", "crc64_rocksoft_mod_init"),
    *("digsig_init", "crc_t10dif_mod_init", "inet6_init", "trace_eval_init"),
    "ftrace_check_for_weak_functions",
)


def intel(model: Model) -> BochsFlavour:
    """The Intel machine with this model of processor."""
    return BochsFlavour(
        name="intel",
        summary=f"VT-x: {model.summary}",
        provides=("kvm", "kvm-linux", "linux", *model.provides),
        time_factor=60,
        cpus=1,
        # The largest guest of the tests has 2 GiB.
        memory=2400,
        memory_max=2400,
        model=model,
        kernel_cmdline=(
            "console=ttyS0 quiet panic=-1 mitigations=off nokaslr audit=0 apparmor=0 "
            f"cryptomgr.notests=1 initcall_blacklist={','.join(_NOT_STARTED)}"
        ),
        guest_cmdline=_GUEST_CMDLINE,
        modules=("kvm-intel", "nd_e820", "nd_pmem", "ext4"),
    )


FLAVOURS: dict[str, Flavour] = {
    flavour.name: flavour
    for flavour in (AMD, VTD, NVME, CARDS, IOMMUFD, VIOMMU, AMDVI, intel(HASWELL))
}
