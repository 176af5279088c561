/* Init of the guests of the benchmark "block": reads and writes /dev/vda as it is told.
 *
 * Loads /modules/NN-NAME.ko in their order, prints "=ready", and then serves lines of the console:
 * "MODE COUNT" does COUNT requests and prints "=MODE NANOSECONDS" by CLOCK_MONOTONIC. Modes: "r1" and
 * "r16" read 4 KiB at random places with 1 or 16 requests under way, "sr" and "sw" read or write
 * 1 MiB after another with four under way. All with O_DIRECT, by the kernel's native asynchronous I/O.
 */
#define _GNU_SOURCE
#include "load.h"
#include "random.h"
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <sys/ioctl.h>

enum { MOST = 16 };

struct work {
	int disk;
	uint64_t size, count, begun;
	uint32_t bytes, depth;
	int write, random;
	struct iocb blocks[MOST];
	char *buffers[MOST];
};

static void submit(struct work *work, aio_context_t context, uint32_t slot)
{
	uint64_t places = work->size / work->bytes;
	uint64_t place = work->random ? next_random() % places : work->begun % places;
	struct iocb *block = &work->blocks[slot];
	memset(block, 0, sizeof *block);
	block->aio_data = slot;
	block->aio_lio_opcode = work->write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
	block->aio_fildes = (uint32_t)work->disk;
	block->aio_buf = (uint64_t)(uintptr_t)work->buffers[slot];
	block->aio_nbytes = work->bytes;
	block->aio_offset = (int64_t)(place * work->bytes);
	work->begun++;
	if (syscall(SYS_io_submit, context, 1, &block) != 1)
		fail("io_submit");
}

static uint64_t run(struct work *work, aio_context_t context)
{
	uint64_t begin = now(), done = 0;
	work->begun = 0;
	for (uint32_t slot = 0; slot < work->depth && work->begun < work->count; slot++)
		submit(work, context, slot);
	while (done < work->count) {
		struct io_event events[MOST];
		long got = syscall(SYS_io_getevents, context, 1, MOST, events, NULL);
		if (got < 1)
			fail("io_getevents");
		for (long i = 0; i < got; i++, done++) {
			if (events[i].res != work->bytes)
				fail("a request");
			if (work->begun < work->count)
				submit(work, context, (uint32_t)events[i].data);
		}
	}
	return now() - begin;
}

int main(void)
{
	static struct work work;
	aio_context_t context = 0;
	char mode[8];

	begin_as_init();
	for (int tries = 0; (work.disk = open("/dev/vda", O_RDWR | O_DIRECT | O_CLOEXEC)) < 0; tries++) {
		if (tries == 500)
			fail("/dev/vda");
		usleep(10000);
	}
	if (ioctl(work.disk, BLKGETSIZE64, &work.size) || syscall(SYS_io_setup, MOST, &context))
		fail("set-up");
	for (int slot = 0; slot < MOST; slot++) {
		if (posix_memalign((void **)&work.buffers[slot], 4096, 1 << 20))
			fail("memory");
		memset(work.buffers[slot], slot, 1 << 20);
	}
	printf("=ready\n");
	while (scanf("%7s %lu", mode, &work.count) == 2) {
		work.random = mode[0] == 'r';
		work.write = !strcmp(mode, "sw");
		work.bytes = work.random ? 4096 : 1 << 20;
		work.depth = !strcmp(mode, "r1") ? 1 : work.random ? 16 : 4;
		printf("=%s %lu\n", mode, run(&work, context));
	}
	fail("the console");
	return 0;
}
