// C++ over the generated bindings (bindings/mine.h): texts, parameters, errors and bytes. It is yours to change.
//
// Exceptions are off. An error is a value: `Result`, or an `Errno`.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <expected>
#include <initializer_list>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

extern "C" {
#include "mine.h"
}

namespace rbdkit {

// Errors, named after their C constants.
enum class Errno : rbdkit_filter_types_errno_t {
    eperm = RBDKIT_FILTER_TYPES_ERRNO_EPERM,
    enoent = RBDKIT_FILTER_TYPES_ERRNO_ENOENT,
    eio = RBDKIT_FILTER_TYPES_ERRNO_EIO,
    enomem = RBDKIT_FILTER_TYPES_ERRNO_ENOMEM,
    einval = RBDKIT_FILTER_TYPES_ERRNO_EINVAL,
    enospc = RBDKIT_FILTER_TYPES_ERRNO_ENOSPC,
    erofs = RBDKIT_FILTER_TYPES_ERRNO_EROFS,
    enotsup = RBDKIT_FILTER_TYPES_ERRNO_ENOTSUP,
    eoverflow = RBDKIT_FILTER_TYPES_ERRNO_EOVERFLOW,
    eshutdown = RBDKIT_FILTER_TYPES_ERRNO_ESHUTDOWN,
    etimedout = RBDKIT_FILTER_TYPES_ERRNO_ETIMEDOUT,
    enxio = RBDKIT_FILTER_TYPES_ERRNO_ENXIO,
};

// What an operation returns.
using Result = std::expected<void, Errno>;

using Flags = rbdkit_filter_types_command_flags_t;

// Turns a result into what an exported function returns.
inline bool answer(Result result, rbdkit_filter_types_errno_t *error)
{
    if (!result)
        *error = static_cast<rbdkit_filter_types_errno_t>(result.error());
    return result.has_value();
}

inline std::string_view view(const mine_string_t &text)
{
    return {reinterpret_cast<const char *>(text.ptr), text.len};
}

// A text that the caller of an exported function frees.
inline mine_string_t give(std::string_view text)
{
    auto *copy = static_cast<std::uint8_t *>(std::malloc(text.size() + 1));
    if (!copy)
        std::abort();
    std::memcpy(copy, text.data(), text.size());
    return {copy, text.size()};
}

// A text for a call of the host, which does not keep it.
inline mine_string_t lend(std::string_view text)
{
    return {reinterpret_cast<std::uint8_t *>(const_cast<char *>(text.data())), text.size()};
}

// ---- Describing the filter.

struct Param {
    std::string_view name;
    std::string_view kind;
    std::string_view help;
    std::optional<std::string_view> default_value = {};
    bool required = false;
    bool repeat = false;
};

struct Description {
    std::string_view name;
    std::string_view version;
    std::string_view longname;
    std::string_view help;
    std::vector<Param> params = {};
    rbdkit_filter_types_thread_model_t thread_model = RBDKIT_FILTER_TYPES_THREAD_MODEL_PARALLEL;
    rbdkit_filter_types_unexported_t unexported = RBDKIT_FILTER_TYPES_UNEXPORTED_OPAQUE;
    rbdkit_filter_types_recovery_t recovery = RBDKIT_FILTER_TYPES_RECOVERY_STATELESS;
    std::uint32_t state_version = 1;
};

// Puts a description where the host takes it.
inline void describe(const Description &about, exports_rbdkit_filter_filter_description_t *result)
{
    *result = {};
    result->name = give(about.name);
    result->version = give(about.version);
    result->longname = give(about.longname);
    result->help = give(about.help);
    result->thread_model = about.thread_model;
    result->unexported = about.unexported;
    result->recovery = about.recovery;
    result->state_version = about.state_version;
    if (about.params.empty())
        return;
    auto *params = static_cast<rbdkit_filter_types_param_t *>(std::calloc(about.params.size(), sizeof *result->params.ptr));
    if (!params)
        std::abort();
    result->params = {params, about.params.size()};
    for (const Param &param : about.params) {
        params->name = give(param.name);
        params->kind = give(param.kind);
        params->help = give(param.help);
        params->required = param.required;
        params->repeat = param.repeat;
        if (param.default_value)
            params->default_ = {true, give(*param.default_value)};
        params++;
    }
}

// ---- Parameters.

// The parameters that were given. They are freed with this.
class Params {
public:
    explicit Params(mine_list_tuple2_string_string_t *given) : given(given) {}
    ~Params() { mine_list_tuple2_string_string_free(given); }
    Params(const Params &) = delete;
    Params &operator=(const Params &) = delete;

    // The value, or nothing if it was not given. Of several values it is the last one.
    std::optional<std::string_view> text(std::string_view name) const
    {
        std::optional<std::string_view> value;
        for (const auto &param : std::span(given->ptr, given->len))
            if (view(param.f0) == name)
                value = view(param.f1);
        return value;
    }

    // A number of at most `Number`'s greatest value, or `default_value` if it was not given. The error is one line for
    // the user.
    template <typename Number>
    std::expected<Number, std::string> number(std::string_view name, Number default_value) const
    {
        auto value = text(name);
        if (!value)
            return default_value;
        constexpr std::uint64_t greatest = std::numeric_limits<Number>::max();
        std::uint64_t number = 0;
        bool good = !value->empty();
        for (char digit : *value) {
            std::uint64_t next = static_cast<std::uint64_t>(digit - '0');
            good = good && next <= 9 && number <= (greatest - next) / 10;
            if (good)
                number = number * 10 + next;
        }
        if (good)
            return static_cast<Number>(number);
        return std::unexpected(std::string(name) + "=" + std::string(*value) + ": is not from 0 to " +
                               std::to_string(greatest));
    }

private:
    mine_list_tuple2_string_string_t *given;
};

// ---- Log lines.

namespace log {
inline void error(std::string_view line)
{
    auto text = lend(line);
    rbdkit_filter_log_error(&text);
}
inline void warn(std::string_view line)
{
    auto text = lend(line);
    rbdkit_filter_log_warn(&text);
}
inline void info(std::string_view line)
{
    auto text = lend(line);
    rbdkit_filter_log_info(&text);
}
inline void debug(std::string_view line)
{
    auto text = lend(line);
    rbdkit_filter_log_debug(&text);
}
} // namespace log

// ---- The layer below, and the bytes of a request.

// The request's own buffer: a read fills it, and for a write it holds what the client wrote.
inline constexpr std::uint32_t payload = 0;

inline Result result(bool good, rbdkit_filter_types_errno_t error)
{
    return good ? Result{} : Result(std::unexpect, static_cast<Errno>(error));
}

namespace next {
inline Result pread(std::uint64_t offset, std::uint32_t length, std::uint32_t buffer = payload, std::uint32_t at = 0)
{
    rbdkit_filter_types_errno_t error = 0;
    bool good = rbdkit_filter_next_pread(offset, length, buffer, at, &error);
    return result(good, error);
}
inline Result pwrite(std::uint64_t offset, std::uint32_t length, Flags flags, std::uint32_t buffer = payload,
                     std::uint32_t at = 0)
{
    rbdkit_filter_types_errno_t error = 0;
    bool good = rbdkit_filter_next_pwrite(offset, length, buffer, at, flags, &error);
    return result(good, error);
}
} // namespace next

// XORs a range of a buffer with a key that is repeated. It is done in the host.
inline void exclusive_or(std::uint32_t at, std::uint32_t length, std::span<const std::uint8_t> key,
                         std::uint64_t skip = 0, std::uint32_t buffer = payload)
{
    mine_list_u8_t list{const_cast<std::uint8_t *>(key.data()), key.size()};
    rbdkit_filter_buffer_xor(buffer, at, length, &list, skip);
}

// Calls `change` with one piece of a buffer after another (a span, and its position), and puts each back. Each piece is
// copied into the filter's memory, so what the host can do is cheaper there.
template <typename Change>
void modify(std::uint32_t at, std::uint32_t length, Change change, std::uint32_t buffer = payload)
{
    constexpr std::uint32_t piece = 64 * 1024;
    for (std::uint32_t done = 0; done < length; done += piece) {
        std::uint32_t now = length - done < piece ? length - done : piece;
        mine_list_u8_t bytes;
        rbdkit_filter_buffer_read(buffer, at + done, now, &bytes);
        change(std::span(bytes.ptr, bytes.len), at + done);
        rbdkit_filter_buffer_write(buffer, at + done, &bytes);
        mine_list_u8_free(&bytes);
    }
}

} // namespace rbdkit
