/* The floor of the benchmark "exit": a guest that reads a device again and again, served by a loop of
 * bare KVM_RUNs that answers with zeros.
 *
 * Reads lines "KIND COUNT" with the kinds "pio" and "mmio"; for each has a guest read COUNT times and
 * prints the nanoseconds of CLOCK_MONOTONIC from the first KVM_RUN to the guest's end.
 */
#include "vm.h"

/* mov ecx, COUNT; mov ebx, 0xfec00000; mov edx, 0x3ff; then the loop and "mov al, 0xfe; out 0x64, al; hlt". */
static const unsigned char PIO[] = {0xb9, 0, 0, 0, 0, 0xbb, 0, 0, 0xc0, 0xfe, 0xba, 0xff, 3, 0, 0,
                                    0xec, 0x49, 0x75, 0xfc, 0xb0, 0xfe, 0xe6, RESET, 0xf4}; /* in al, dx */
static const unsigned char MMIO[] = {0xb9, 0, 0, 0, 0, 0xbb, 0, 0, 0xc0, 0xfe, 0xba, 0xff, 3, 0, 0,
                                     0x8b, 3, 0x49, 0x75, 0xfb, 0xb0, 0xfe, 0xe6, RESET, 0xf4}; /* mov eax, [ebx] */

static void serve(struct vm *vm)
{
    struct kvm_run *run = vm->run;

    for (;;) {
        check(ioctl(vm->vcpu, KVM_RUN, 0) < 0, "KVM_RUN");
        if (run->exit_reason == KVM_EXIT_MMIO) {
            memset(run->mmio.data, 0, sizeof run->mmio.data);
        } else if (run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_IN) {
            *((unsigned char *)run + run->io.data_offset) = 0;
        } else if (run->exit_reason == KVM_EXIT_IO && run->io.port == RESET) {
            return;
        } else {
            fprintf(stderr, "floor: the guest ended by exit %u\n", run->exit_reason);
            exit(1);
        }
    }
}

static long long loop(int mmio, int count)
{
    struct vm vm;
    unsigned char code[sizeof MMIO];

    memcpy(code, mmio ? MMIO : PIO, mmio ? sizeof MMIO : sizeof PIO);
    memcpy(code + 1, &count, sizeof count);
    make_vm(&vm, code, sizeof code);
    make_vcpu(&vm);
    long long start = now();
    serve(&vm);
    long long took = now() - start;
    end_vm(&vm);
    return took;
}

int main(void)
{
    char kind[16];
    int count;

    open_kvm();
    while (scanf("%15s %d", kind, &count) == 2) {
        printf("%lld\n", loop(!strcmp(kind, "mmio"), count));
        fflush(stdout);
    }
    return 0;
}
