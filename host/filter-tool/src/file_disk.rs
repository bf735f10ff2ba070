//! Disks that parameters of the filter name: files, which are only read.
//!
//! The tool has no plugins, so it makes no other chains.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use rbdkit_chain::Chain;
use rbdkit_plugin_api::schema::{CHAIN_PREFIX, ParamKind, ParamValue};
use rbdkit_plugin_api::text::plain;
use rbdkit_plugin_api::{
    BoxFuture, Buffer, Capabilities, ConfigError, Done, Errno, Handle, Op, OpenArgs, Param, Plugin, Pool, Result, Span,
    Support, ThreadModel,
};
use rbdkit_sandbox::{GivenDisk, Module};

/// The disks that these values of the filter's parameters name.
///
/// # Errors
/// One line: there is no such file, or it is a chain.
pub fn given_disks(
    module: &Module,
    values: &[(String, ParamValue)],
) -> std::result::Result<Vec<GivenDisk>, ConfigError> {
    let specs = &module.description().params;
    let is_disk = |name: &str| specs.iter().any(|spec| spec.name == *name && spec.kind == ParamKind::Disk);
    let named = values.iter().filter(|(name, _)| is_disk(name));
    let named = named.filter_map(|(name, value)| Some((name, value.path.as_deref()?)));
    named.map(|(param, value)| given_disk(param, value)).collect()
}

fn given_disk(param: &str, value: &OsStr) -> std::result::Result<GivenDisk, ConfigError> {
    if value.as_bytes().starts_with(CHAIN_PREFIX.as_bytes()) {
        let why = "this program has no plugins: give the name of a file, or serve the filter with rbdkit";
        return Err(ConfigError::new(format!("{param}={CHAIN_PREFIX}...: {why}")));
    }
    let shown = format!("{param}={}", Path::new(value).display());
    let wrong = |why: String| ConfigError::new(format!("{shown}: {why}"));
    let (file, size) = open_regular(Path::new(value)).map_err(|error| wrong(plain(&error)))?;
    let plugin = FilePlugin { file: Arc::new(file), size };
    Ok(GivenDisk {
        param: param.to_string(),
        chain: Chain::new(Vec::new(), "file", Box::new(plugin), Pool::new()),
        shown,
    })
}

/// Opens a regular file for reading. Returns its size too, in bytes.
///
/// # Errors
/// Those of the system, and one for what is not a regular file.
pub fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    let about = std::fs::metadata(path)?;
    // Opening a pipe would wait for its other end.
    if !about.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    Ok((File::open(path)?, about.len()))
}

struct FilePlugin {
    file: Arc<File>,
    size: u64,
}

impl Plugin for FilePlugin {
    fn config(&mut self, param: Param<'_>) -> std::result::Result<(), ConfigError> {
        Err(param.unknown("file"))
    }

    fn thread_model(&self) -> ThreadModel {
        ThreadModel::Parallel
    }

    fn open(&self, _: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let handle = FileHandle { file: Arc::clone(&self.file), size: self.size };
        Box::pin(async move { Ok(Arc::new(handle) as Arc<dyn Handle>) })
    }
}

struct FileHandle {
    file: Arc<File>,
    size: u64,
}

impl Handle for FileHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        Op::Ready(Ok(self.size))
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        Op::Ready(Ok(Capabilities { multi_conn: true, cache: Support::Native, ..Capabilities::READ_ONLY }))
    }

    fn pread(&self, mut buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        let mut bytes = vec![0; span.len as usize];
        let result = self.file.read_exact_at(&mut bytes, offset).map_err(|_| Errno::Eio.into());
        let result = result.map(|()| buffer.put(span.at, &bytes));
        Op::Ready((buffer, result))
    }

    /// The page cache has it, or the next read waits for it.
    fn cache(&self, _: u64, _: u64) -> Op<Result<()>> {
        Op::Ready(Ok(()))
    }
}
