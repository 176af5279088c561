/* Both ends of the benchmark "net" (`stream.h`).
 *
 * As init of a guest it gives eth0 the address GUEST of the command line and works with the host at HOST,
 * over TCP. As "netload serve" it is the host's end, for all guests.
 */
#define _GNU_SOURCE
#include "stream.h"
#include "link.h"
#include <netinet/tcp.h>

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
