/* Both ends of the benchmark "net" (`stream.h`).
 *
 * As init of a guest it gives eth0 the address GUEST of the command line and works with the host at HOST,
 * over TCP. As "netload serve" it is the host's end, for all guests.
 */
#define _GNU_SOURCE
#include "stream.h"
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>

static void at_once(int peer)
{
	int on = 1;
	setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static int listening(void)
{
	struct sockaddr_in any = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(listener, (struct sockaddr *)&any, sizeof any) || listen(listener, 16))
		fail("listen");
	return listener;
}

static struct sockaddr_in address(const char *name, int port)
{
	struct sockaddr_in found = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	const char *text = getenv(name);
	if (!text || inet_pton(AF_INET, text, &found.sin_addr) != 1)
		fail(name);
	return found;
}

static void configure(void)
{
	struct sockaddr_in own = address("GUEST", 0), mask = own;
	struct ifreq request = { .ifr_name = "eth0" };
	int handle = socket(AF_INET, SOCK_DGRAM, 0);
	mask.sin_addr.s_addr = htonl(0xffffff00);
	for (int tries = 0; ioctl(handle, SIOCGIFFLAGS, &request); tries++) {
		if (tries == 500)
			fail("eth0");
		usleep(10000);
	}
	memcpy(&request.ifr_addr, &own, sizeof own);
	if (ioctl(handle, SIOCSIFADDR, &request))
		fail("address");
	memcpy(&request.ifr_addr, &mask, sizeof mask);
	if (ioctl(handle, SIOCSIFNETMASK, &request))
		fail("mask");
	request.ifr_flags = IFF_UP | IFF_RUNNING;
	if (ioctl(handle, SIOCSIFFLAGS, &request))
		fail("up");
	close(handle);
}

static int dial(void)
{
	struct sockaddr_in host = address("HOST", PORT);
	int peer = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(peer, (struct sockaddr *)&host, sizeof host))
		fail("connect");
	at_once(peer);
	return peer;
}

int main(int count, char **words)
{
	if (count > 1 && !strcmp(words[1], "serve"))
		return serve(listening(), at_once);
	begin_as_init();
	configure();
	return obey(dial);
}
