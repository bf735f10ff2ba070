//! The ones plugin: a disk of one repeated byte, which discards what is written.
#![forbid(unsafe_code)]

use std::convert::Infallible;

use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{
    Buffer, Capabilities, ConfigError, DISK_FUNCTIONS, Extents, Flags, Param, PluginInfo, Result, Span, ThreadModel,
    units,
};
use rbdkit_synthetic::{Content, Plan, Synthetic};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "ones",
    longname: "rbdkit ones plugin",
    description: "A disk of one repeated byte that discards what is written",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Synthetic::<Ones>::default()),
};

fn params() -> Vec<ParamSpec> {
    vec![
        ParamSpec::size("size").magic().default_value("0").help("Size of the disk"),
        ParamSpec::string("byte").placeholder("N").default_value("0xff").help("The byte, from 0 to 255"),
    ]
}

#[derive(Clone, Copy)]
struct Ones {
    size: u64,
    byte: u8,
}

impl Default for Ones {
    fn default() -> Ones {
        Ones { size: 0, byte: 0xff }
    }
}

impl Plan for Ones {
    type Content = Ones;

    const FUNCTIONS: &'static [&'static str] = &DISK_FUNCTIONS;

    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "size" => self.size = param.size()?,
            "byte" => {
                let byte = units::parse_whole(param.text()?, u8::MAX.into()).map_err(|wrong| param.error(wrong))?;
                self.byte = byte as u8;
            }
            _ => return Err(param.unknown("ones")),
        }
        Ok(())
    }

    fn content(&self) -> Result<Ones, ConfigError> {
        Ok(*self)
    }
}

impl Content for Ones {
    fn size(&self) -> u64 {
        self.size
    }

    /// Zeroes are discarded as all writes are, so a client that zeroes reads the byte afterwards.
    fn capabilities(&self) -> Capabilities {
        Capabilities::NATIVE
    }

    fn read(&self, buffer: &mut Buffer, span: Span, _: u64) {
        if self.byte == 0 {
            return buffer.set_zero(span);
        }
        let Ok(()) = buffer.fill_with(span, |bytes| {
            bytes.fill(self.byte);
            Ok::<_, Infallible>(())
        });
    }

    fn write(&self, _: &[u8], _: u64) -> Result<()> {
        Ok(())
    }

    fn trim(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn zero(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64, _: Flags) -> Extents {
        let mut extents = Extents::new(offset, length);
        // All of it is allocated.
        extents.push(self.size - offset, false, self.byte == 0);
        extents
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn ones(params: &[(&str, &str)]) -> Result<Ones, ConfigError> {
        let mut ones = Ones::default();
        params.iter().try_for_each(|(key, value)| ones.config(Param { key, value: OsStr::new(value) }))?;
        Ok(ones)
    }

    #[test]
    fn every_byte_is_the_one_that_was_given() {
        for (params, byte) in [(&[][..], 0xff), (&[("byte", "0x55")], 0x55), (&[("byte", "0")], 0)] {
            let ones = ones(params).unwrap();
            let mut buffer = Buffer::new(600);
            let span = Span::new(50, 500);
            ones.read(&mut buffer, span, 12345);
            assert!(buffer.bytes(span).iter().all(|read| *read == byte));
        }
    }

    #[test]
    fn the_whole_disk_is_allocated() {
        for (byte, zero) in [("1", false), ("0", true)] {
            let ones = ones(&[("size", "1G"), ("byte", byte)]).unwrap();
            let extents = ones.extents(512, 1024, Flags::NONE);
            let [extent] = extents.as_slice() else { panic!("{extents:?}") };
            assert!(!extent.hole && extent.zero == zero && extent.end() == 1 << 30);
        }
    }

    #[test]
    fn a_byte_has_8_bits() {
        let error = ones(&[("byte", "256")]).err().unwrap().to_string();
        assert_eq!(error, "byte=256: is not a whole number from 0 to 255");
    }
}
