//! What a filter exports.
#![allow(missing_docs, reason = "only export! and the simulated host use it")]

use crate::ops::Filter;
use crate::{BlockSizes, Capabilities, CommandFlags, Errno, ExportEntry, Extent, Scope, ThreadModel};

/// The operations of a filter, as the host calls them. [`export!`](crate::export!) implements it.
/// The answer is None if the filter does not export the operation.
pub trait Exported: Filter {
    /// The names of the interfaces.
    const INTERFACES: &'static [&'static str];

    fn thread_model(&self) -> Option<ThreadModel> {
        None
    }
    fn get_ready(&self) -> Option<Result<(), String>> {
        None
    }
    fn after_fork(&self) -> Option<Result<(), String>> {
        None
    }
    fn cleanup(&self) -> Option<()> {
        None
    }
    fn preconnect(&self, _readonly: bool) -> Option<Result<(), Errno>> {
        None
    }
    fn list_exports(&self, _readonly: bool, _is_tls: bool) -> Option<Result<Vec<ExportEntry>, Errno>> {
        None
    }
    fn default_export(&self, _readonly: bool, _is_tls: bool) -> Option<Result<String, Errno>> {
        None
    }
    fn open(&self, _readonly: bool, _exportname: &str, _is_tls: bool, _replayed: bool) -> Option<Result<u64, Errno>> {
        None
    }
    fn prepare(&self) -> Option<Result<(), Errno>> {
        None
    }
    fn finalize(&self) -> Option<Result<(), Errno>> {
        None
    }
    fn close(&self) -> Option<()> {
        None
    }
    fn get_size(&self) -> Option<Result<u64, Errno>> {
        None
    }
    fn block_size(&self) -> Option<Result<BlockSizes, Errno>> {
        None
    }
    fn export_description(&self) -> Option<Option<String>> {
        None
    }
    fn can(&self, _below: Capabilities) -> Option<Result<Capabilities, Errno>> {
        None
    }
    fn pread(&self, _offset: u64, _length: u32, _flags: CommandFlags) -> Option<Result<(), Errno>> {
        None
    }
    fn pwrite(&self, _offset: u64, _length: u32, _flags: CommandFlags) -> Option<Result<(), Errno>> {
        None
    }
    fn flush(&self) -> Option<Result<(), Errno>> {
        None
    }
    fn trim(&self, _offset: u64, _length: u64, _flags: CommandFlags) -> Option<Result<(), Errno>> {
        None
    }
    fn zero(&self, _offset: u64, _length: u64, _flags: CommandFlags) -> Option<Result<(), Errno>> {
        None
    }
    fn extents(&self, _offset: u64, _length: u64, _flags: CommandFlags) -> Option<Result<Vec<Extent>, Errno>> {
        None
    }
    fn cache(&self, _offset: u64, _length: u64) -> Option<Result<(), Errno>> {
        None
    }
    fn next_range(&self) -> Option<Option<(u64, u64)>> {
        None
    }
    fn alarm(&self, _scope: Scope, _id: u32) -> Option<()> {
        None
    }
    fn changed(&self, _param: &str, _nth: u32, _holds: bool) -> Option<()> {
        None
    }
    fn opened(&self, _connection: u64) -> Option<()> {
        None
    }
    fn closed(&self, _connection: u64) -> Option<()> {
        None
    }
    fn received(&self, _param: &str, _nth: u32, _data: &[u8]) -> Option<Vec<u8>> {
        None
    }
}
