/* The functions of nbdkit's interface that take a variable number of arguments. They make one string of
 * them, and Rust does the rest. Each leaves errno as it was, because plugins rely on it after an error. */

#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* Defined in Rust. */
extern void rbdkit_foreign_error(const char *text);
extern void rbdkit_foreign_debug(const char *text);
extern int rbdkit_foreign_is_verbose(void);
extern const char *nbdkit_strdup_intern(const char *text);

static void pass_on(void (*take)(const char *), const char *format, va_list args)
{
    int before = errno;
    char *text;
    if (vasprintf(&text, format, args) >= 0) {
        take(text);
        free(text);
    } else {
        take(format);
    }
    errno = before;
}

void nbdkit_verror(const char *format, va_list args)
{
    pass_on(rbdkit_foreign_error, format, args);
}

void nbdkit_error(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    nbdkit_verror(format, args);
    va_end(args);
}

void nbdkit_vdebug(const char *format, va_list args)
{
    if (rbdkit_foreign_is_verbose())
        pass_on(rbdkit_foreign_debug, format, args);
}

void nbdkit_debug(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    nbdkit_vdebug(format, args);
    va_end(args);
}

const char *nbdkit_vprintf_intern(const char *format, va_list args)
{
    char *text;
    if (vasprintf(&text, format, args) < 0) {
        nbdkit_error("vasprintf: %m");
        return NULL;
    }
    const char *kept = nbdkit_strdup_intern(text);
    free(text);
    return kept;
}

const char *nbdkit_printf_intern(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const char *kept = nbdkit_vprintf_intern(format, args);
    va_end(args);
    return kept;
}

/* Rust refers to this, so that the linker takes this file and with it the functions above. */
void rbdkit_foreign_keep(void)
{
}
