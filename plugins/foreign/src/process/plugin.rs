//! The plugin: loads it, and calls its functions as nbdkit does.
#![allow(unsafe_code, reason = "a plugin's functions are C functions behind pointers")]

use std::ffi::{CString, OsStr, c_int};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use rbdkit_plugin_api::{ThreadModel, lock};

use super::abi::{Handle, Table};
use super::context::{take_error, text};
use super::extents::{Exports, Extents};
use super::server_link::error;
use crate::setup::{Hello, model};

/// An error number for the client.
pub(super) type Errno = c_int;

/// nbdkit's flags.
mod flag {
    pub(super) const MAY_TRIM: u32 = 1;
    pub(super) const FAST_ZERO: u32 = 8;
}

/// What `can_fua`, `can_cache` and our form of `can_zero` answer.
const NONE: i64 = 0;
const EMULATE: i64 = 1;
const NATIVE: i64 = 2;

/// The plugin. It is loaded once for the life of the process.
pub(super) struct Plugin {
    table: Table,
    /// Whether one call at a time may run in the whole process.
    serialized: AtomicBool,
    turn: Mutex<()>,
}

// SAFETY: the table is not changed any more, and its pointers are to the plugin's code and texts,
// which stay loaded. The plugin is made for calls from several threads, as its thread model says.
unsafe impl Send for Plugin {}
// SAFETY: as above.
unsafe impl Sync for Plugin {}

/// Loads the plugin and calls its `load`.
///
/// # Errors
/// One line, as nbdkit has it.
pub(super) fn load(path: &OsStr, flags: &[(String, String, c_int)]) -> Result<(Plugin, Hello), String> {
    let shown = path.to_string_lossy();
    let file = CString::new(path.as_bytes()).map_err(|_| format!("{shown}: the name has a zero byte"))?;
    // SAFETY: the operator named the file to run its code in this process.
    let library = unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if library.is_null() && mentions(path, b"filter_init\0") {
        return Err(format!("{shown} is not a plugin of nbdkit: it is a filter of nbdkit"));
    }
    if library.is_null() {
        return Err(format!("cannot open plugin '{shown}': {}", linker_error()));
    }
    // SAFETY: the library is open, and the name is a C string.
    let start = unsafe { libc::dlsym(library, c"plugin_init".as_ptr()) };
    if start.is_null() {
        // SAFETY: as above.
        let is_filter = !unsafe { libc::dlsym(library, c"filter_init".as_ptr()) }.is_null();
        let what = if is_filter { "it is a filter of nbdkit" } else { "it has no function plugin_init" };
        return Err(format!("{shown} is not a plugin of nbdkit: {what}"));
    }
    // SAFETY: nbdkit's interface says that `plugin_init` has this type.
    let start: extern "C" fn() -> *const Table = unsafe { std::mem::transmute(start) };
    let theirs = start();
    if theirs.is_null() {
        return Err(format!("{shown}: plugin registration function failed"));
    }
    let plugin = Plugin { table: copy(theirs), serialized: AtomicBool::new(false), turn: Mutex::new(()) };
    let hello = plugin.check(&shown)?;
    for (name, flag, value) in flags.iter().filter(|(name, ..)| *name == hello.name) {
        if !set_debug_flag(name, flag, *value) {
            error(&format!("-D {name}.{flag}: the plugin has no such debug flag"));
        }
    }
    if let Some(load) = plugin.table.load {
        // SAFETY: the first call, on the main thread.
        unsafe { load() };
    }
    Ok((plugin, hello))
}

/// Why the dynamic linker failed.
fn linker_error() -> String {
    // SAFETY: `dlerror` returns a C string or null.
    let message = unsafe { text(libc::dlerror()) }.unwrap_or_default();
    match message.strip_suffix(": cannot open shared object file: No such file or directory") {
        Some(_) => "No such file or directory".into(),
        None => message,
    }
}

/// Whether a file has these bytes, for example the name of a function that it refers to.
fn mentions(file: &OsStr, name: &[u8]) -> bool {
    std::fs::read(file).is_ok_and(|bytes| bytes.windows(name.len()).any(|window| window == name))
}

/// The plugin's table. What it does not have is zero, and what we do not know is left out.
fn copy(theirs: *const Table) -> Table {
    // SAFETY: a plugin returns its table, which begins with its size.
    let size = unsafe { (*theirs).struct_size }.min(size_of::<Table>() as u64) as usize;
    // SAFETY: zeroes are no functions, no texts and the number 0. Both tables have so many bytes.
    unsafe {
        let mut table: Table = std::mem::zeroed();
        std::ptr::copy_nonoverlapping(theirs.cast::<u8>(), (&raw mut table).cast::<u8>(), size);
        table
    }
}

impl Plugin {
    /// Checks the table, and describes the plugin.
    fn check(&self, file: &str) -> Result<Hello, String> {
        let table = &self.table;
        if !(1..=2).contains(&table.api_version) {
            let version = table.api_version;
            return Err(format!("{file}: plugin is incompatible with this server (_api_version = {version})"));
        }
        // SAFETY: the texts of the table are C strings or null.
        let [name, longname, version, description, help, magic] = unsafe {
            [table.name, table.longname, table.version, table.description, table.config_help, table.magic_config_key]
                .map(|pointer| text(pointer))
        };
        let name = name.ok_or_else(|| format!("{file}: plugin must have a .name field"))?;
        let plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if name.is_empty() || name.starts_with('-') || !plain(&name) {
            let may = "must contain only ASCII letters, digits and dashes, and not begin with a dash";
            return Err(format!("{file}: plugin.name ('{name}') {may}"));
        }
        let needed = [
            ("open", table.open.is_some()),
            ("get_size", table.get_size.is_some()),
            ("pread", table.pread.is_some() || table.pread_v1.is_some()),
        ];
        if let Some((field, _)) = needed.iter().find(|(_, present)| !present) {
            return Err(format!("{file}: plugin must have a .{field} callback"));
        }
        if model(table.max_thread_model.into()).is_none() {
            return Err(format!("{file}: plugin has an unknown thread model ({})", table.max_thread_model));
        }
        Ok(Hello {
            name,
            longname,
            version,
            description,
            config_help: help,
            magic_config_key: magic,
            api_version: table.api_version.into(),
            struct_size: table.struct_size,
            max_thread_model: table.max_thread_model.into(),
            errno_is_preserved: table.errno_is_preserved != 0,
            uses_export_name: mentions(OsStr::new(file), b"nbdkit_export_name\0"),
            functions: table.present().into_iter().map(String::from).collect(),
        })
    }

    /// Gives the plugin a parameter.
    pub(super) fn config(&self, key: &[u8], value: &[u8]) -> i64 {
        let (Ok(key), Ok(value), Some(config)) = (CString::new(key), CString::new(value), self.table.config) else {
            error("this plugin does not need command line configuration");
            return -1;
        };
        // SAFETY: two C strings, on the main thread. Plugins may keep the pointers, as nbdkit's
        // command line lives for ever.
        unsafe { config(CString::into_raw(key), CString::into_raw(value)) }.into()
    }

    /// Calls a function without arguments on the main thread. A plugin that lacks it agrees.
    fn plain(function: Option<unsafe extern "C" fn() -> c_int>) -> i64 {
        // SAFETY: as nbdkit calls it.
        function.map_or(0, |function| unsafe { function() }.into())
    }

    pub(super) fn config_complete(&self) -> i64 {
        Plugin::plain(self.table.config_complete)
    }

    pub(super) fn get_ready(&self) -> i64 {
        Plugin::plain(self.table.get_ready)
    }

    pub(super) fn after_fork(&self) -> i64 {
        Plugin::plain(self.table.after_fork)
    }

    /// The thread model that the plugin wants: the stricter one of what it was compiled with and
    /// what it says now. -1 for an error.
    pub(super) fn thread_model(&self) -> i64 {
        let most = i64::from(self.table.max_thread_model);
        let wanted = self.table.thread_model.map_or(most, |_| Plugin::plain(self.table.thread_model));
        let model = if wanted < 0 { -1 } else { most.min(wanted) };
        let serialized = crate::setup::model(model).is_none_or(|model| model <= ThreadModel::SerializeAllRequests);
        self.serialized.store(serialized, Ordering::Relaxed);
        model
    }

    /// Whether requests of one connection may run at the same time.
    pub(super) fn is_parallel(model: i64) -> bool {
        crate::setup::model(model) == Some(ThreadModel::Parallel)
    }

    pub(super) fn dump_plugin(&self) {
        if let Some(dump) = self.table.dump_plugin {
            // SAFETY: as nbdkit calls it.
            unsafe { dump() };
        }
    }

    pub(super) fn cleanup(&self) {
        if let Some(cleanup) = self.table.cleanup {
            let _turn = self.take_turn();
            // SAFETY: as nbdkit calls it: all connections are closed.
            unsafe { cleanup() };
        }
    }

    pub(super) fn unload(&self) {
        if let Some(unload) = self.table.unload {
            // SAFETY: the last call.
            unsafe { unload() };
        }
    }

    fn take_turn(&self) -> Option<MutexGuard<'_, ()>> {
        self.serialized.load(Ordering::Relaxed).then(|| lock(&self.turn))
    }

    /// Calls a function of a connection. A negative answer is an error.
    fn call(&self, call: impl FnOnce(&Table) -> i64) -> Result<i64, Errno> {
        let _turn = self.take_turn();
        take_error();
        let answer = call(&self.table);
        if answer >= 0 { Ok(answer) } else { Err(self.errno()) }
    }

    /// The error of the call that failed last on this thread.
    fn errno(&self) -> Errno {
        let errno = io::Error::last_os_error().raw_os_error().filter(|_| self.table.errno_is_preserved != 0);
        match take_error() {
            0 => errno.filter(|errno| *errno != 0).unwrap_or(libc::EIO),
            set => set,
        }
    }

    pub(super) fn preconnect(&self, readonly: bool) -> Result<i64, Errno> {
        // SAFETY: as nbdkit calls it.
        self.call(|table| table.preconnect.map_or(0, |preconnect| unsafe { preconnect(readonly.into()) }.into()))
    }

    pub(super) fn list_exports(&self, readonly: bool, tls: bool) -> Result<Exports, Errno> {
        let mut exports = Exports::default();
        let list = (&raw mut exports).cast();
        self.call(|table| match table.list_exports {
            // SAFETY: the list lives until the call returns.
            Some(list_exports) => unsafe { list_exports(readonly.into(), tls.into(), list) }.into(),
            None => 0,
        })?;
        exports.use_default |= self.table.list_exports.is_none();
        Ok(exports)
    }

    /// The name of the default export.
    pub(super) fn default_export(&self, readonly: bool, tls: bool) -> Result<String, Errno> {
        let mut name = Some(String::new());
        self.call(|table| match table.default_export {
            Some(default_export) => {
                // SAFETY: it returns a C string or null.
                name = unsafe { text(default_export(readonly.into(), tls.into())) };
                if name.is_some() { 0 } else { -1 }
            }
            None => 0,
        })?;
        Ok(name.unwrap_or_default())
    }

    /// Opens a connection. The handle is the plugin's.
    pub(super) fn open(&self, readonly: bool) -> Result<Handle, Errno> {
        let mut handle = std::ptr::null_mut();
        self.call(|table| {
            // SAFETY: as nbdkit calls it.
            handle = table.open.map_or(std::ptr::null_mut(), |open| unsafe { open(readonly.into()) });
            if handle.is_null() { -1 } else { 0 }
        })?;
        Ok(handle)
    }

    /// # Safety
    /// As for all functions below: `handle` comes from [`Plugin::open`] and is not closed.
    // SAFETY: the caller's part is above, or as for `close`.
    pub(super) unsafe fn close(&self, handle: Handle) {
        let _turn = self.take_turn();
        if let Some(close) = self.table.close {
            // SAFETY: the caller says so.
            unsafe { close(handle) };
        }
    }

    pub(super) unsafe fn get_size(&self, handle: Handle) -> Result<i64, Errno> {
        self.call(|table| {
            // SAFETY: the caller says so.
            let size = table.get_size.map_or(-1, |get_size| unsafe { get_size(handle) });
            if size < -1 {
                error(&format!("get_size: impossible size {size}"));
            }
            size
        })
    }

    // SAFETY: the caller's part is above, or as for `close`.
    pub(super) unsafe fn export_description(&self, handle: Handle) -> Result<Option<String>, Errno> {
        let mut description = None;
        self.call(|table| {
            // SAFETY: the caller says so. It returns a C string or null.
            description = table.export_description.and_then(|describe| unsafe { text(describe(handle)) });
            0
        })?;
        Ok(description)
    }

    /// Minimum, preferred and maximum; all 0 if the plugin does not say.
    pub(super) unsafe fn block_size(&self, handle: Handle) -> Result<[u32; 3], Errno> {
        let mut sizes = [0; 3];
        let [minimum, preferred, maximum] = &mut sizes;
        self.call(|table| match table.block_size {
            // SAFETY: the caller says so.
            Some(block_size) => unsafe { block_size(handle, minimum, preferred, maximum) }.into(),
            None => 0,
        })?;
        Ok(sizes)
    }

    /// The answers of all `can_*` functions, in the order of [`crate::can`]. What a plugin lacks is
    /// as in nbdkit: an operation can be done if there is a function for it.
    // SAFETY: the caller's part is above, or as for `close`.
    pub(super) unsafe fn can(&self, handle: Handle, readonly: bool) -> Result<[i64; 10], Errno> {
        let table = &self.table;
        let ask = |function: Option<unsafe extern "C" fn(Handle) -> c_int>, otherwise: i64| match function {
            // SAFETY: the caller says so.
            Some(function) => self.call(|_| unsafe { function(handle) }.into()),
            None => Ok(otherwise),
        };
        let has_pwrite = table.pwrite.is_some() || table.pwrite_v1.is_some();
        let write = if readonly { 0 } else { ask(table.can_write, has_pwrite.into())? };
        let has_flush = table.flush.is_some() || table.flush_v1.is_some();
        let has_zero = table.zero.is_some() || table.zero_v1.is_some();
        let (mut zero, mut fast_zero, mut trim, mut fua) = (NONE, 0, 0, NONE);
        if write != 0 {
            let of_zero = if has_zero { NATIVE } else { EMULATE };
            zero = if ask(table.can_zero, has_zero.into())? == 0 { EMULATE } else { of_zero };
            fast_zero = match table.can_fast_zero {
                // Without a function a request for a fast zero fails at once, which is fast too.
                None => (table.zero.is_none() || zero == EMULATE).into(),
                function => ask(function, 0)?,
            };
            trim = ask(table.can_trim, (table.trim.is_some() || table.trim_v1.is_some()).into())?;
            fua = ask(table.can_fua, if has_flush { EMULATE } else { NONE })?;
            if table.api_version == 1 {
                // Its functions take no flags.
                fua = fua.min(EMULATE);
            }
        }
        let flush = ask(table.can_flush, has_flush.into())?;
        let rotational = ask(table.is_rotational, 0)?;
        let multi_conn = ask(table.can_multi_conn, 0)?;
        let cache = ask(table.can_cache, if table.cache.is_some() { NATIVE } else { NONE })?;
        let extents = ask(table.can_extents, table.extents.is_some().into())?;
        Ok([write, flush, rotational, trim, zero, fast_zero, fua, multi_conn, cache, extents])
    }

    /// # Safety
    /// `buffer` has `count` bytes that nobody else uses.
    // SAFETY: the caller's part is above, or as for `close`.
    pub(super) unsafe fn pread(&self, handle: Handle, buffer: *mut u8, count: u32, offset: u64) -> Result<i64, Errno> {
        let buffer = buffer.cast();
        // SAFETY: the caller says so.
        self.call(|table| unsafe {
            match (table.pread, table.pread_v1) {
                (Some(pread), _) => pread(handle, buffer, count, offset, 0),
                (None, Some(pread)) => pread(handle, buffer, count, offset),
                _ => -1,
            }
            .into()
        })
    }

    /// # Safety
    /// `buffer` has `count` bytes.
    // SAFETY: the caller's part is above, or as for `close`.
    pub(super) unsafe fn pwrite(
        &self,
        handle: Handle,
        buffer: *const u8,
        count: u32,
        offset: u64,
        flags: u32,
    ) -> Result<i64, Errno> {
        let buffer = buffer.cast();
        // SAFETY: the caller says so.
        self.call(|table| unsafe {
            match (table.pwrite, table.pwrite_v1) {
                (Some(pwrite), _) => pwrite(handle, buffer, count, offset, flags),
                (None, Some(pwrite)) => pwrite(handle, buffer, count, offset),
                _ => refused(libc::EROFS),
            }
            .into()
        })
    }

    // SAFETY: the caller's part is above, or as for `close`.
    pub(super) unsafe fn flush(&self, handle: Handle) -> Result<i64, Errno> {
        // SAFETY: the caller says so.
        self.call(|table| unsafe {
            match (table.flush, table.flush_v1) {
                (Some(flush), _) => flush(handle, 0),
                (None, Some(flush)) => flush(handle),
                _ => refused(libc::EINVAL),
            }
            .into()
        })
    }

    // SAFETY: the caller's part is above, or as for `close`.
    pub(super) unsafe fn trim(&self, handle: Handle, count: u32, offset: u64, flags: u32) -> Result<i64, Errno> {
        // SAFETY: the caller says so.
        self.call(|table| unsafe {
            match (table.trim, table.trim_v1) {
                (Some(trim), _) => trim(handle, count, offset, flags),
                (None, Some(trim)) => trim(handle, count, offset),
                _ => refused(libc::EINVAL),
            }
            .into()
        })
    }

    // SAFETY: the caller's part is above, or as for `close`.
    pub(super) unsafe fn zero(&self, handle: Handle, count: u32, offset: u64, flags: u32) -> Result<i64, Errno> {
        // SAFETY: the caller says so.
        self.call(|table| unsafe {
            match (table.zero, table.zero_v1) {
                (Some(zero), _) => zero(handle, count, offset, flags),
                (None, Some(zero)) if flags & flag::FAST_ZERO == 0 => {
                    zero(handle, count, offset, (flags & flag::MAY_TRIM) as c_int)
                }
                _ => refused(libc::EOPNOTSUPP),
            }
            .into()
        })
    }

    // SAFETY: the caller's part is above, or as for `close`.
    pub(super) unsafe fn cache(&self, handle: Handle, count: u32, offset: u64) -> Result<i64, Errno> {
        // SAFETY: the caller says so.
        self.call(|table| table.cache.map_or(0, |cache| unsafe { cache(handle, count, offset, 0) }.into()))
    }

    pub(super) unsafe fn extents(&self, handle: Handle, count: u32, offset: u64, flags: u32) -> Result<Extents, Errno> {
        let mut extents = Extents::new(offset, offset.saturating_add(count.into()));
        let list = (&raw mut extents).cast();
        self.call(|table| match table.extents {
            // SAFETY: the caller says so. The list lives until the call returns.
            Some(function) => unsafe { function(handle, count, offset, flags, list) }.into(),
            None => refused(libc::EINVAL).into(),
        })?;
        if extents.as_slice().is_empty() {
            error("extents: plugin must return at least one extent");
            return Err(libc::EINVAL);
        }
        Ok(extents)
    }
}

/// Sets the plugin's variable of a debug flag (`-D NAME.FLAG=VALUE`). Returns whether there is
/// one.
fn set_debug_flag(name: &str, flag: &str, value: c_int) -> bool {
    let variable = format!("{}_debug_{}", name.replace(['-', '.'], "_"), flag.replace(['-', '.'], "_"));
    let Ok(variable) = CString::new(variable) else { return false };
    // SAFETY: the plugin is loaded for all to see, and a variable of this name is an int.
    unsafe {
        let place = libc::dlsym(libc::RTLD_DEFAULT, variable.as_ptr()).cast::<c_int>();
        if !place.is_null() {
            *place = value;
        }
        !place.is_null()
    }
}

/// Fails with this error.
fn refused(errno: Errno) -> c_int {
    super::context::set_error(errno);
    -1
}
