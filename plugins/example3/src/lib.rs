//! The example3 plugin: a temporary disk for each connection.
//!
//! It is the example for a plugin that needs the system while it serves. A confined server may not
//! create files. So a helper process that started before makes a file without a name and passes it
//! on as a descriptor ([`rbdkit_launcher`]).
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rbdkit_assembled::{AssembledDisk, AssembledHandle, DiskFile, Durability, temporary_file};
use rbdkit_launcher::{Open, OpenFor, Opener};
use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{
    AccessRights, BoxFuture, ConfigError, DISK_FUNCTIONS, DiskId, Errno, Error, Handle, OpenArgs, Param, Plugin,
    PluginInfo, Result, ThreadModel, run_blocking, temporary,
};
use rustix::fs::{CWD, Mode, OFlags};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "example3",
    longname: "rbdkit example plugin 3",
    description: "An example: a temporary disk for each connection",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Example3 { size: 100 << 20, helper: None }),
};

/// The function with which a helper process makes files for a confined server, and its name.
pub const OPEN: (&str, Open) = (INFO.name, make_file);

fn params() -> Vec<ParamSpec> {
    vec![ParamSpec::size("size").default_value("100M").help("Size of the disk")]
}

/// Makes a file without a name in the directory for large temporary files, which the server's
/// helper has found anew. So an attacker who controls the server can choose no name.
fn make_file(_: BorrowedFd<'_>, _: &OsStr, _: OpenFor) -> rustix::io::Result<OwnedFd> {
    let file = temporary_file();
    file.map(OwnedFd::from).map_err(|error| rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))
}

struct Example3 {
    size: u64,
    helper: Option<Arc<Helper>>,
}

/// What makes files.
struct Helper {
    opener: Opener,
    /// The opener wants one.
    directory: OwnedFd,
}

impl Helper {
    fn new() -> io::Result<Helper> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, temporary::large_directory()?, flags, Mode::empty())?;
        Ok(Helper { opener: Opener::new(OPEN.0, OPEN.1), directory })
    }

    fn make(&self) -> io::Result<File> {
        let file = self.opener.open(self.directory.as_fd(), "disk".as_ref(), OpenFor::Writing)?;
        Ok(file.into())
    }
}

impl Plugin for Example3 {
    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "size" => self.size = param.size()?,
            _ => return Err(param.unknown("example3")),
        }
        Ok(())
    }

    fn get_ready(&mut self) -> Result<(), ConfigError> {
        let helper = Helper::new().map_err(|error| ConfigError::new(format!("example3: {error}")))?;
        self.helper = Some(Arc::new(helper));
        Ok(())
    }

    fn before_confinement(&self) -> io::Result<()> {
        self.helper.as_ref().map_or(Ok(()), |helper| helper.opener.move_out(helper.directory.as_fd()))
    }

    fn open(&self, args: OpenArgs) -> BoxFuture<'_, Result<Arc<dyn Handle>>> {
        let (size, helper) = (self.size, self.helper.clone());
        Box::pin(async move {
            let helper = helper.ok_or_else(|| Error::new(Errno::Enxio, "example3: opened before it was made ready"))?;
            // Each connection has a disk of its own, also for the filters above.
            let id = DiskId::named(&format!("client {}", args.client.id));
            run_blocking(move || {
                let file = helper.make()?;
                file.set_len(size)?;
                let disk = AssembledDisk::of_file(DiskFile::from_fd(file.into())?)?.alone(Durability::Discarded);
                Ok(Arc::new(AssembledHandle::to(disk, id)) as Arc<dyn Handle>)
            })
            .await
        })
    }

    fn access_rights(&self) -> Option<AccessRights> {
        Some(AccessRights::default())
    }

    fn optional_functions(&self) -> Vec<&'static str> {
        [&["dump_plugin", "close", "can_write", "can_flush"][..], &DISK_FUNCTIONS].concat()
    }

    fn dump_plugin(&self) -> Vec<(String, String)> {
        vec![("example3_extra".to_string(), "hello".to_string())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_a_new_one_without_a_name() {
        let helper = Helper::new().unwrap();
        let stats = [(); 2].map(|()| rustix::fs::fstat(helper.make().unwrap()).unwrap());
        assert!(stats.iter().all(|stat| stat.st_nlink == 0 && stat.st_size == 0));
    }
}
