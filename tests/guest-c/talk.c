/* A filter in C that does what ordinary programs in C do: it prints to standard error and asks for the time, the
 * environment, a file. The offset of a read says what the filter does. If that goes well, the read is passed on. */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "talk.h"

void exports_rbdkit_filter_filter_describe(exports_rbdkit_filter_filter_description_t *ret)
{
    memset(ret, 0, sizeof *ret);
    talk_string_dup(&ret->name, "talk");
    talk_string_dup(&ret->version, "0.1.0");
    talk_string_dup(&ret->longname, "talks");
    talk_string_dup(&ret->help, "");
    ret->thread_model = RBDKIT_FILTER_TYPES_THREAD_MODEL_SERIALIZE_ALL_REQUESTS;
    ret->unexported = RBDKIT_FILTER_TYPES_UNEXPORTED_TRANSPARENT;
    ret->recovery = RBDKIT_FILTER_TYPES_RECOVERY_STATELESS;
}

bool exports_rbdkit_filter_filter_configure(talk_list_tuple2_string_string_t *params, talk_string_t *err)
{
    (void)params;
    (void)err;
    return true;
}

/* What the world looks like from in here. */
static void look_around(void)
{
    struct timespec before, after, nap = { 0, 20 * 1000 * 1000 };
    unsigned char key[16] = { 0 }, none[16] = { 0 };
    FILE *file;
    int descriptor;

    /* 2020 or later. */
    fprintf(stderr, "time: %s\n", time(NULL) > 1577836800 ? "yes" : "no");
    clock_gettime(CLOCK_MONOTONIC, &before);
    nanosleep(&nap, NULL);
    clock_gettime(CLOCK_MONOTONIC, &after);
    after.tv_nsec += (after.tv_sec - before.tv_sec) * 1000 * 1000 * 1000;
    fprintf(stderr, "slept: %s\n", after.tv_nsec - before.tv_nsec >= nap.tv_nsec ? "yes" : "no");
    fprintf(stderr, "random: %s\n", getentropy(key, sizeof key) == 0 && memcmp(key, none, sizeof key) ? "yes" : "no");
    file = fopen("/etc/passwd", "r");
    fprintf(stderr, "file: %s\n", file ? "yes" : strerror(errno));
    descriptor = open("new", O_CREAT | O_WRONLY, 0600);
    fprintf(stderr, "new file: %s\n", descriptor >= 0 ? "yes" : strerror(errno));
    fprintf(stderr, "PATH: %s\n", getenv("PATH") ? "yes" : "no");
    fprintf(stderr, "input: %s\n", getchar() == EOF ? "no" : "yes");
    /* A command for the terminal, and a line that is not ended. */
    fprintf(stderr, "\x1b[2Jthe end");
    printf("on standard output\n");
    fflush(stdout);
}

bool exports_rbdkit_filter_reads_pread(uint64_t offset, uint32_t length, exports_rbdkit_filter_reads_command_flags_t flags,
                                       exports_rbdkit_filter_reads_errno_t *err)
{
    (void)flags;
    switch (offset) {
    case 0:
        look_around();
        break;
    case 4096:
        fprintf(stderr, "it is enough");
        exit(3);
    case 8192:
        abort();
    }
    return rbdkit_filter_next_pread(offset, length, 0, 0, err);
}
