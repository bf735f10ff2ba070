//! Zig over the generated bindings (bindings/mine.zig): texts, parameters, errors and bytes. It is yours to change.

const std = @import("std");

/// The bindings themselves: everything that is not here.
pub const c = @import("mine");

/// What a structure that is given to the host holds has to come from here: the host's side frees it.
pub const allocator = std.heap.c_allocator;

/// An errno of the contract.
pub const Errno = c.rbdkit_filter_types_errno_t;
pub const Flags = c.rbdkit_filter_types_command_flags_t;

pub const EPERM = c.RBDKIT_FILTER_TYPES_ERRNO_EPERM;
pub const ENOENT = c.RBDKIT_FILTER_TYPES_ERRNO_ENOENT;
pub const EIO = c.RBDKIT_FILTER_TYPES_ERRNO_EIO;
pub const ENOMEM = c.RBDKIT_FILTER_TYPES_ERRNO_ENOMEM;
pub const EINVAL = c.RBDKIT_FILTER_TYPES_ERRNO_EINVAL;
pub const ENOSPC = c.RBDKIT_FILTER_TYPES_ERRNO_ENOSPC;
pub const EROFS = c.RBDKIT_FILTER_TYPES_ERRNO_EROFS;
pub const ENOTSUP = c.RBDKIT_FILTER_TYPES_ERRNO_ENOTSUP;

/// The request's own buffer: a read fills it, and for a write it holds what the client wrote.
pub const payload: u32 = 0;

/// The text in a structure of the bindings.
pub fn view(text: c.mine_string_t) []const u8 {
    return if (text.len == 0) "" else text.ptr[0..text.len];
}

/// A copy of a text that the host's side frees.
pub fn give(text: []const u8) c.mine_string_t {
    const copy = allocator.dupe(u8, text) catch @panic("out of memory");
    return .{ .ptr = copy.ptr, .len = copy.len };
}

/// A text for a call of the host, which does not keep it.
fn lend(text: []const u8) c.mine_string_t {
    return .{ .ptr = @constCast(text.ptr), .len = text.len };
}

/// A parameter in a description.
pub const Param = struct {
    name: []const u8,
    kind: []const u8,
    help: []const u8,
    default: ?[]const u8 = null,
    required: bool = false,
    repeat: bool = false,
};

/// A description: an opaque, stateless, parallel filter, unless the fields say otherwise.
pub const Description = struct {
    name: []const u8,
    version: []const u8,
    longname: []const u8,
    help: []const u8,
    params: []const Param = &.{},
    thread_model: c.rbdkit_filter_types_thread_model_t = c.RBDKIT_FILTER_TYPES_THREAD_MODEL_PARALLEL,
    unexported: c.rbdkit_filter_types_unexported_t = c.RBDKIT_FILTER_TYPES_UNEXPORTED_OPAQUE,
    recovery: c.rbdkit_filter_types_recovery_t = c.RBDKIT_FILTER_TYPES_RECOVERY_STATELESS,
    state_version: u32 = 1,

    /// Puts the description where the host takes it.
    pub fn put(about: Description, result: *c.exports_rbdkit_filter_filter_description_t) void {
        result.* = std.mem.zeroes(c.exports_rbdkit_filter_filter_description_t);
        result.name = give(about.name);
        result.version = give(about.version);
        result.longname = give(about.longname);
        result.help = give(about.help);
        result.thread_model = about.thread_model;
        result.unexported = about.unexported;
        result.recovery = about.recovery;
        result.state_version = about.state_version;
        const params = allocator.alloc(c.rbdkit_filter_types_param_t, about.params.len) catch @panic("out of memory");
        for (params, about.params) |*to, param| {
            to.* = std.mem.zeroes(c.rbdkit_filter_types_param_t);
            to.name = give(param.name);
            to.kind = give(param.kind);
            to.help = give(param.help);
            to.required = param.required;
            to.repeat = param.repeat;
            if (param.default) |default| to.default_ = .{ .is_some = true, .val = give(default) };
        }
        if (params.len > 0) result.params = .{ .ptr = params.ptr, .len = params.len };
    }
};

/// The parameters that were given.
pub const Params = struct {
    given: *c.mine_list_tuple2_string_string_t,

    /// Frees them.
    pub fn deinit(params: Params) void {
        c.mine_list_tuple2_string_string_free(params.given);
    }

    /// The value, or null if it was not given. Of several values it is the last one.
    pub fn text(params: Params, name: []const u8) ?[]const u8 {
        var value: ?[]const u8 = null;
        for (0..params.given.len) |i| {
            const param = params.given.ptr[i];
            if (std.mem.eql(u8, view(param.f0), name)) value = view(param.f1);
        }
        return value;
    }

    /// A number of a type like u8 or u64, or `default` if it was not given. The error is that the number does not fit.
    pub fn number(params: Params, comptime Number: type, name: []const u8, default: Number) !Number {
        return std.fmt.parseInt(Number, params.text(name) orelse return default, 10);
    }

    /// The line for the user about a wrong value: `name=value: why`.
    pub fn refuse(params: Params, name: []const u8, why: []const u8) c.mine_string_t {
        const line = std.fmt.allocPrint(allocator, "{s}={s}: {s}", .{ name, params.text(name) orelse "", why });
        const bytes = line catch @panic("out of memory");
        return .{ .ptr = bytes.ptr, .len = bytes.len };
    }
};

/// Lines in the server's log.
pub const log = struct {
    pub fn err(line: []const u8) void {
        var text = lend(line);
        c.rbdkit_filter_log_error(&text);
    }
    pub fn warn(line: []const u8) void {
        var text = lend(line);
        c.rbdkit_filter_log_warn(&text);
    }
    pub fn info(line: []const u8) void {
        var text = lend(line);
        c.rbdkit_filter_log_info(&text);
    }
    pub fn debug(line: []const u8) void {
        var text = lend(line);
        c.rbdkit_filter_log_debug(&text);
    }
};

/// XORs a range of a buffer with a key that is repeated. It is done in the host.
pub fn xor(buffer: u32, at: u32, length: u32, key: []const u8, skip: u64) void {
    var list: c.mine_list_u8_t = .{ .ptr = @constCast(key.ptr), .len = key.len };
    c.rbdkit_filter_buffer_xor(buffer, at, length, &list, skip);
}

/// Calls `change` with one piece of a buffer after another, and puts each back. Each piece is copied into the filter's
/// memory, so what the host can do is cheaper there.
pub fn modify(buffer: u32, at: u32, length: u32, context: anytype, change: fn (@TypeOf(context), []u8, u32) void) void {
    const piece: u32 = 64 * 1024;
    var done: u32 = 0;
    while (done < length) : (done += piece) {
        const now = @min(piece, length - done);
        var bytes: c.mine_list_u8_t = undefined;
        c.rbdkit_filter_buffer_read(buffer, at + done, now, &bytes);
        change(context, bytes.ptr[0..bytes.len], at + done);
        c.rbdkit_filter_buffer_write(buffer, at + done, &bytes);
        c.mine_list_u8_free(&bytes);
    }
}
