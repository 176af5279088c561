/* relay: carries a command's output out of L1 through the emulator's debug port.
 *
 *   relay run COMMAND...   run it with stdout and stderr framed; its status is ours
 *   relay send KIND        frame standard input as KIND
 *
 * frames.py describes the format and reads it.  Needs root, for the I/O port.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 0xe9, CHUNK = 0xffff, GRACE_MS = 1000 };

static void fail(const char *what)
{
    perror(what);
    _exit(125);
}

static void frame(char kind, const char *data, size_t size)
{
    char header[16];
    int length = snprintf(header, sizeof header, "\x1e%c%04zx", kind, size);
    outsb(PORT, header, (unsigned long)length);
    outsb(PORT, data, size);
}

/* Passes one read of `fd` on; 0 at its end. */
static int pass_on(char kind, int fd)
{
    static char data[CHUNK];
    ssize_t count = read(fd, data, sizeof data);
    if (count < 0 && (errno == EINTR || errno == EAGAIN))
        return 1;
    if (count > 0)
        frame(kind, data, (size_t)count);
    return count > 0;
}

static pid_t start(char **command, int out, int err)
{
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child > 0)
        return child;
    if (dup2(out, 1) < 0 || dup2(err, 2) < 0)
        fail("dup2");
    execvp(command[0], command);
    fail(command[0]);
    return 0;
}

static long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* After the fork only: a command that inherits the right could reach every port. */
static void take_port(void)
{
    if (iopl(3))
        fail("iopl");
}

static int status_of(int wait_status)
{
    return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 128 + WTERMSIG(wait_status);
}

static int run(char **command)
{
    int out[2], err[2];
    if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
        fail("pipe2");
    pid_t child = start(command, out[1], err[1]);
    take_port();
    close(out[1]);
    close(err[1]);

    struct pollfd ends[2] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
    int ended = 0, wait_status = 0;
    long end_ms = 0;
    /* A process left behind may hold the pipes open: it gets a second. */
    while ((ends[0].fd >= 0 || ends[1].fd >= 0) && !(ended && now_ms() - end_ms > GRACE_MS)) {
        int ready = poll(ends, 2, 100);
        if (!ended && waitpid(child, &wait_status, WNOHANG) == child) {
            ended = 1;
            end_ms = now_ms();
        }
        for (int i = 0; ready > 0 && i < 2; i++)
            if (ends[i].revents && !pass_on("oe"[i], ends[i].fd))
                ends[i].fd = -1;
    }
    if (!ended)
        waitpid(child, &wait_status, 0);
    return status_of(wait_status);
}

int main(int argc, char **argv)
{
    if (argc > 2 && !strcmp(argv[1], "run"))
        return run(argv + 2);
    if (argc == 3 && !strcmp(argv[1], "send")) {
        take_port();
        while (pass_on(argv[2][0], 0))
            ;
        return 0;
    }
    fprintf(stderr, "usage: relay run COMMAND... | relay send KIND\n");
    return 125;
}
