/* Both ends of the benchmark "vsock" (`stream.h`).
 *
 * As init of a guest it works with the host over AF_VSOCK. As "vsockload serve" it is the host's end for
 * guests of vhost, as "vsockload serve PATH" for guests whose port is the Unix socket at PATH.
 */
#define _GNU_SOURCE
#include "stream.h"
#include <linux/vm_sockets.h>
#include <sys/un.h>

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

static int dial(void)
{
	struct sockaddr_vm host = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = PORT };
	int peer = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (connect(peer, (struct sockaddr *)&host, sizeof host))
		fail("connect");
	return peer;
}

int main(int count, char **words)
{
	if (count > 1 && !strcmp(words[1], "serve"))
		return serve(bound(count > 2 ? words[2] : NULL), NULL);
	begin_as_init();
	return obey(dial);
}
