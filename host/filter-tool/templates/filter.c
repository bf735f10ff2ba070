/* @NAME@: XORs every byte with a key. This example changes data in both directions.
 *
 * The functions are those of wit/deps/rbdkit-filter/filter.wit; `rbdkit-filter build` makes mine.h and mine.c from it, in target/.
 * Output on stderr goes into the server's log. There are no files, no network and no environment. */
#include <stdlib.h>
#include "mine.h"

/* Data goes through the guest in pieces of this size, so that no request needs much memory. */
enum { PIECE = 64 * 1024, PAYLOAD = 0 };

static uint8_t key = 0xff;

void exports_rbdkit_filter_filter_describe(exports_rbdkit_filter_filter_description_t *ret)
{
    /* Everything in the answer is freed after the call: it has to come from malloc, as mine_string_dup's copies do. */
    mine_string_dup(&ret->name, "@NAME@");
    mine_string_dup(&ret->version, "0.1.0");
    mine_string_dup(&ret->longname, "exclusive-or with a key");
    mine_string_dup(&ret->help, "Changes every byte on its way in and out.");
    ret->thread_model = RBDKIT_FILTER_TYPES_THREAD_MODEL_PARALLEL;
    ret->unexported = RBDKIT_FILTER_TYPES_UNEXPORTED_OPAQUE;
    ret->recovery = RBDKIT_FILTER_TYPES_RECOVERY_STATELESS;
    ret->state_version = 1;
    ret->params.ptr = calloc(1, sizeof *ret->params.ptr);
    ret->params.len = 1;
    mine_string_dup(&ret->params.ptr[0].name, "key");
    mine_string_dup(&ret->params.ptr[0].kind, "int");
    mine_string_dup(&ret->params.ptr[0].help, "The key, 0 to 255 (default 255).");
}

bool exports_rbdkit_filter_filter_configure(mine_list_tuple2_string_string_t *params, mine_string_t *err)
{
    for (size_t i = 0; i < params->len; i++) {
        unsigned value = 0;
        const mine_string_t *text = &params->ptr[i].f1;
        for (size_t j = 0; j < text->len && value <= 255; j++)
            value = value * 10 + (text->ptr[j] - '0');
        if (value > 255) {
            mine_string_dup(err, "key: is not a number from 0 to 255");
            return false;
        }
        key = value;
    }
    return true;
}

static void change(uint32_t length)
{
    for (uint32_t at = 0; at < length; at += PIECE) {
        mine_list_u8_t bytes;
        rbdkit_filter_buffer_read(PAYLOAD, at, length - at < PIECE ? length - at : PIECE, &bytes);
        for (size_t i = 0; i < bytes.len; i++)
            bytes.ptr[i] ^= key;
        rbdkit_filter_buffer_write(PAYLOAD, at, &bytes);
        mine_list_u8_free(&bytes);
    }
}

bool exports_rbdkit_filter_reads_pread(uint64_t offset, uint32_t length,
                                       exports_rbdkit_filter_reads_command_flags_t flags,
                                       exports_rbdkit_filter_reads_errno_t *err)
{
    (void)flags;
    if (!rbdkit_filter_next_pread(offset, length, PAYLOAD, 0, err))
        return false;
    change(length);
    return true;
}

bool exports_rbdkit_filter_writes_pwrite(uint64_t offset, uint32_t length,
                                         exports_rbdkit_filter_writes_command_flags_t flags,
                                         exports_rbdkit_filter_writes_errno_t *err)
{
    change(length);
    return rbdkit_filter_next_pwrite(offset, length, PAYLOAD, 0, flags, err);
}
