//! The parameter `seed=`: the same seed gives the same disk.

use rbdkit_plugin_api::schema::ParamSpec;
use rbdkit_plugin_api::{ConfigError, Param, units};

/// A seed of 32 bits, as nbdkit's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seed(Option<u32>);

impl Seed {
    /// The declaration of the parameter.
    pub fn spec() -> ParamSpec {
        ParamSpec::string("seed")
            .placeholder("SEED")
            .help("A number from 0 to 4294967295: the same seed gives the same disk")
    }

    /// Takes the parameter.
    ///
    /// # Errors
    /// One line: it is not a number of 32 bits.
    pub fn set(&mut self, param: Param<'_>) -> Result<(), ConfigError> {
        let number = units::parse_whole(param.text()?, u32::MAX.into()).map_err(|wrong| param.error(wrong))?;
        self.0 = Some(number as u32);
        Ok(())
    }

    /// The seed that was given, or one of the system's random numbers.
    ///
    /// # Errors
    /// One line: the system has none.
    pub fn get(self) -> Result<u64, ConfigError> {
        match self.0 {
            Some(seed) => Ok(seed.into()),
            None => getrandom::u32()
                .map(u64::from)
                .map_err(|error| ConfigError::new(format!("there is no random seed: {error} (give seed=NUMBER)"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn a_seed_is_a_number_of_32_bits() {
        let mut seed = Seed::default();
        let mut set = |value: &str| seed.set(Param { key: "seed", value: OsStr::new(value) }).map(|()| seed.get());
        assert_eq!(set("42").unwrap().unwrap(), 42);
        assert_eq!(set("0xffffffff").unwrap().unwrap(), 0xffff_ffff);
        for wrong in ["4294967296", "-1", "x", ""] {
            let error = set(wrong).unwrap_err().to_string();
            assert_eq!(error, format!("seed={wrong}: is not a whole number from 0 to 4294967295"));
        }
        let drawn: Vec<u64> = (0..4).map(|_| Seed::default().get().unwrap()).collect();
        assert!(drawn.iter().any(|seed| *seed != drawn[0]), "{drawn:?}");
    }
}
