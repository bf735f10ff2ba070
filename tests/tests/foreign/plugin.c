/* A plugin for tests, compiled with nbdkit's own header. It writes the name of each function that is called into
 * a file, and misbehaves where its parameters say. */

#ifndef NBDKIT_API_VERSION
#define NBDKIT_API_VERSION 2
#endif
#include <nbdkit-plugin.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef THREAD_MODEL
#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
#endif
#define SIZE (1 << 20)
/* Where what a misbehaving plugin does happens only in this place. */
#define PLACE 65536

static int log_file = -1;
static const char *crash = "", *leave = "", *hang = "", *fail = "", *lie = "", *tell = "", *once = NULL;
static int wanted_model = -1;
static char disk[SIZE];
int testing_debug_flag = 0;

static void note(const char *format, ...)
{
    char line[256];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    line[length++] = '\n';
    if (log_file >= 0 && write(log_file, line, length) != length)
        abort();
}

/* Whether this happens: always, or with once=FILE only if the file does not exist yet. */
static int happens(const char *what, const char *where)
{
    if (strcmp(what, where) != 0)
        return 0;
    return !once || open(once, O_CREAT | O_EXCL | O_WRONLY, 0600) >= 0;
}

/* The beginning of each function. Returns -1 if it is to fail. */
static int begin(const char *name)
{
    if (happens(crash, name))
        raise(SIGSEGV);
    if (happens(leave, name))
        exit(7);
    if (strcmp(tell, name) == 0) {
        printf("printed by %s\n", name);
        fflush(stdout);
        nbdkit_error("an error of %s", name);
    }
    if (happens(hang, name)) {
        note("hangs in %s", name);
        for (;;)
            pause();
    }
    if (strcmp(fail, name) == 0) {
        nbdkit_error("%s fails: %d%%", name, 100);
        nbdkit_set_error(ENOSPC);
        return -1;
    }
    return 0;
}

#define BEGIN(name)                 \
    do {                            \
        note("%s", name);           \
        if (begin(name) < 0)        \
            return -1;              \
    } while (0)

static void t_load(void) { begin("load"); }
static void t_unload(void) { note("unload"); begin("unload"); }
static void t_cleanup(void) { note("cleanup"); begin("cleanup"); }
static void t_dump_plugin(void) { printf("testing_key=value %d\n", testing_debug_flag); }

static int t_config(const char *key, const char *value)
{
    if (strcmp(key, "log") == 0) {
        log_file = open(value, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0644);
        return log_file < 0 ? -1 : 0;
    }
    struct { const char *key; const char **place; } texts[] = {
        { "crash", &crash }, { "exit", &leave }, { "hang", &hang }, { "fail", &fail },
        { "lie", &lie }, { "tell", &tell }, { "once", &once },
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (strcmp(key, texts[i].key) == 0) {
            *texts[i].place = nbdkit_strdup_intern(value);
            return begin("config");
        }
    if (strcmp(key, "model") == 0)
        return nbdkit_parse_int("model", value, &wanted_model);
    note("config %s=%s", key, value);
    if (strcmp(key, "leak") == 0) {
        for (int i = 0; i < 200; i++)
            if (open("/dev/null", O_RDONLY) < 0)
                return -1;
        return 0;
    }
    if (strcmp(key, "file") == 0) {
        char *path = nbdkit_realpath(value);
        if (!path)
            return -1;
        note("realpath %s", path);
        free(path);
        return 0;
    }
    if (strcmp(key, "password") == 0) {
        char *password;
        if (nbdkit_read_password(value, &password) < 0)
            return -1;
        note("password %s", password);
        free(password);
        return 0;
    }
    if (strcmp(key, "script") == 0 || strcmp(key, "word") == 0)
        return 0;
    nbdkit_error("unknown parameter '%s'", key);
    return -1;
}

static int t_config_complete(void) { BEGIN("config_complete"); return 0; }
static int t_thread_model(void) { BEGIN("thread_model"); return wanted_model < 0 ? THREAD_MODEL : wanted_model; }

static int t_get_ready(void)
{
    BEGIN("get_ready");
    if (strcmp(lie, "stdio") == 0)
        note("stdio_safe %d", nbdkit_stdio_safe());
    return 0;
}

static int t_after_fork(void)
{
    BEGIN("after_fork");
    if (strcmp(lie, "fork") == 0 && fork() == 0) {
        /* Keeps every descriptor of the process open until its parent has ended. */
        pid_t parent = getppid();
        while (getppid() == parent)
            usleep(10000);
        _exit(0);
    }
    return 0;
}

static int t_preconnect(int readonly)
{
    note("preconnect %d", readonly);
    note("peer %d %d", nbdkit_peer_pid() > 0, nbdkit_peer_uid() == getuid());
    return begin("preconnect");
}

static int t_list_exports(int readonly, int is_tls, struct nbdkit_exports *exports)
{
    note("list_exports %d %d", readonly, is_tls);
    if (begin("list_exports") < 0)
        return -1;
    if (strcmp(lie, "exports") == 0)
        for (int i = 0; i < 20000; i++)
            nbdkit_add_export(exports, nbdkit_printf_intern("export %d", i), NULL);
    if (strcmp(lie, "export-names") == 0)
        return nbdkit_add_export(exports, "\xff\xfe", NULL);
    if (nbdkit_add_export(exports, "first", "the first one") < 0)
        return -1;
    return nbdkit_use_default_export(exports);
}

static const char *t_default_export(int readonly, int is_tls)
{
    note("default_export %d %d", readonly, is_tls);
    if (begin("default_export") < 0)
        return NULL;
    return "standard";
}

static void *t_open(int readonly)
{
    note("open %d %s tls=%d", readonly, nbdkit_export_name(), nbdkit_is_tls());
    if (begin("open") < 0)
        return NULL;
    return NBDKIT_HANDLE_NOT_NEEDED;
}

static void t_close(void *handle) { note("close"); begin("close"); }

static int64_t t_get_size(void *handle)
{
    BEGIN("get_size");
    if (strcmp(lie, "size") == 0)
        return INT64_MIN;
    if (strcmp(lie, "large") == 0)
        return INT64_MAX;
    return SIZE;
}

static const char *t_export_description(void *handle)
{
    note("export_description");
    if (strcmp(lie, "description") == 0) {
        char *text = malloc(100000);
        memset(text, 'x', 99999);
        text[99999] = 0;
        return nbdkit_strdup_intern(text);
    }
    return nbdkit_printf_intern("described by %s", nbdkit_export_name());
}

static int t_block_size(void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
    BEGIN("block_size");
    *minimum = strcmp(lie, "block-size") == 0 ? 3 : 512;
    *preferred = 4096;
    *maximum = 0xffffffff;
    return 0;
}

static int t_can_write(void *handle) { BEGIN("can_write"); return 1; }
static int t_can_flush(void *handle) { BEGIN("can_flush"); return 1; }
static int t_is_rotational(void *handle) { BEGIN("is_rotational"); return 0; }
static int t_can_trim(void *handle) { BEGIN("can_trim"); return 1; }
static int t_can_zero(void *handle) { BEGIN("can_zero"); return 1; }
static int t_can_fast_zero(void *handle) { BEGIN("can_fast_zero"); return 1; }
static int t_can_extents(void *handle) { BEGIN("can_extents"); return 1; }
static int t_can_fua(void *handle) { BEGIN("can_fua"); return strcmp(lie, "fua") == 0 ? 99 : NBDKIT_FUA_NATIVE; }
static int t_can_multi_conn(void *handle) { BEGIN("can_multi_conn"); return 1; }
static int t_can_cache(void *handle) { BEGIN("can_cache"); return NBDKIT_CACHE_NATIVE; }

static int running = 0;

/* Notes calls that run at the same time as another one. */
static void enter(void)
{
    if (__atomic_add_fetch(&running, 1, __ATOMIC_SEQ_CST) > 1)
        note("two at once");
}

static void leave_call(void) { __atomic_sub_fetch(&running, 1, __ATOMIC_SEQ_CST); }

/* Waits until a second call runs. It never does unless the plugin's calls may run in parallel. */
static void wait_for_another(void)
{
    static int met = 0;
    while (!__atomic_load_n(&met, __ATOMIC_SEQ_CST)) {
        if (__atomic_load_n(&running, __ATOMIC_SEQ_CST) >= 2)
            __atomic_store_n(&met, 1, __ATOMIC_SEQ_CST);
        usleep(1000);
    }
}

static int read_disk(void *buffer, uint32_t count, uint64_t offset, uint32_t flags)
{
    note("pread %u %lu %u", count, (unsigned long)offset, flags);
    if (offset == PLACE && begin("pread") < 0)
        return -1;
    enter();
    if (strcmp(lie, "pairs") == 0 && offset >= PLACE)
        wait_for_another();
    if (strcmp(lie, "slow") == 0)
        usleep(300);
    leave_call();
    if (strcmp(lie, "errno") == 0) {
        errno = ENOMEM;
        return -1;
    }
    if (offset + count <= SIZE)
        memcpy(buffer, disk + offset, count);
    else
        memset(buffer, 'L', count);
    return 0;
}

static int write_disk(const void *buffer, uint32_t count, uint64_t offset, uint32_t flags)
{
    note("pwrite %u %lu %u", count, (unsigned long)offset, flags);
    if (offset == PLACE && begin("pwrite") < 0)
        return -1;
    if (offset + count <= SIZE)
        memcpy(disk + offset, buffer, count);
    return 0;
}

static int flush_disk(uint32_t flags) { note("flush %u", flags); return begin("flush"); }

static int trim_disk(uint32_t count, uint64_t offset, uint32_t flags)
{
    note("trim %u %lu %u", count, (unsigned long)offset, flags);
    return begin("trim");
}

static int zero_disk(uint32_t count, uint64_t offset, uint32_t flags)
{
    note("zero %u %lu %u", count, (unsigned long)offset, flags);
    if (begin("zero") < 0)
        return -1;
    if (strcmp(lie, "no-zero") == 0) {
        nbdkit_set_error(EOPNOTSUPP);
        return -1;
    }
    memset(disk + offset, 0, count);
    return 0;
}

#if NBDKIT_API_VERSION == 1
static int t_pread(void *h, void *buffer, uint32_t count, uint64_t offset) { return read_disk(buffer, count, offset, 0); }
static int t_pwrite(void *h, const void *buffer, uint32_t count, uint64_t offset) { return write_disk(buffer, count, offset, 0); }
static int t_flush(void *h) { return flush_disk(0); }
static int t_trim(void *h, uint32_t count, uint64_t offset) { return trim_disk(count, offset, 0); }
static int t_zero(void *h, uint32_t count, uint64_t offset, int may_trim) { return zero_disk(count, offset, may_trim); }
#else
static int t_pread(void *h, void *buffer, uint32_t count, uint64_t offset, uint32_t flags) { return read_disk(buffer, count, offset, flags); }
static int t_pwrite(void *h, const void *buffer, uint32_t count, uint64_t offset, uint32_t flags) { return write_disk(buffer, count, offset, flags); }
static int t_flush(void *h, uint32_t flags) { return flush_disk(flags); }
static int t_trim(void *h, uint32_t count, uint64_t offset, uint32_t flags) { return trim_disk(count, offset, flags); }
static int t_zero(void *h, uint32_t count, uint64_t offset, uint32_t flags) { return zero_disk(count, offset, flags); }

static int t_cache(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
    note("cache %u %lu %u", count, (unsigned long)offset, flags);
    return begin("cache");
}

static int t_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags, struct nbdkit_extents *extents)
{
    note("extents %u %lu %u", count, (unsigned long)offset, flags);
    if (begin("extents") < 0)
        return -1;
    if (strcmp(lie, "extents-none") == 0)
        return 0;
    if (strcmp(lie, "extents-back") == 0) {
        nbdkit_add_extent(extents, offset, 512, 0);
        return nbdkit_add_extent(extents, offset, 512, 3);
    }
    if (strcmp(lie, "extents-many") == 0) {
        for (uint32_t at = 0; at < count; at += 512)
            if (nbdkit_add_extent(extents, offset + at, 512, at % 1024 ? 0 : 3) < 0)
                return -1;
        return 0;
    }
    if (strcmp(lie, "extents-flags") == 0)
        return nbdkit_add_extent(extents, offset, UINT64_MAX - offset, 0xffffffff);
    /* The first half of the disk is data, the second a hole. */
    if (nbdkit_add_extent(extents, 0, SIZE / 2, 0) < 0)
        return -1;
    return nbdkit_add_extent(extents, SIZE / 2, SIZE / 2, NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO);
}
#endif

static struct nbdkit_plugin plugin = {
    .name = "testing",
    .longname = "a plugin for tests",
    .version = "1.2.3",
    .description = "Writes down what is called.",
    .config_help = "log=FILE    Where to write.",
#ifdef MAGIC
    .magic_config_key = "word",
#endif
    .load = t_load, .unload = t_unload, .dump_plugin = t_dump_plugin,
    .config = t_config, .config_complete = t_config_complete, .thread_model = t_thread_model,
    .get_ready = t_get_ready, .after_fork = t_after_fork, .cleanup = t_cleanup,
    .preconnect = t_preconnect, .list_exports = t_list_exports, .default_export = t_default_export,
    .open = t_open, .close = t_close, .export_description = t_export_description,
    .get_size = t_get_size, .block_size = t_block_size,
    .pread = t_pread, .pwrite = t_pwrite, .flush = t_flush, .trim = t_trim, .zero = t_zero,
#ifndef FEW
    .can_write = t_can_write, .can_flush = t_can_flush, .is_rotational = t_is_rotational,
    .can_trim = t_can_trim, .can_zero = t_can_zero, .can_fast_zero = t_can_fast_zero,
    .can_fua = t_can_fua, .can_multi_conn = t_can_multi_conn,
#if NBDKIT_API_VERSION > 1
    .can_extents = t_can_extents, .can_cache = t_can_cache, .cache = t_cache, .extents = t_extents,
#endif
#endif
    .errno_is_preserved = 1,
};

NBDKIT_REGISTER_PLUGIN(plugin)
