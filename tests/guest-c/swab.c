/* A filter in C: swaps the bytes of each word of 16, 32 or 64 bits, as a disk that was wired in reverse needs it.
 *
 *   rbdkit --wasm-filter swab.wasm file disk.img swab-bits=32
 *
 * It changes the data, so it asks for the data, in pieces that fit into a small guest. The host settles what the
 * filter does not export: zeroes become writes through it, trim and extents are withdrawn. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "swab.h"

/* How many bytes of a request are in the guest at once: a multiple of the longest word. */
#define PIECE 65536u

/* The bytes of a word. configure sets them once, so all instances of the parallel filter have the same. */
static uint32_t word = 2;

static void set_choices(swab_list_string_t *list, size_t count, const char *const *texts)
{
    list->ptr = malloc(count * sizeof *list->ptr);
    list->len = count;
    for (size_t i = 0; i < count; i++)
        swab_string_dup(&list->ptr[i], texts[i]);
}

void exports_rbdkit_filter_filter_describe(exports_rbdkit_filter_filter_description_t *ret)
{
    static const char *const widths[] = { "8", "16", "32", "64" };
    rbdkit_filter_types_param_t *bits = calloc(1, sizeof *bits);

    /* The result is freed after the call, so every string has to be a copy. */
    swab_string_dup(&bits->name, "swab-bits");
    swab_string_dup(&bits->kind, "choice");
    set_choices(&bits->choices, 4, widths);
    bits->default_.is_some = true;
    swab_string_dup(&bits->default_.val, "16");
    swab_string_dup(&bits->help, "How long a word is.");

    memset(ret, 0, sizeof *ret);
    swab_string_dup(&ret->name, "swab");
    swab_string_dup(&ret->version, "0.1.0");
    swab_string_dup(&ret->longname, "swaps the bytes of words");
    swab_string_dup(&ret->help, "");
    ret->thread_model = RBDKIT_FILTER_TYPES_THREAD_MODEL_PARALLEL;
    ret->unexported = RBDKIT_FILTER_TYPES_UNEXPORTED_OPAQUE;
    ret->recovery = RBDKIT_FILTER_TYPES_RECOVERY_STATELESS;
    ret->params.ptr = bits;
    ret->params.len = 1;
}

static bool is(const swab_string_t *string, const char *text)
{
    return string->len == strlen(text) && memcmp(string->ptr, text, string->len) == 0;
}

bool exports_rbdkit_filter_filter_configure(swab_list_tuple2_string_string_t *params, swab_string_t *err)
{
    bool ok = true;

    for (size_t i = 0; i < params->len; i++) {
        const swab_string_t *value = &params->ptr[i].f1;

        if (!is(&params->ptr[i].f0, "swab-bits"))
            continue;
        if (is(value, "8"))
            word = 1;
        else if (is(value, "16"))
            word = 2;
        else if (is(value, "32"))
            word = 4;
        else if (is(value, "64"))
            word = 8;
        else
            ok = false;
    }
    swab_list_tuple2_string_string_free(params);
    if (!ok)
        swab_string_dup(err, "swab-bits: must be 8, 16, 32 or 64");
    return ok;
}

/* The end of the disk is not served if it is shorter than a word. */
bool exports_rbdkit_filter_info_get_size(uint64_t *ret, exports_rbdkit_filter_info_errno_t *err)
{
    if (!rbdkit_filter_next_get_size(ret, err))
        return false;
    *ret &= ~(uint64_t)(word - 1);
    return true;
}

/* The host lets only whole words through. */
bool exports_rbdkit_filter_info_block_size(exports_rbdkit_filter_info_block_sizes_t *ret,
                                           exports_rbdkit_filter_info_errno_t *err)
{
    if (!rbdkit_filter_next_block_size(ret, err)) {
        ret->minimum = word;
        ret->preferred = 4096;
        ret->maximum = 0xffffffff;
    } else if (ret->minimum < word) {
        ret->minimum = word;
    }
    return true;
}

bool exports_rbdkit_filter_info_export_description(swab_string_t *ret)
{
    return rbdkit_filter_next_export_description(ret);
}

static void swap_words(uint8_t *bytes, size_t length)
{
    for (size_t at = 0; at + word <= length; at += word)
        for (uint32_t i = 0; i < word / 2; i++) {
            uint8_t byte = bytes[at + i];

            bytes[at + i] = bytes[at + word - 1 - i];
            bytes[at + word - 1 - i] = byte;
        }
}

/* Swaps the request's data, in place. */
static void swap_payload(uint32_t length)
{
    for (uint32_t at = 0; word > 1 && at < length; at += PIECE) {
        uint32_t piece = length - at < PIECE ? length - at : PIECE;
        swab_list_u8_t bytes;

        /* Zeroes stay zeroes, so they need not be fetched. */
        if (rbdkit_filter_buffer_is_zero(0, at, piece))
            continue;
        rbdkit_filter_buffer_read(0, at, piece, &bytes);
        swap_words(bytes.ptr, bytes.len);
        rbdkit_filter_buffer_write(0, at, &bytes);
        swab_list_u8_free(&bytes);
    }
}

bool exports_rbdkit_filter_reads_pread(uint64_t offset, uint32_t length, exports_rbdkit_filter_reads_command_flags_t flags,
                                       exports_rbdkit_filter_reads_errno_t *err)
{
    (void)flags;
    if (!rbdkit_filter_next_pread(offset, length, 0, 0, err))
        return false;
    swap_payload(length);
    return true;
}

bool exports_rbdkit_filter_writes_pwrite(uint64_t offset, uint32_t length,
                                         exports_rbdkit_filter_writes_command_flags_t flags,
                                         exports_rbdkit_filter_writes_errno_t *err)
{
    swap_payload(length);
    return rbdkit_filter_next_pwrite(offset, length, 0, 0, flags, err);
}
