/* The floor of the benchmark "create": the ioctls of vm.h, one KVM_RUN, the end, and nothing else.
 *
 * Reads lines "MODE COUNT"; for each makes, runs and ends COUNT VMs and prints one line "CREATE CLOSE"
 * a VM, in nanoseconds of CLOCK_MONOTONIC. MODE "sync" closes in place: CLOSE lasts until the kernel
 * has freed everything. MODE "handoff" gives memory and descriptors to a thread: CLOSE is what the
 * caller waits for. The next VM begins when the thread is done.
 */
#include <pthread.h>

#include "vm.h"

static const unsigned char CODE[] = {0xb0, 0xfe, 0xe6, RESET, 0xf4}; /* mov al, 0xfe; out 0x64, al; hlt */

static void run_vm(struct vm *vm)
{
    check(ioctl(vm->vcpu, KVM_RUN, 0) < 0, "KVM_RUN");
    if (vm->run->exit_reason != KVM_EXIT_IO || vm->run->io.port != RESET) {
        fprintf(stderr, "floor: the guest ended by exit %u\n", vm->run->exit_reason);
        exit(1);
    }
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct vm *waiting;

static void *closer(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (!waiting)
            pthread_cond_wait(&changed, &lock);
        struct vm *vm = waiting;
        pthread_mutex_unlock(&lock);
        end_vm(vm);
        pthread_mutex_lock(&lock);
        waiting = NULL;
        pthread_cond_broadcast(&changed);
    }
    return NULL;
}

static void hand_off(struct vm *vm)
{
    pthread_mutex_lock(&lock);
    waiting = vm;
    pthread_mutex_unlock(&lock);
    pthread_cond_broadcast(&changed);
}

static void wait_for_closer(void)
{
    pthread_mutex_lock(&lock);
    while (waiting)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

static void one(int in_place)
{
    struct vm vm;
    long long start = now();
    make_vm(&vm, CODE, sizeof CODE);
    make_vcpu(&vm);
    run_vm(&vm);
    long long made = now();
    if (in_place)
        end_vm(&vm);
    else
        hand_off(&vm);
    long long closed = now();
    if (!in_place)
        wait_for_closer();
    printf("%lld %lld\n", made - start, closed - made);
}

int main(void)
{
    pthread_t thread;
    char mode[16];
    int count;

    open_kvm();
    check((errno = pthread_create(&thread, NULL, closer, NULL)) != 0, "pthread_create");
    while (scanf("%15s %d", mode, &count) == 2) {
        for (int i = 0; i < count; i++)
            one(!strcmp(mode, "sync"));
        fflush(stdout);
    }
    return 0;
}
