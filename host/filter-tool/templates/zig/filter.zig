//! @NAME@: XORs every byte with a number, in both directions.
//!
//! The functions are those of wit/deps/rbdkit-filter/filter.wit. `rbdkit-filter build` makes bindings/mine.zig from it,
//! and rbdkit.zig has shorter names. A panic fails the request, and its text goes into the server's log. There are no
//! files, no network and no environment.

const rbdkit = @import("rbdkit.zig");
const c = rbdkit.c;

var key: u8 = 255;

export fn exports_rbdkit_filter_filter_describe(result: *c.exports_rbdkit_filter_filter_description_t) void {
    const about: rbdkit.Description = .{
        .name = "@NAME@",
        .version = "0.1.0",
        .longname = "exclusive-or with a number",
        .help = "Changes every byte on its way in and out.",
        .params = &.{.{ .name = "key", .kind = "int", .help = "The number, 0 to 255.", .default = "255" }},
    };
    about.put(result);
}

export fn exports_rbdkit_filter_filter_configure(
    given: *c.mine_list_tuple2_string_string_t,
    err: *c.mine_string_t,
) bool {
    const params: rbdkit.Params = .{ .given = given };
    defer params.deinit();
    key = params.number(u8, "key", key) catch {
        err.* = params.refuse("key", "is not from 0 to 255");
        return false;
    };
    return true;
}

export fn exports_rbdkit_filter_reads_pread(offset: u64, length: u32, _: rbdkit.Flags, err: *rbdkit.Errno) bool {
    // The layer below fills the request's buffer, which stays in the host.
    if (!c.rbdkit_filter_next_pread(offset, length, rbdkit.payload, 0, err)) return false;
    rbdkit.xor(rbdkit.payload, 0, length, &.{key}, 0);
    return true;
}

export fn exports_rbdkit_filter_writes_pwrite(
    offset: u64,
    length: u32,
    flags: rbdkit.Flags,
    err: *rbdkit.Errno,
) bool {
    rbdkit.xor(rbdkit.payload, 0, length, &.{key}, 0);
    return c.rbdkit_filter_next_pwrite(offset, length, rbdkit.payload, 0, flags, err);
}
