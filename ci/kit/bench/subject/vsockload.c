/* Both ends of the benchmark "vsock".
 *
 * As init of a guest it loads /modules/NN-NAME.ko in their order, prints "=ready", and then serves lines
 * of the console: "MODE COUNT" works with the host and prints "=MODE NANOSECONDS" by CLOCK_MONOTONIC.
 * Modes, over one stream each: "out" and "in" move COUNT MiB, "rr" sends one byte and gets it back COUNT
 * times.
 *
 * As "vsockload serve" it is the host's end for guests of vhost, as "vsockload serve PATH" for guests
 * whose port is the Unix socket at PATH.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 5001, MIB = 1 << 20 };

static char buffer[MIB];

static void fail(const char *what)
{
	printf("=failed %s: %s\n", what, strerror(errno));
	fflush(stdout);
	if (getpid() == 1)
		reboot(RB_POWER_OFF);
	exit(1);
}

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

static int bound(const char *path)
{
	struct sockaddr_vm any = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = PORT };
	struct sockaddr_un file = { .sun_family = AF_UNIX };
	int listener = socket(path ? AF_UNIX : AF_VSOCK, SOCK_STREAM, 0);
	if (path) {
		snprintf(file.sun_path, sizeof file.sun_path, "%s", path);
		if (bind(listener, (struct sockaddr *)&file, sizeof file))
			fail(path);
	} else if (bind(listener, (struct sockaddr *)&any, sizeof any)) {
		fail("bind");
	}
	if (listen(listener, 16))
		fail("listen");
	return listener;
}

static int serve(const char *path)
{
	int listener = bound(path);
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
		if (recv(peer, &order, sizeof order, MSG_WAITALL) == sizeof order)
			work(peer, order, 1);
		_exit(0);
	}
}

static void load_modules(void)
{
	glob_t found;
	if (glob("/modules/*.ko", 0, NULL, &found))
		return;
	for (size_t i = 0; i < found.gl_pathc; i++) {
		int file = open(found.gl_pathv[i], O_RDONLY | O_CLOEXEC);
		if (file < 0 || (syscall(SYS_finit_module, file, "", 0) && errno != EEXIST))
			fail(found.gl_pathv[i]);
		close(file);
	}
}

static uint64_t now(void)
{
	struct timespec at;
	clock_gettime(CLOCK_MONOTONIC, &at);
	return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static uint64_t run(struct order order)
{
	struct sockaddr_vm host = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = PORT };
	int peer = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (connect(peer, (struct sockaddr *)&host, sizeof host))
		fail("connect");
	if (send(peer, &order, sizeof order, 0) != sizeof order)
		fail("send");
	uint64_t begin = now();
	work(peer, order, 0);
	uint64_t took = now() - begin;
	close(peer);
	return took;
}

int main(int count, char **words)
{
	char mode[8];
	struct order order;

	if (count > 1 && !strcmp(words[1], "serve"))
		return serve(count > 2 ? words[2] : NULL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sys", "/sys", "sysfs", 0, NULL);
	load_modules();
	printf("=ready\n");
	while (scanf("%7s %lu", mode, &order.count) == 2) {
		order.mode = (uint64_t)mode[0];
		printf("=%s %lu\n", mode, run(order));
	}
	fail("the console");
	return 0;
}
