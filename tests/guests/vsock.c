/* Talks over AF_VSOCK for tests.
 *
 *   vsock echo PORT          echoes every connection until its end, then closes it
 *   vsock send PORT BYTES    sends a pattern to the host, says that this is all, and prints how many
 *                            bytes came back until the end, and whether they are the same
 *   vsock many PORT COUNT    opens that many connections, then sends and reads a number on each
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

#define CHUNK (64 << 10)

static void fail(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	exit(1);
}

static struct sockaddr_vm at(unsigned cid, unsigned port)
{
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port };
	return address;
}

static int dial(unsigned port)
{
	struct sockaddr_vm host = at(VMADDR_CID_HOST, port);
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&host, sizeof host))
		fail("connect");
	return fd;
}

static void write_all(int fd, const char *bytes, size_t len)
{
	while (len) {
		ssize_t count = write(fd, bytes, len);
		if (count < 0)
			fail("write");
		bytes += count;
		len -= count;
	}
}

static void *echo(void *argument)
{
	int fd = (long)argument;
	char *bytes = malloc(CHUNK);
	ssize_t count;
	while ((count = read(fd, bytes, CHUNK)) > 0)
		write_all(fd, bytes, count);
	if (count < 0)
		fail("read");
	close(fd);
	free(bytes);
	return NULL;
}

static void serve(unsigned port)
{
	struct sockaddr_vm any = at(VMADDR_CID_ANY, port);
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&any, sizeof any) || listen(fd, 128))
		fail("listen");
	puts("listening");
	fflush(stdout);
	for (;;) {
		pthread_t thread;
		long taken = accept(fd, NULL, NULL);
		if (taken < 0)
			fail("accept");
		if (pthread_create(&thread, NULL, echo, (void *)taken))
			fail("thread");
		pthread_detach(thread);
	}
}

/* Byte N of the pattern. */
static char pattern(size_t n)
{
	return (n * 2654435761u) >> 13;
}

struct sending {
	int fd;
	size_t bytes;
};

static void *feed(void *argument)
{
	struct sending *sending = argument;
	char *bytes = malloc(CHUNK);
	for (size_t done = 0; done < sending->bytes;) {
		size_t count = sending->bytes - done < CHUNK ? sending->bytes - done : CHUNK;
		for (size_t n = 0; n < count; n++)
			bytes[n] = pattern(done + n);
		write_all(sending->fd, bytes, count);
		done += count;
	}
	if (shutdown(sending->fd, SHUT_WR))
		fail("shutdown");
	return NULL;
}

static int send_pattern(unsigned port, size_t len)
{
	struct sending sending = { dial(port), len };
	char *bytes = malloc(CHUNK);
	size_t got = 0, wrong = 0;
	ssize_t count;
	pthread_t thread;
	if (pthread_create(&thread, NULL, feed, &sending))
		fail("thread");
	while ((count = read(sending.fd, bytes, CHUNK)) > 0) {
		for (ssize_t n = 0; n < count; n++)
			wrong += bytes[n] != pattern(got + n);
		got += count;
	}
	if (count < 0)
		fail("read");
	pthread_join(thread, NULL);
	printf("%zu bytes, %zu wrong\n", got, wrong);
	return 0;
}

static int many(unsigned port, int count)
{
	int *fds = calloc(count, sizeof *fds), right = 0;
	for (int n = 0; n < count; n++)
		fds[n] = dial(port);
	for (int n = 0; n < count; n++)
		write_all(fds[n], (char *)&n, sizeof n);
	for (int n = 0; n < count; n++) {
		int number = -1;
		right += recv(fds[n], &number, sizeof number, MSG_WAITALL) == sizeof number && number == n;
		close(fds[n]);
	}
	printf("%d right\n", right);
	return 0;
}

int main(int argc, char **argv)
{
	unsigned port = argc > 2 ? atoi(argv[2]) : 0;
	if (argc == 3 && !strcmp(argv[1], "echo"))
		serve(port);
	if (argc == 4 && !strcmp(argv[1], "send"))
		return send_pattern(port, atol(argv[3]));
	if (argc == 4 && !strcmp(argv[1], "many"))
		return many(port, atoi(argv[3]));
	fprintf(stderr, "vsock echo PORT | send PORT BYTES | many PORT COUNT\n");
	return 2;
}
