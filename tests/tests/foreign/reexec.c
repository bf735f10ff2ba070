/* A plugin that needs a library in a directory of its own and starts its program again to get it, as
 * nbdkit-vddk-plugin does. */

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static const char *libdir, *started_again;
static int64_t (*size_of_disk)(void);

static int r_config(const char *key, const char *value)
{
    if (strcmp(key, "libdir") == 0) {
        libdir = value;
        return 0;
    }
    if (strcmp(key, "reexeced_") == 0) {
        started_again = value;
        return 0;
    }
    nbdkit_error("unknown parameter '%s'", key);
    return -1;
}

/* Starts the program again with the same arguments and one more. */
static void start_again(void)
{
    static char buffer[65536];
    static char *arguments[1000];
    int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t length = read(fd, buffer, sizeof buffer - 1);
    close(fd);
    int count = 0;
    for (char *word = buffer; length > 0 && word < buffer + length && count < 990; word += strlen(word) + 1)
        arguments[count++] = word;
    char further[4096];
    snprintf(further, sizeof further, "reexeced_=%s", libdir);
    arguments[count++] = further;
    arguments[count] = NULL;
    setenv("LD_LIBRARY_PATH", libdir, 1);
    nbdkit_debug("starting again with LD_LIBRARY_PATH=%s", libdir);
    fflush(NULL);
    execvp("/proc/self/exe", arguments);
    nbdkit_error("execvp: %m");
}

static int r_config_complete(void)
{
    /* Found only in the directories of LD_LIBRARY_PATH when the program was started. */
    void *library = dlopen("libtesting-far-away.so.7", RTLD_NOW);
    if (!library && libdir && !started_again)
        start_again();
    if (!library) {
        nbdkit_error("%s", dlerror());
        return -1;
    }
    size_of_disk = (int64_t (*)(void))dlsym(library, "size_of_disk");
    return size_of_disk ? 0 : -1;
}

static void *r_open(int readonly) { return NBDKIT_HANDLE_NOT_NEEDED; }
static int64_t r_get_size(void *handle) { return size_of_disk(); }

static int r_pread(void *handle, void *buffer, uint32_t count, uint64_t offset, uint32_t flags)
{
    memset(buffer, 'V', count);
    return 0;
}

static struct nbdkit_plugin plugin = {
    .name = "reexec", .config = r_config, .config_complete = r_config_complete, .magic_config_key = "libdir",
    .open = r_open, .get_size = r_get_size, .pread = r_pread,
};

NBDKIT_REGISTER_PLUGIN(plugin)
