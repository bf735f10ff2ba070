//! The table of functions that a plugin of nbdkit gives its server, as both see it in memory.
//!
//! nbdkit only adds fields at the end. `struct_size` says how many of them the plugin was compiled
//! with; the others are empty.

use std::ffi::{c_char, c_int, c_void};

/// A connection's state, of which only the plugin knows what it is.
pub(super) type Handle = *mut c_void;

/// A list that nbdkit's functions fill (`nbdkit_add_extent`, `nbdkit_add_export`).
pub(super) type List = *mut c_void;

type WithHandle = Option<unsafe extern "C" fn(Handle) -> c_int>;
type Plain = Option<unsafe extern "C" fn() -> c_int>;
type Nothing = Option<unsafe extern "C" fn()>;

/// `struct nbdkit_plugin`. Fields whose names end in `_v1` are those of API version 1.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Table {
    pub struct_size: u64,
    pub api_version: c_int,
    pub max_thread_model: c_int,
    pub name: *const c_char,
    pub longname: *const c_char,
    pub version: *const c_char,
    pub description: *const c_char,
    pub load: Nothing,
    pub unload: Nothing,
    pub config: Option<unsafe extern "C" fn(*const c_char, *const c_char) -> c_int>,
    pub config_complete: Plain,
    pub config_help: *const c_char,
    pub open: Option<unsafe extern "C" fn(c_int) -> Handle>,
    pub close: Option<unsafe extern "C" fn(Handle)>,
    pub get_size: Option<unsafe extern "C" fn(Handle) -> i64>,
    pub can_write: WithHandle,
    pub can_flush: WithHandle,
    pub is_rotational: WithHandle,
    pub can_trim: WithHandle,
    pub pread_v1: Option<unsafe extern "C" fn(Handle, *mut c_void, u32, u64) -> c_int>,
    pub pwrite_v1: Option<unsafe extern "C" fn(Handle, *const c_void, u32, u64) -> c_int>,
    pub flush_v1: WithHandle,
    pub trim_v1: Option<unsafe extern "C" fn(Handle, u32, u64) -> c_int>,
    pub zero_v1: Option<unsafe extern "C" fn(Handle, u32, u64, c_int) -> c_int>,
    pub errno_is_preserved: c_int,
    pub dump_plugin: Nothing,
    pub can_zero: WithHandle,
    pub can_fua: WithHandle,
    pub pread: Option<unsafe extern "C" fn(Handle, *mut c_void, u32, u64, u32) -> c_int>,
    pub pwrite: Option<unsafe extern "C" fn(Handle, *const c_void, u32, u64, u32) -> c_int>,
    pub flush: Option<unsafe extern "C" fn(Handle, u32) -> c_int>,
    pub trim: Option<unsafe extern "C" fn(Handle, u32, u64, u32) -> c_int>,
    pub zero: Option<unsafe extern "C" fn(Handle, u32, u64, u32) -> c_int>,
    pub magic_config_key: *const c_char,
    pub can_multi_conn: WithHandle,
    pub can_extents: WithHandle,
    pub extents: Option<unsafe extern "C" fn(Handle, u32, u64, u32, List) -> c_int>,
    pub can_cache: WithHandle,
    pub cache: Option<unsafe extern "C" fn(Handle, u32, u64, u32) -> c_int>,
    pub thread_model: Plain,
    pub can_fast_zero: WithHandle,
    pub preconnect: Option<unsafe extern "C" fn(c_int) -> c_int>,
    pub get_ready: Plain,
    pub after_fork: Plain,
    pub list_exports: Option<unsafe extern "C" fn(c_int, c_int, List) -> c_int>,
    pub default_export: Option<unsafe extern "C" fn(c_int, c_int) -> *const c_char>,
    pub export_description: Option<unsafe extern "C" fn(Handle) -> *const c_char>,
    pub cleanup: Nothing,
    pub block_size: Option<unsafe extern "C" fn(Handle, *mut u32, *mut u32, *mut u32) -> c_int>,
}

impl Table {
    /// The names of the functions and texts that the plugin has, in the order in which nbdkit's
    /// `--dump-plugin` has them.
    pub(super) fn present(&self) -> Vec<&'static str> {
        [
            ("longname", !self.longname.is_null()),
            ("description", !self.description.is_null()),
            ("load", self.load.is_some()),
            ("unload", self.unload.is_some()),
            ("dump_plugin", self.dump_plugin.is_some()),
            ("config", self.config.is_some()),
            ("config_complete", self.config_complete.is_some()),
            ("config_help", !self.config_help.is_null()),
            ("thread_model", self.thread_model.is_some()),
            ("get_ready", self.get_ready.is_some()),
            ("after_fork", self.after_fork.is_some()),
            ("cleanup", self.cleanup.is_some()),
            ("preconnect", self.preconnect.is_some()),
            ("list_exports", self.list_exports.is_some()),
            ("default_export", self.default_export.is_some()),
            ("open", self.open.is_some()),
            ("close", self.close.is_some()),
            ("export_description", self.export_description.is_some()),
            ("get_size", self.get_size.is_some()),
            ("block_size", self.block_size.is_some()),
            ("can_write", self.can_write.is_some()),
            ("can_flush", self.can_flush.is_some()),
            ("is_rotational", self.is_rotational.is_some()),
            ("can_trim", self.can_trim.is_some()),
            ("can_zero", self.can_zero.is_some()),
            ("can_fast_zero", self.can_fast_zero.is_some()),
            ("can_extents", self.can_extents.is_some()),
            ("can_fua", self.can_fua.is_some()),
            ("can_multi_conn", self.can_multi_conn.is_some()),
            ("can_cache", self.can_cache.is_some()),
            ("pread", self.pread.is_some()),
            ("pwrite", self.pwrite.is_some()),
            ("flush", self.flush.is_some()),
            ("trim", self.trim.is_some()),
            ("zero", self.zero.is_some()),
            ("extents", self.extents.is_some()),
            ("cache", self.cache.is_some()),
            ("_pread_v1", self.pread_v1.is_some()),
            ("_pwrite_v1", self.pwrite_v1.is_some()),
            ("_flush_v1", self.flush_v1.is_some()),
            ("_trim_v1", self.trim_v1.is_some()),
            ("_zero_v1", self.zero_v1.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, present)| present.then_some(name))
        .collect()
    }
}
