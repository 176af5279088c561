/* An address for a guest's network card, from the command line (`load.h` first). */
#include <arpa/inet.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* The address that the command line gives as NAME. */
static struct sockaddr_in address(const char *name, int port)
{
	struct sockaddr_in found = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	const char *text = getenv(name);
	if (!text || inet_pton(AF_INET, text, &found.sin_addr) != 1)
		fail(name);
	return found;
}

/* Gives eth0 the address GUEST. */
static void configure(void)
{
	struct sockaddr_in own = address("GUEST", 0), mask = own;
	struct ifreq request = { .ifr_name = "eth0" };
	int handle = socket(AF_INET, SOCK_DGRAM, 0);
	mask.sin_addr.s_addr = htonl(0xffffff00);
	for (int tries = 0; ioctl(handle, SIOCGIFFLAGS, &request); tries++) {
		if (tries == 1000)
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
