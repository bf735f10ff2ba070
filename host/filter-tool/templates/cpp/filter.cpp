// @NAME@: XORs every byte with a number, in both directions.
//
// The functions are those of wit/deps/rbdkit-filter/filter.wit. `rbdkit-filter build` makes bindings/mine.h from it,
// and rbdkit_filter.hpp puts C++ over that. What the filter prints on standard error goes into the server's log. There
// are no files, no network and no environment.
#include "rbdkit_filter.hpp"

#include <array>

namespace {

std::array<std::uint8_t, 1> key = {255};

rbdkit::Result pread(std::uint64_t offset, std::uint32_t length)
{
    // The layer below fills the request's buffer, which stays in the host.
    auto result = rbdkit::next::pread(offset, length);
    if (result)
        rbdkit::exclusive_or(0, length, key);
    return result;
}

rbdkit::Result pwrite(std::uint64_t offset, std::uint32_t length, rbdkit::Flags flags)
{
    rbdkit::exclusive_or(0, length, key);
    return rbdkit::next::pwrite(offset, length, flags);
}

} // namespace

// What the server calls. Each function is in C, as the bindings declare it.

void exports_rbdkit_filter_filter_describe(exports_rbdkit_filter_filter_description_t *result)
{
    rbdkit::describe(
        {
            .name = "@NAME@",
            .version = "0.1.0",
            .longname = "exclusive-or with a number",
            .help = "Changes every byte on its way in and out.",
            .params = {{.name = "key", .kind = "int", .help = "The number, 0 to 255.", .default_value = "255"}},
        },
        result);
}

bool exports_rbdkit_filter_filter_configure(mine_list_tuple2_string_string_t *given, mine_string_t *error)
{
    rbdkit::Params params(given);
    auto number = params.number<std::uint8_t>("key", key[0]);
    if (number)
        key[0] = *number;
    else
        *error = rbdkit::give(number.error());
    return number.has_value();
}

bool exports_rbdkit_filter_reads_pread(std::uint64_t offset, std::uint32_t length, rbdkit::Flags,
                                       rbdkit_filter_types_errno_t *error)
{
    return rbdkit::answer(pread(offset, length), error);
}

bool exports_rbdkit_filter_writes_pwrite(std::uint64_t offset, std::uint32_t length, rbdkit::Flags flags,
                                         rbdkit_filter_types_errno_t *error)
{
    return rbdkit::answer(pwrite(offset, length, flags), error);
}
