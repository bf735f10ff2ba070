//! The random plugin: a disk of random bytes that follow from a seed.
//!
//! Each byte is computed from the seed and its offset alone, so any part of the disk can be read
//! without what comes before it. The bytes are those of nbdkit's plugin for the same seed.
#![forbid(unsafe_code)]

use std::convert::Infallible;

use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{
    Buffer, Capabilities, ConfigError, Errno, Error, Param, PluginInfo, Result, Span, Support, ThreadModel,
};
use rbdkit_synthetic::{Content, Generator, Plan, Seed, Synthetic, check_written, required_size};

/// What the registry needs to know.
pub const INFO: PluginInfo = PluginInfo {
    name: "random",
    longname: "rbdkit random plugin",
    description: "A disk of random bytes, which checks what is written against them",
    params,
    other_keys: None,
    max_thread_model: ThreadModel::Parallel,
    make: || Box::new(Synthetic::<Random>::default()),
};

fn params() -> Vec<ParamSpec> {
    vec![ParamSpec::size("size").magic().required().help("Size of the disk"), Seed::spec()]
}

#[derive(Default)]
struct Random {
    size: Option<u64>,
    seed: Seed,
}

impl Plan for Random {
    type Content = RandomDisk;

    const FUNCTIONS: &'static [&'static str] =
        &["can_write", "can_multi_conn", "can_cache", "can_trim", "can_zero", "pwrite", "trim", "zero"];

    fn config(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        match param.key {
            "size" => self.size = Some(param.size()?),
            "seed" => self.seed.set(param)?,
            _ => return Err(param.unknown("random")),
        }
        Ok(())
    }

    fn content(&self) -> Result<RandomDisk, ConfigError> {
        Ok(RandomDisk { size: required_size(self.size, "random")?, seed: self.seed.get()? })
    }
}

struct RandomDisk {
    size: u64,
    seed: u64,
}

impl RandomDisk {
    /// The byte at an offset: the third number of a generator whose seed is `seed + offset`.
    fn byte(&self, offset: u64) -> u8 {
        let mut generator = Generator::new(self.seed.wrapping_add(offset));
        generator.next_u64();
        generator.next_u64();
        generator.next_u64() as u8
    }

    fn fill(&self, bytes: &mut [u8], offset: u64) {
        for (byte, at) in bytes.iter_mut().zip(offset..) {
            *byte = self.byte(at);
        }
    }
}

impl Content for RandomDisk {
    /// A byte takes some 10 ns, so 16 KiB take less than 200 us.
    const AT_ONCE: u32 = 16 << 10;

    fn size(&self) -> u64 {
        self.size
    }

    fn capabilities(&self) -> Capabilities {
        let nothing = Capabilities { fast_zero: false, flush: false, fua: Support::None, ..Capabilities::NATIVE };
        Capabilities { extents: false, ..nothing }
    }

    fn read(&self, buffer: &mut Buffer, span: Span, offset: u64) {
        let Ok(()) = buffer.fill_with(span, |bytes| {
            self.fill(bytes, offset);
            Ok::<_, Infallible>(())
        });
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        check_written(bytes, offset, |expected, offset| self.fill(expected, offset))
    }

    fn trim(&self, _: u64, _: u64) -> Result<()> {
        Err(not_sparse())
    }

    fn zero(&self, _: u64, _: u64) -> Result<()> {
        Err(not_sparse())
    }
}

fn not_sparse() -> Error {
    Error::new(Errno::Eio, "attempt to trim or zero non-sparse random disk")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_of_the_disk_can_be_read_alone() {
        let disk = RandomDisk { size: i64::MAX as u64, seed: 42 };
        for offset in [0, 1, 511, 1 << 40, i64::MAX as u64 - 4000] {
            let (mut whole, mut part) = ([0; 4000], [0; 100]);
            disk.fill(&mut whole, offset);
            disk.fill(&mut part, offset + 1234);
            assert_eq!(part, whole[1234..1334]);
            assert!((0..=255).filter(|byte| whole.contains(byte)).count() > 240);
        }
    }

    #[test]
    fn the_bytes_of_a_seed_are_always_the_same() {
        // Of nbdkit 1.32: nbdkit random 16 seed=42.
        let mut bytes = [0; 16];
        RandomDisk { size: 16, seed: 42 }.fill(&mut bytes, 0);
        assert_eq!(bytes, [161, 103, 48, 226, 28, 182, 248, 117, 13, 198, 174, 1, 79, 42, 70, 228]);
    }

    #[test]
    fn what_differs_cannot_be_written() {
        let disk = RandomDisk { size: 1 << 20, seed: 7 };
        let mut bytes = vec![0; 10_000];
        disk.fill(&mut bytes, 777);
        disk.write(&bytes, 777).unwrap();
        assert_eq!(disk.write(&bytes, 778).unwrap_err().errno(), Errno::Eio);
        assert_eq!(disk.trim(0, 512).unwrap_err().errno(), Errno::Eio);
        assert_eq!(disk.zero(0, 512).unwrap_err().errno(), Errno::Eio);
    }
}
