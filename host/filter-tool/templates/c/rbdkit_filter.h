/* Shorter names and small helpers over the generated bindings (bindings/mine.h). It is yours to change.
 *
 * Whatever a function returns in a structure is freed by the caller after the call, so its texts come from malloc.
 * What a function receives in a structure is the filter's own: it has to free it. The helpers here do both. */
#ifndef RBDKIT_FILTER_H
#define RBDKIT_FILTER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "mine.h"

/* One type for errors, whatever the interface, and their names. */
typedef rbdkit_filter_types_errno_t rbdkit_errno;
#define RBDKIT_EPERM RBDKIT_FILTER_TYPES_ERRNO_EPERM
#define RBDKIT_ENOENT RBDKIT_FILTER_TYPES_ERRNO_ENOENT
#define RBDKIT_EIO RBDKIT_FILTER_TYPES_ERRNO_EIO
#define RBDKIT_ENOMEM RBDKIT_FILTER_TYPES_ERRNO_ENOMEM
#define RBDKIT_EINVAL RBDKIT_FILTER_TYPES_ERRNO_EINVAL
#define RBDKIT_ENOSPC RBDKIT_FILTER_TYPES_ERRNO_ENOSPC
#define RBDKIT_EROFS RBDKIT_FILTER_TYPES_ERRNO_EROFS
#define RBDKIT_ENOTSUP RBDKIT_FILTER_TYPES_ERRNO_ENOTSUP
#define RBDKIT_EOVERFLOW RBDKIT_FILTER_TYPES_ERRNO_EOVERFLOW
#define RBDKIT_ESHUTDOWN RBDKIT_FILTER_TYPES_ERRNO_ESHUTDOWN
#define RBDKIT_ETIMEDOUT RBDKIT_FILTER_TYPES_ERRNO_ETIMEDOUT
#define RBDKIT_ENXIO RBDKIT_FILTER_TYPES_ERRNO_ENXIO

/* Flags of a request. */
typedef rbdkit_filter_types_command_flags_t rbdkit_flags;

/* The request's own buffer: a read fills it, and for a write it holds what the client wrote. */
enum { RBDKIT_PAYLOAD = 0 };

/* Memory for count things of size bytes, or a trap: a filter without memory cannot go on. */
static inline void *rbdkit_alloc(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size ? size : 1);
    if (!memory)
        __builtin_trap();
    return memory;
}

/* ---- Describing the filter. */

typedef exports_rbdkit_filter_filter_description_t rbdkit_description;
typedef rbdkit_filter_types_param_t rbdkit_param;

/* Fills in a description: an opaque, stateless, parallel filter without parameters. */
static inline void rbdkit_describe(rbdkit_description *about, const char *name, const char *version, const char *line,
                                   const char *help)
{
    memset(about, 0, sizeof *about);
    mine_string_dup(&about->name, name);
    mine_string_dup(&about->version, version);
    mine_string_dup(&about->longname, line);
    mine_string_dup(&about->help, help);
    about->thread_model = RBDKIT_FILTER_TYPES_THREAD_MODEL_PARALLEL;
    about->unexported = RBDKIT_FILTER_TYPES_UNEXPORTED_OPAQUE;
    about->recovery = RBDKIT_FILTER_TYPES_RECOVERY_STATELESS;
    about->state_version = 1;
}

/* Adds a parameter. default_value may be NULL. The result can be changed until the next one is added. */
static inline rbdkit_param *rbdkit_add_param(rbdkit_description *about, const char *name, const char *kind,
                                             const char *default_value, const char *help)
{
    size_t count = about->params.len;
    rbdkit_param *params = rbdkit_alloc(count + 1, sizeof *params);
    if (count)
        memcpy(params, about->params.ptr, count * sizeof *params);
    free(about->params.ptr);
    about->params.ptr = params;
    about->params.len = count + 1;
    rbdkit_param *param = &params[count];
    mine_string_dup(&param->name, name);
    mine_string_dup(&param->kind, kind);
    mine_string_dup(&param->help, help);
    if (default_value) {
        param->default_.is_some = true;
        mine_string_dup(&param->default_.val, default_value);
    }
    return param;
}

/* ---- Parameters. */

typedef mine_list_tuple2_string_string_t rbdkit_params;

/* Whether a text is this word. */
static inline bool rbdkit_is(const mine_string_t *text, const char *word)
{
    return text->len == strlen(word) && memcmp(text->ptr, word, text->len) == 0;
}

/* The value of a parameter, or NULL if it was not given. Of several values it is the last one. */
static inline const mine_string_t *rbdkit_value(const rbdkit_params *params, const char *name)
{
    const mine_string_t *value = NULL;
    for (size_t i = 0; i < params->len; i++)
        if (rbdkit_is(&params->ptr[i].f0, name))
            value = &params->ptr[i].f1;
    return value;
}

/* The number in a parameter of a kind that is a number (int, size, duration, percent, probability), at most
 * greatest. If the parameter was not given, *number stays as it is. False if the number is greater. */
static inline bool rbdkit_number(const rbdkit_params *params, const char *name, uint64_t greatest, uint64_t *number)
{
    const mine_string_t *text = rbdkit_value(params, name);
    uint64_t value = 0;
    if (!text)
        return true;
    for (size_t i = 0; i < text->len; i++) {
        unsigned digit = text->ptr[i] - '0';
        if (digit > 9 || value > (UINT64_MAX - digit) / 10)
            return false;
        value = value * 10 + digit;
    }
    if (text->len == 0 || value > greatest)
        return false;
    *number = value;
    return true;
}

/* Refuses the value of a parameter: `name=value: why`. Returns false, for `return`. */
static inline bool rbdkit_refuse(const rbdkit_params *params, const char *name, const char *why, mine_string_t *error)
{
    const mine_string_t *value = rbdkit_value(params, name);
    size_t name_length = strlen(name), value_length = value ? value->len : 0, why_length = strlen(why);
    uint8_t *at = rbdkit_alloc(name_length + 1 + value_length + 2 + why_length, 1);
    error->ptr = at;
    memcpy(at, name, name_length);
    at += name_length;
    if (value) {
        *at++ = '=';
        memcpy(at, value->ptr, value_length);
        at += value_length;
    }
    *at++ = ':';
    *at++ = ' ';
    memcpy(at, why, why_length);
    error->len = at + why_length - error->ptr;
    return false;
}

/* ---- Log lines. */

/* A text for a call of the host. It is not copied, and must not be freed. */
static inline mine_string_t rbdkit_text(const char *text)
{
    return (mine_string_t){ .ptr = (uint8_t *)text, .len = strlen(text) };
}

static inline void rbdkit_error(const char *line)
{
    mine_string_t text = rbdkit_text(line);
    rbdkit_filter_log_error(&text);
}

static inline void rbdkit_warn(const char *line)
{
    mine_string_t text = rbdkit_text(line);
    rbdkit_filter_log_warn(&text);
}

static inline void rbdkit_info(const char *line)
{
    mine_string_t text = rbdkit_text(line);
    rbdkit_filter_log_info(&text);
}

static inline void rbdkit_debug(const char *line)
{
    mine_string_t text = rbdkit_text(line);
    rbdkit_filter_log_debug(&text);
}

/* ---- The bytes of a request. */

/* XORs a range of a buffer with a key that is repeated. It is done in the host. */
static inline void rbdkit_xor(uint32_t buffer, uint32_t at, uint32_t length, const uint8_t *key, size_t key_length,
                              uint64_t skip)
{
    mine_list_u8_t list = { .ptr = (uint8_t *)key, .len = key_length };
    rbdkit_filter_buffer_xor(buffer, at, length, &list, skip);
}

/* Calls change with one piece of a buffer after another, and puts each back. Each piece is copied into the filter's
 * memory, so what the host can do is cheaper there. */
static inline void rbdkit_modify(uint32_t buffer, uint32_t at, uint32_t length,
                                 void (*change)(uint8_t *bytes, size_t length, uint32_t at, void *context),
                                 void *context)
{
    const uint32_t piece = 64 * 1024;
    for (uint32_t done = 0; done < length; done += piece) {
        uint32_t now = length - done < piece ? length - done : piece;
        mine_list_u8_t bytes;
        rbdkit_filter_buffer_read(buffer, at + done, now, &bytes);
        change(bytes.ptr, bytes.len, at + done, context);
        rbdkit_filter_buffer_write(buffer, at + done, &bytes);
        mine_list_u8_free(&bytes);
    }
}

#endif
