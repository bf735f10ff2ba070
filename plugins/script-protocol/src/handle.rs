//! One connection: the methods that get a handle.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use rbdkit_plugin_api::{BlockSizes, BlockingHandle, Capabilities, Errno, Extents, Flags, Result, Support};

use crate::answers;
use crate::scripts::{Answer, Failure, Scripts};

/// A connection, with the string that the script's `open` printed.
pub(crate) struct ScriptHandle {
    pub(crate) scripts: Arc<Scripts>,
    /// The string that identifies this connection to the script.
    pub(crate) handle: OsString,
    pub(crate) readonly: bool,
}

impl ScriptHandle {
    fn boolean(&self, method: &str, if_missing: bool) -> Result<bool, Failure> {
        Ok(match self.scripts.call(method, &[&self.handle])? {
            Answer::Done => true,
            Answer::False => false,
            Answer::Missing => if_missing,
        })
    }

    fn support(&self, method: &str) -> Result<Option<Support>, Failure> {
        let Some(text) = self.scripts.read(method, &[&self.handle])? else { return Ok(None) };
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
        let mut args: Vec<&OsStr> = vec![&self.handle, length.as_ref(), offset.as_ref()];
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

impl BlockingHandle for ScriptHandle {
    fn get_size(&self) -> Result<u64> {
        let Some(text) = self.scripts.read("get_size", &[&self.handle])? else {
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
        let Some(text) = self.scripts.read("block_size", &[&self.handle])? else { return Ok(None) };
        let text = answers::line(&text);
        answers::block_sizes(&text).ok_or_else(|| {
            let what = format!("block_size method cannot be parsed: {text:?} is not MINIMUM PREFERRED MAXIMUM");
            self.scripts.fault("block_size", what).into()
        })
    }

    fn export_description(&self) -> Result<Option<String>> {
        let text = self.scripts.read("export_description", &[&self.handle])?;
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
        self.scripts.call_plain("flush", &[&self.handle])?;
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
        self.request(length, offset, None, |args| self.scripts.call_plain("cache", args))?;
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
        if let Err(failure) = self.scripts.call("close", &[&self.handle]) {
            tracing::debug!("{failure}");
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
