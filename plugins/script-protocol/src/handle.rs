//! One connection: the methods that get a handle.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rbdkit_plugin_api::{
    Abandoned, BlockSizes, BoxFuture, Buffer, Capabilities, Client, Done, Errno, Extents, Flags, Handle, MAX_REQUEST,
    Op, OpenArgs, Result, Span, Support, run_abandonable, run_abandonable_with,
};

use crate::answers;
use crate::scripts::{Caller, Scripts};
use crate::status::{Answer, Failure};

/// What the operations of a connection share.
struct Connection {
    scripts: Arc<Scripts>,
    /// The string that identifies this connection to the script: what its `open` printed.
    handle: OsString,
    readonly: bool,
    /// Whom the script may disconnect.
    client: Arc<Client>,
    /// The script asks for `cache` to be emulated.
    emulates_cache: AtomicBool,
}

/// A connection. Each operation runs programs on a thread that may block. They are killed if the
/// operation is dropped before it has ended.
pub(crate) struct ScriptHandle(Arc<Connection>);

impl ScriptHandle {
    /// `handle` is what the script's `open` printed.
    pub(crate) fn new(scripts: Arc<Scripts>, handle: OsString, args: &OpenArgs) -> ScriptHandle {
        let client = Arc::clone(&args.client);
        let emulates_cache = AtomicBool::new(false);
        ScriptHandle(Arc::new(Connection { scripts, handle, readonly: args.readonly, client, emulates_cache }))
    }

    fn run<T: Send + 'static>(&self, call: impl FnOnce(&Methods<'_>) -> Result<T> + Send + 'static) -> Op<Result<T>> {
        let connection = Arc::clone(&self.0);
        run_abandonable(move |abandoned| call(&Methods::new(&connection, abandoned)))
    }

    fn run_with(
        &self,
        buffer: Buffer,
        call: impl FnOnce(&Methods<'_>, &mut Buffer) -> Result<()> + Send + 'static,
    ) -> Op<Done> {
        let connection = Arc::clone(&self.0);
        run_abandonable_with(buffer, move |buffer, abandoned| call(&Methods::new(&connection, abandoned), buffer))
    }
}

impl Handle for ScriptHandle {
    fn get_size(&self) -> Op<Result<u64>> {
        self.run(|methods| methods.get_size())
    }

    fn block_size(&self) -> Op<Result<Option<BlockSizes>>> {
        self.run(|methods| methods.block_size())
    }

    fn export_description(&self) -> Op<Result<Option<String>>> {
        self.run(|methods| methods.export_description())
    }

    fn can(&self) -> Op<Result<Capabilities>> {
        self.run(|methods| methods.can())
    }

    /// The program of a dropped operation is killed, which ends the thread that has the buffer.
    fn drops_reads(&self) -> bool {
        true
    }

    /// A step is a process, so it is as long as a request may be.
    fn zero_step(&self) -> u32 {
        MAX_REQUEST
    }

    fn pread(&self, buffer: Buffer, span: Span, offset: u64) -> Op<Done> {
        self.run_with(buffer, move |methods, buffer| buffer.fill_with(span, |bytes| methods.pread(bytes, offset)))
    }

    fn pwrite(&self, buffer: Buffer, span: Span, offset: u64, flags: Flags) -> Op<Done> {
        self.run_with(buffer, move |methods, buffer| methods.pwrite(buffer.data(span), offset, flags))
    }

    fn flush(&self) -> Op<Result<()>> {
        self.run(|methods| methods.flush())
    }

    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.run(move |methods| methods.trim(offset, length, flags))
    }

    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<()>> {
        self.run(move |methods| methods.zero(offset, length, flags))
    }

    fn cache(&self, offset: u64, length: u64) -> Op<Result<()>> {
        self.run(move |methods| methods.cache(offset, length))
    }

    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Op<Result<Extents>> {
        self.run(move |methods| methods.extents(offset, length, flags))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let closed = self.run(|methods| {
                methods.close();
                Ok(())
            });
            let _ = closed.await;
        })
    }
}

/// The methods that get a handle, for one operation. They block.
struct Methods<'a> {
    connection: &'a Connection,
    scripts: Caller<'a>,
    handle: &'a OsStr,
    readonly: bool,
}

impl<'a> Methods<'a> {
    fn new(connection: &'a Connection, abandoned: &'a Abandoned) -> Methods<'a> {
        Methods {
            connection,
            scripts: connection.scripts.caller_until(abandoned).for_client(&connection.client),
            handle: &connection.handle,
            readonly: connection.readonly,
        }
    }
}

impl Methods<'_> {
    fn boolean(&self, method: &str, if_missing: bool) -> Result<bool, Failure> {
        Ok(match self.scripts.call(method, &[self.handle])? {
            Answer::Done => true,
            Answer::False => false,
            Answer::Missing => if_missing,
        })
    }

    fn support(&self, method: &str) -> Result<Option<Support>, Failure> {
        let Some(text) = self.scripts.read(method, &[self.handle])? else { return Ok(None) };
        let word = answers::line(&text);
        match answers::support(&word) {
            Some(support) => Ok(Some(support)),
            None => {
                let what =
                    format!("could not parse output from {method} method: {word:?} is not none, emulate or native");
                Err(self.scripts.fault(method, what))
            }
        }
    }

    /// Calls a method with the arguments of a request: handle, count, offset and, for most, flags.
    fn request(
        &self,
        length: u64,
        offset: u64,
        flags: Option<Flags>,
        call: impl FnOnce(&[&OsStr]) -> Result<Answer, Failure>,
    ) -> Result<Answer, Failure> {
        let (length, offset) = (length.to_string(), offset.to_string());
        let words = flags.map(flag_words);
        let mut args: Vec<&OsStr> = vec![self.handle, length.as_ref(), offset.as_ref()];
        args.extend(words.as_ref().map(OsStr::new));
        call(&args)
    }
}

/// The flags as the script sees them.
fn flag_words(flags: Flags) -> String {
    let words =
        [(flags.fua, "fua"), (flags.may_trim, "may_trim"), (flags.req_one, "req_one"), (flags.fast_zero, "fast")];
    let set: Vec<&str> = words.into_iter().filter(|(set, _)| *set).map(|(_, word)| word).collect();
    set.join(",")
}

impl Methods<'_> {
    fn get_size(&self) -> Result<u64> {
        let Some(text) = self.scripts.read("get_size", &[self.handle])? else {
            return Err(self.scripts.fault("get_size", "the get_size method is required").into());
        };
        let text = answers::line(&text);
        answers::size(&text).ok_or_else(|| {
            let what =
                format!("could not parse output from get_size method: {text:?} is not a size like 512, 64k or 1G");
            self.scripts.fault("get_size", what).into()
        })
    }

    fn block_size(&self) -> Result<Option<BlockSizes>> {
        let Some(text) = self.scripts.read("block_size", &[self.handle])? else { return Ok(None) };
        let text = answers::line(&text);
        answers::block_sizes(&text).ok_or_else(|| {
            let what = format!("block_size method cannot be parsed: {text:?} is not MINIMUM PREFERRED MAXIMUM");
            self.scripts.fault("block_size", what).into()
        })
    }

    fn export_description(&self) -> Result<Option<String>> {
        let text = self.scripts.read("export_description", &[self.handle])?;
        Ok(text.map(|text| answers::line(&text)))
    }

    /// Asks in nbdkit's order. As there, a connection that cannot write is not asked for what only
    /// writers need.
    fn can(&self) -> Result<Capabilities> {
        let mut can = Capabilities::READ_ONLY;
        can.write = !self.readonly && self.boolean("can_write", false)?;
        let mut fua = None;
        if can.write {
            let zero = self.boolean("can_zero", false)?;
            can.zero = if zero { Support::Native } else { Support::Emulate };
            // The gate refuses a fast zero at once if zero is emulated.
            can.fast_zero = self.boolean("can_fast_zero", !zero)?;
            can.trim = self.boolean("can_trim", false)?;
            fua = self.support("can_fua")?;
        }
        can.flush = self.boolean("can_flush", false)?;
        can.fua = match fua {
            Some(fua) => fua,
            None if can.write && can.flush => Support::Emulate,
            None => Support::None,
        };
        can.rotational = self.boolean("is_rotational", false)?;
        can.multi_conn = self.boolean("can_multi_conn", false)?;
        can.cache = self.support("can_cache")?.unwrap_or(Support::None);
        if can.cache == Support::Emulate {
            // The gate would need memory for all that one program prints.
            self.connection.emulates_cache.store(true, Ordering::Relaxed);
            can.cache = Support::Native;
        }
        can.extents = self.boolean("can_extents", false)?;
        Ok(can)
    }

    fn pread(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let length = bytes.len() as u64;
        self.request(length, offset, None, |args| {
            self.scripts.read_into("pread", args, bytes)?;
            Ok(Answer::Done)
        })?;
        Ok(())
    }

    fn pwrite(&self, bytes: &[u8], offset: u64, flags: Flags) -> Result<()> {
        let length = bytes.len() as u64;
        match self.request(length, offset, Some(flags), |args| self.scripts.call_with_input("pwrite", args, bytes))? {
            Answer::Missing => Err(self.scripts.fault("pwrite", "pwrite not implemented").into()),
            _ => Ok(()),
        }
    }

    fn flush(&self) -> Result<()> {
        self.scripts.call_plain("flush", &[self.handle])?;
        Ok(())
    }

    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Result<()> {
        self.request(length, offset, Some(flags), |args| self.scripts.call_plain("trim", args))?;
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64, flags: Flags) -> Result<()> {
        match self.request(length, offset, Some(flags), |args| self.scripts.call_plain("zero", args))? {
            // Makes the gate write zeroes instead.
            Answer::Missing => Err(Errno::Enotsup.into()),
            _ => Ok(()),
        }
    }

    fn cache(&self, offset: u64, length: u64) -> Result<()> {
        if self.connection.emulates_cache.load(Ordering::Relaxed) {
            return self.cache_by_reading(offset, length);
        }
        self.request(length, offset, None, |args| self.scripts.call_plain("cache", args))?;
        Ok(())
    }

    /// Reads the range, in requests as long as they may be, and discards the data.
    fn cache_by_reading(&self, offset: u64, length: u64) -> Result<()> {
        // Without them there are no limits.
        let sizes = self.block_size().ok().flatten();
        let longest = sizes.map_or(MAX_REQUEST, |sizes| MAX_REQUEST.min(sizes.maximum).max(sizes.minimum));
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let piece = (end - at).min(u64::from(longest.max(1)));
            self.request(piece, at, None, |args| {
                self.scripts.read_and_discard("pread", args, piece)?;
                Ok(Answer::Done)
            })?;
            at += piece;
        }
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64, flags: Flags) -> Result<Extents> {
        let mut text = None;
        self.request(length, offset, Some(flags), |args| {
            text = self.scripts.read("extents", args)?;
            Ok(Answer::Done)
        })?;
        let Some(text) = text else {
            let what = "can_extents returned true, but extents method is not defined";
            return Err(self.scripts.fault("extents", what).into());
        };
        answers::extents(&text, offset, length).map_err(|error| self.scripts.fault("extents", error.to_string()).into())
    }

    fn close(&self) {
        // No client is left to tell.
        if let Err(failure) = self.scripts.call("close", &[self.handle]) {
            tracing::error!("{failure}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_words_with_commas() {
        assert_eq!(flag_words(Flags::NONE), "");
        assert_eq!(flag_words(Flags::FUA), "fua");
        let all = Flags { fua: true, may_trim: true, fast_zero: true, req_one: false };
        assert_eq!(flag_words(all), "fua,may_trim,fast");
        assert_eq!(flag_words(Flags { req_one: true, ..Flags::NONE }), "req_one");
    }
}
