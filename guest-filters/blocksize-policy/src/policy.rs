//! Block sizes: which are advertised, and which requests keep to them.

/// The smallest, the best and the largest request, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// A power of two up to [`LARGEST_MINIMUM`].
    pub minimum: u32,
    /// A power of two within [`PREFERRED`].
    pub preferred: u32,
    /// A multiple of the minimum, or `u32::MAX` for no limit.
    pub maximum: u32,
}

/// What a plugin is taken to want that states no block sizes.
const UNSTATED: Sizes = Sizes { minimum: 1, preferred: 4096, maximum: u32::MAX };

/// The NBD protocol's limit for the minimum, in bytes.
const LARGEST_MINIMUM: u64 = 64 << 10;

/// The NBD protocol's limits for the preferred size, in bytes.
const PREFERRED: std::ops::RangeInclusive<u64> = 512..=32 << 20;

/// What the operator chose. None leaves it to the layer below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    minimum: Option<u32>,
    preferred: Option<u32>,
    maximum: Option<u32>,
}

impl Chosen {
    /// Checks the values of the parameters, where 0 means that it was not given.
    ///
    /// # Errors
    /// One line for the user that names the parameter.
    pub fn new(minimum: u64, preferred: u64, maximum: u64) -> Result<Chosen, String> {
        let wrong = |what: &str, size: u64, why: String| Err(format!("blocksize-{what}={size}: {why}"));
        if minimum != 0 && (!minimum.is_power_of_two() || minimum > LARGEST_MINIMUM) {
            return wrong("minimum", minimum, "is not a power of two up to 64k".to_string());
        }
        if preferred != 0 && (!preferred.is_power_of_two() || !PREFERRED.contains(&preferred)) {
            return wrong("preferred", preferred, "is not a power of two from 512 to 32M".to_string());
        }
        let Ok(limit) = u32::try_from(maximum) else {
            return wrong("maximum", maximum, format!("is larger than {}, which stands for no limit", u32::MAX));
        };
        if minimum != 0 && limit != u32::MAX && !maximum.is_multiple_of(minimum) {
            return wrong("maximum", maximum, format!("is not a multiple of blocksize-minimum={minimum}"));
        }
        if preferred != 0 && minimum > preferred {
            return wrong("minimum", minimum, format!("is larger than blocksize-preferred={preferred}"));
        }
        if maximum != 0 && preferred > maximum {
            return wrong("preferred", preferred, format!("is larger than blocksize-maximum={maximum}"));
        }
        if maximum != 0 && minimum > maximum {
            return wrong("minimum", minimum, format!("is larger than blocksize-maximum={maximum}"));
        }
        let given = |size: u64| u32::try_from(size).ok().filter(|size| *size != 0);
        Ok(Chosen { minimum: given(minimum), preferred: given(preferred), maximum: given(maximum) })
    }

    /// Whether nothing was chosen.
    pub fn is_nothing(&self) -> bool {
        *self == Chosen::default()
    }

    /// The sizes over a layer that states `below`. What was not chosen is that of the layer below.
    ///
    /// # Errors
    /// One line for the log if the result contradicts itself.
    pub fn over(&self, below: Option<Sizes>) -> Result<Sizes, String> {
        let below = below.unwrap_or(UNSTATED);
        let minimum = self.minimum.unwrap_or(below.minimum);
        let preferred = self.preferred.unwrap_or(below.preferred);
        let maximum = self.maximum.unwrap_or(below.maximum);
        let fits = maximum == u32::MAX || maximum.is_multiple_of(minimum.max(1));
        if minimum > preferred || preferred > maximum || !fits {
            return Err(format!(
                "the block sizes contradict each other: minimum {minimum}, preferred {preferred}, maximum {maximum}. \
                 Set blocksize-minimum, blocksize-preferred and blocksize-maximum"
            ));
        }
        Ok(Sizes { minimum, preferred, maximum })
    }
}

/// Whether a request carries data. Only then the maximum holds for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    Data,
    Nothing,
}

impl Sizes {
    /// The length of a request, rounded up to the minimum if it ends with the export. An export
    /// whose size is not a multiple of the minimum has bytes that no other request can reach.
    pub fn length_within_whole_blocks(&self, offset: u64, length: u64, size: u64) -> u64 {
        match offset.checked_add(length) == Some(size) {
            true => length.next_multiple_of(self.minimum.max(1).into()),
            false => length,
        }
    }

    /// Whether a request keeps to the sizes.
    ///
    /// # Errors
    /// What is wrong, for the log.
    pub fn check(&self, offset: u64, length: u64, carries: Carries) -> Result<(), String> {
        let minimum = u64::from(self.minimum.max(1));
        if length < minimum {
            return Err(format!("{length} bytes are less than the minimum {minimum}"));
        }
        if !offset.is_multiple_of(minimum) {
            return Err(format!("the offset {offset} is not a multiple of the minimum {minimum}"));
        }
        if !length.is_multiple_of(minimum) {
            return Err(format!("{length} bytes are not a multiple of the minimum {minimum}"));
        }
        if carries == Carries::Data && length > self.maximum.into() {
            return Err(format!("{length} bytes are more than the maximum {}", self.maximum));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_chosen_is_that_of_the_layer_below() {
        let chosen = Chosen::new(0, 32 << 10, 0).unwrap();
        assert_eq!(chosen.over(None), Ok(Sizes { minimum: 1, preferred: 32 << 10, maximum: u32::MAX }));
        let below = Sizes { minimum: 512, preferred: 4096, maximum: 1 << 20 };
        assert_eq!(chosen.over(Some(below)), Ok(Sizes { preferred: 32 << 10, ..below }));
        let all = Chosen::new(4096, 8192, 16384).unwrap();
        assert_eq!(all.over(Some(below)), Ok(Sizes { minimum: 4096, preferred: 8192, maximum: 16384 }));
        assert!(Chosen::new(0, 0, 0).unwrap().is_nothing() && !all.is_nothing());
    }

    #[test]
    fn sizes_that_contradict_each_other_are_refused() {
        assert!(Chosen::new(64 << 10, 0, 0).unwrap().over(None).is_err());
        assert!(Chosen::new(0, 0, 512).unwrap().over(None).is_err());
        let below = Sizes { minimum: 512, preferred: 4096, maximum: 1 << 20 };
        assert!(Chosen::new(0, 0, 10_000).unwrap().over(Some(below)).is_err(), "not a multiple of the minimum");
        for (minimum, preferred, maximum) in [
            (3, 0, 0),
            (128 << 10, 0, 0),
            (0, 256, 0),
            (0, 3000, 0),
            (0, 64 << 20, 0),
            (0, 0, 8 << 30),
            (512, 0, 1000),
            (64 << 10, 4096, 0),
            (0, 4096, 512),
            (64 << 10, 0, 4096),
        ] {
            let error = Chosen::new(minimum, preferred, maximum).unwrap_err();
            assert!(error.starts_with("blocksize-"), "{error}");
        }
        assert!(Chosen::new(512, 0, u32::MAX.into()).is_ok());
    }

    #[test]
    fn the_last_request_of_an_export_counts_as_whole_blocks() {
        let sizes = Sizes { minimum: 512, preferred: 4096, maximum: 8192 };
        let length = |offset, length| sizes.length_within_whole_blocks(offset, length, 1500);
        assert_eq!((length(1024, 476), length(512, 988), length(0, 1500)), (512, 1024, 1536));
        assert_eq!((length(1024, 475), length(1499, 1), length(0, 1)), (475, 512, 1));
        assert_eq!(sizes.length_within_whole_blocks(0, 1024, 1024), 1024);
        assert_eq!(UNSTATED.length_within_whole_blocks(7, 3, 10), 3);
    }

    #[test]
    fn a_request_is_checked_against_minimum_alignment_and_with_data_maximum() {
        let sizes = Sizes { minimum: 512, preferred: 4096, maximum: 8192 };
        let check = |offset, length| sizes.check(offset, length, Carries::Data);
        assert!(check(0, 512).is_ok() && check(512, 8192).is_ok());
        assert_eq!(check(0, 1).unwrap_err(), "1 bytes are less than the minimum 512");
        assert_eq!(check(1, 512).unwrap_err(), "the offset 1 is not a multiple of the minimum 512");
        assert_eq!(check(0, 513).unwrap_err(), "513 bytes are not a multiple of the minimum 512");
        assert_eq!(check(0, 16384).unwrap_err(), "16384 bytes are more than the maximum 8192");
        assert!(sizes.check(0, 1 << 40, Carries::Nothing).is_ok());
        assert!(UNSTATED.check(1, 3, Carries::Data).is_ok());
    }
}
