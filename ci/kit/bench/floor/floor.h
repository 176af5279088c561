/* What all floors share: the end of one that fails, the clock, and the size of large pages. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { HUGE_PAGE = 2 << 20 };

static void check(int bad, const char *what)
{
    if (bad) {
        fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
        exit(1);
    }
}

static long long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}
