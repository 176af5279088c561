/* Streams between a guest and its host: both ends of the benchmarks "net" and "vsock".
 *
 * Modes, over one stream each: "out" and "in" move COUNT MiB, "rr" sends one byte and gets it back COUNT
 * times.
 */
#include "load.h"
#include <signal.h>
#include <sys/socket.h>

enum { PORT = 5001, MIB = 1 << 20 };

static char buffer[MIB];

static void get(int peer, uint64_t count)
{
	while (count) {
		ssize_t got = recv(peer, buffer, count < MIB ? count : MIB, 0);
		if (got <= 0)
			fail("recv");
		count -= (uint64_t)got;
	}
}

static void put(int peer, uint64_t count)
{
	while (count) {
		ssize_t sent = send(peer, buffer, count < MIB ? count : MIB, 0);
		if (sent <= 0)
			fail("send");
		count -= (uint64_t)sent;
	}
}

struct order {
	uint64_t mode, count;
};

/* What the guest does, or with `host` the other end of it. */
static void work(int peer, struct order order, int host)
{
	uint64_t bytes = order.count * MIB;
	switch (order.mode) {
	case 'o':
		host ? get(peer, bytes) : put(peer, bytes);
		host ? put(peer, 1) : get(peer, 1);
		break;
	case 'i':
		host ? put(peer, bytes) : get(peer, bytes);
		break;
	default:
		for (; order.count; order.count--) {
			host ? get(peer, 1) : put(peer, 1);
			host ? put(peer, 1) : get(peer, 1);
		}
	}
}

/* Serves every connection to `listener` in a process of its own, made ready by `ready` if that is given. */
static int serve(int listener, void (*ready)(int))
{
	signal(SIGCHLD, SIG_IGN);
	printf("=serving\n");
	fflush(stdout);
	for (;;) {
		struct order order;
		int peer = accept(listener, NULL, NULL);
		if (peer < 0)
			continue;
		if (fork()) {
			close(peer);
			continue;
		}
		if (ready)
			ready(peer);
		if (recv(peer, &order, sizeof order, MSG_WAITALL) == sizeof order)
			work(peer, order, 1);
		_exit(0);
	}
}

static uint64_t run(int peer, struct order order)
{
	if (send(peer, &order, sizeof order, 0) != sizeof order)
		fail("send");
	uint64_t begin = now();
	work(peer, order, 0);
	uint64_t took = now() - begin;
	close(peer);
	return took;
}

/* Serves lines of the console, each over a stream that `dial` makes. */
static int obey(int (*dial)(void))
{
	char mode[8];
	struct order order;

	printf("=ready\n");
	while (scanf("%7s %lu", mode, &order.count) == 2) {
		order.mode = (uint64_t)mode[0];
		printf("=%s %lu\n", mode, run(dial(), order));
	}
	fail("the console");
	return 0;
}
