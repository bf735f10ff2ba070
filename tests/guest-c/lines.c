// A filter without a library, built with debugging information: a read from 512 on traps in a function that the compiler
// puts into its caller.

typedef unsigned int u32;
typedef unsigned long long u64;
__attribute__((import_module("rbdkit:filter/next@0.1.0"), import_name("pread"))) void next_pread(
    u64 offset, u32 length, u32 buf, u32 at, void *answer);
static struct {
    const char *name;
    u32 name_length;
    u32 texts[6];
    unsigned char model, unexported, recovery, unused;
    u32 state_version;
    void *params;
    u32 params_length;
} description = {"lines", 5, {0}, 3, 1, 0, 0, 0, 0, 0};

static unsigned char ok[64], answer[64], heap[1 << 16];
static u32 top;

__attribute__((export_name("cabi_realloc"))) void *allocate(void *old, u32 old_size, u32 align, u32 size)
{
    u32 at = (top + 7) & ~7u;
    top = at + size;
    return heap + at;
}

__attribute__((export_name("rbdkit:filter/filter@0.1.0#describe"))) void *describe(void)
{
    return &description;
}

__attribute__((export_name("rbdkit:filter/filter@0.1.0#configure"))) void *configure(void *params, u32 count)
{
    return ok;
}

static inline __attribute__((always_inline)) void inner(u64 offset)
{
    if (offset >= 512) __builtin_trap();
}

__attribute__((noinline)) void checksum(u64 offset)
{
    inner(offset);
    answer[1]++;
}

__attribute__((export_name("rbdkit:filter/reads@0.1.0#pread"))) void *pread_(u64 offset, u32 length, u32 flags)
{
    checksum(offset);
    next_pread(offset, length, 0, 0, answer);
    return answer;
}
