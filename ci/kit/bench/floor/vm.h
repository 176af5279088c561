/* What the floors share: a VM with one memory slot, a split irqchip and one vCPU that starts in flat
 * 32-bit code at ENTRY, made by the ioctls that this takes and no others. The memory is of vmlet's kind:
 * anonymous, aligned to and advised for large pages, since the first touch of one is a cost of the policy
 * and not of the code. /dev/kvm is opened and the CPUID table read once.
 */
#include "floor.h"
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MEMORY = 256 << 20, ENTRY = 0x100000, GDT = 0x500, RESET = 0x64, CPUID_ENTRIES = 256 };

struct vm {
    int vm, vcpu;
    void *mapping, *memory;
    struct kvm_run *run;
};

static int kvm, run_size;
static struct kvm_cpuid2 *cpuid;

static void make_vm(struct vm *vm, const void *code, size_t size)
{
    __u64 identity = 0xfffbc000;
    struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
    struct kvm_userspace_memory_region slot = {.memory_size = MEMORY};

    do
        vm->vm = ioctl(kvm, KVM_CREATE_VM, 0);
    while (vm->vm < 0 && errno == EINTR);
    check(vm->vm < 0, "KVM_CREATE_VM");
    check(ioctl(vm->vm, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0, "KVM_SET_IDENTITY_MAP_ADDR");
    check(ioctl(vm->vm, KVM_SET_TSS_ADDR, 0xfffbd000) < 0, "KVM_SET_TSS_ADDR");
    vm->mapping = mmap(NULL, MEMORY + HUGE_PAGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    check(vm->mapping == MAP_FAILED, "mmap of memory");
    vm->memory = (void *)(((__u64)vm->mapping + HUGE_PAGE - 1) & -(__u64)HUGE_PAGE);
    madvise(vm->memory, MEMORY, MADV_HUGEPAGE);
    memcpy((char *)vm->memory + ENTRY, code, size);
    slot.userspace_addr = (__u64)vm->memory;
    check(ioctl(vm->vm, KVM_SET_USER_MEMORY_REGION, &slot) < 0, "KVM_SET_USER_MEMORY_REGION");
    check(ioctl(vm->vm, KVM_ENABLE_CAP, &split) < 0, "KVM_CAP_SPLIT_IRQCHIP");
}

static void make_vcpu(struct vm *vm)
{
    struct kvm_sregs sregs;
    struct kvm_regs regs = {.rip = ENTRY, .rflags = 2};
    struct kvm_segment flat = {.limit = 0xffffffff, .selector = 0x18, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};

    vm->vcpu = ioctl(vm->vm, KVM_CREATE_VCPU, 0);
    check(vm->vcpu < 0, "KVM_CREATE_VCPU");
    check(ioctl(vm->vcpu, KVM_SET_CPUID2, cpuid) < 0, "KVM_SET_CPUID2");
    vm->run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu, 0);
    check(vm->run == MAP_FAILED, "mmap of kvm_run");
    check(ioctl(vm->vcpu, KVM_GET_SREGS, &sregs) < 0, "KVM_GET_SREGS");
    sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = flat;
    flat.selector = 0x10;
    flat.type = 11;
    sregs.cs = flat;
    sregs.cr0 |= 1;
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 39;
    check(ioctl(vm->vcpu, KVM_SET_SREGS, &sregs) < 0, "KVM_SET_SREGS");
    check(ioctl(vm->vcpu, KVM_SET_REGS, &regs) < 0, "KVM_SET_REGS");
}

static void end_vm(struct vm *vm)
{
    munmap(vm->run, run_size);
    close(vm->vcpu);
    close(vm->vm);
    munmap(vm->mapping, MEMORY + HUGE_PAGE);
}

static void open_kvm(void)
{
    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    check(kvm < 0, "/dev/kvm");
    run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    check(run_size < 0, "KVM_GET_VCPU_MMAP_SIZE");
    cpuid = calloc(1, sizeof *cpuid + CPUID_ENTRIES * sizeof *cpuid->entries);
    check(!cpuid, "memory");
    cpuid->nent = CPUID_ENTRIES;
    check(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) < 0, "KVM_GET_SUPPORTED_CPUID");
}
