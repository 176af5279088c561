/* Init of the guests of the benchmark "vfio": uses a network card and a disk as it is told.
 *
 * Gives eth0 the address GUEST of the command line, prints "=ready" when the host at HOST answers and
 * /dev/nvme0n1 is there, and then serves lines of the console: "MODE COUNT" does COUNT operations and
 * prints "=MODE NANOSECONDS" by CLOCK_MONOTONIC. Modes: "ping" sends an ICMP echo request after
 * another, and its figure is COUNT times the median; "nvme" reads 4 KiB at random places, one after
 * another, past the page cache, and its figure is the sum.
 */
#define _GNU_SOURCE
#include "load.h"
#include "random.h"
#include "link.h"
#include <linux/fs.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <sys/time.h>

enum { MOST = 4096, PAYLOAD = 56, BLOCK = 4096 };

static uint16_t checksum(const void *data, size_t size)
{
	const uint16_t *words = data;
	uint32_t sum = 0;
	for (size_t i = 0; i < size / 2; i++)
		sum += words[i];
	sum = (sum >> 16) + (sum & 0xffff);
	return (uint16_t)~(sum + (sum >> 16));
}

/* One request and its reply; 0 where none came. */
static int echo(int link, const struct sockaddr_in *host, uint16_t number)
{
	struct {
		struct icmphdr head;
		char payload[PAYLOAD];
	} request = { .head = { .type = ICMP_ECHO } };
	unsigned char reply[256];
	request.head.un.echo.sequence = htons(number);
	request.head.checksum = checksum(&request, sizeof request);
	if (sendto(link, &request, sizeof request, 0, (const struct sockaddr *)host, sizeof *host) < 0)
		return 0;
	for (;;) {
		ssize_t got = recv(link, reply, sizeof reply, 0);
		if (got < 0)
			return 0;
		const unsigned char *icmp = reply + (reply[0] & 15) * 4;
		if (icmp[0] == ICMP_ECHOREPLY && (icmp[6] << 8 | icmp[7]) == number)
			return 1;
	}
}

static int by_size(const void *one, const void *other)
{
	uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
	return (a > b) - (a < b);
}

static uint64_t ping(int link, const struct sockaddr_in *host, uint64_t count)
{
	static uint64_t times[MOST];
	if (!count || count > MOST)
		fail("a count");
	for (uint64_t i = 0; i < count; i++) {
		uint64_t begin = now();
		if (!echo(link, host, (uint16_t)i))
			fail("a reply");
		times[i] = now() - begin;
	}
	qsort(times, count, sizeof *times, by_size);
	return times[count / 2] * count;
}

static uint64_t blocks(int disk, void *buffer, uint64_t size, uint64_t count)
{
	uint64_t begin = now();
	for (uint64_t i = 0; i < count; i++) {
		off_t at = (off_t)(next_random() % (size / BLOCK) * BLOCK);
		if (pread(disk, buffer, BLOCK, at) != BLOCK)
			fail("a read");
	}
	return now() - begin;
}

static int open_disk(uint64_t *size)
{
	int disk;
	for (int tries = 0; (disk = open("/dev/nvme0n1", O_RDONLY | O_DIRECT | O_CLOEXEC)) < 0; tries++) {
		if (tries == 1000)
			fail("/dev/nvme0n1");
		usleep(10000);
	}
	if (ioctl(disk, BLKGETSIZE64, size))
		fail("its size");
	return disk;
}

static int open_link(const struct sockaddr_in *host)
{
	struct timeval second = { .tv_sec = 1 };
	int link = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
	if (link < 0 || setsockopt(link, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second))
		fail("a socket");
	for (int tries = 0; !echo(link, host, 0xffff); tries++) {
		if (tries == 1000)
			fail("the host");
		usleep(100000);
	}
	return link;
}

int main(void)
{
	uint64_t count, size;
	char mode[8];
	void *buffer;

	begin_as_init();
	configure();
	struct sockaddr_in host = address("HOST", 0);
	int disk = open_disk(&size), link = open_link(&host);
	if (posix_memalign(&buffer, BLOCK, BLOCK))
		fail("memory");
	printf("=ready\n");
	while (scanf("%7s %lu", mode, &count) == 2) {
		int pings = !strcmp(mode, "ping");
		uint64_t took = pings ? ping(link, &host, count) : blocks(disk, buffer, size, count);
		printf("=%s %lu\n", mode, took);
	}
	fail("the console");
	return 0;
}
