/* @NAME@: XORs every byte with a number, in both directions.
 *
 * The functions are those of wit/deps/rbdkit-filter/filter.wit. `rbdkit-filter build` makes bindings/mine.h from it,
 * and rbdkit_filter.h has shorter names. What the filter prints on standard error goes into the server's log. There
 * are no files, no network and no environment. */
#include "rbdkit_filter.h"

static uint8_t key = 255;

void exports_rbdkit_filter_filter_describe(rbdkit_description *about)
{
    rbdkit_describe(about, "@NAME@", "0.1.0", "exclusive-or with a number", "Changes every byte on its way in and out.");
    rbdkit_add_param(about, "key", "int", "255", "The number, 0 to 255.");
}

bool exports_rbdkit_filter_filter_configure(rbdkit_params *params, mine_string_t *error)
{
    uint64_t number = key;
    bool ok = rbdkit_number(params, "key", 255, &number) || rbdkit_refuse(params, "key", "is not from 0 to 255", error);
    key = number;
    mine_list_tuple2_string_string_free(params);
    return ok;
}

bool exports_rbdkit_filter_reads_pread(uint64_t offset, uint32_t length, rbdkit_flags flags, rbdkit_errno *error)
{
    (void)flags;
    /* The layer below fills the request's buffer, which stays in the host. */
    if (!rbdkit_filter_next_pread(offset, length, RBDKIT_PAYLOAD, 0, error))
        return false;
    rbdkit_xor(RBDKIT_PAYLOAD, 0, length, &key, 1, 0);
    return true;
}

bool exports_rbdkit_filter_writes_pwrite(uint64_t offset, uint32_t length, rbdkit_flags flags, rbdkit_errno *error)
{
    rbdkit_xor(RBDKIT_PAYLOAD, 0, length, &key, 1, 0);
    return rbdkit_filter_next_pwrite(offset, length, RBDKIT_PAYLOAD, 0, flags, error);
}
