//! The size that the disk gets.

/// The largest size in bytes that a layer can have.
const MAX_SIZE: u64 = i64::MAX as u64;

/// What changes the size, in the order in which it is applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizing {
    /// The size, whatever the layer below has.
    pub truncate: Option<u64>,
    /// Rounds up to a multiple of it.
    pub round_up: Option<u64>,
    /// Rounds down to a multiple of it.
    pub round_down: Option<u64>,
}

impl Sizing {
    /// The size over a layer of `below` bytes.
    ///
    /// # Errors
    /// One line for the log: the size is too large.
    pub fn size(self, below: u64) -> Result<u64, String> {
        let mut size = self.truncate.unwrap_or(below);
        if let Some(unit) = self.round_up {
            size = size
                .checked_next_multiple_of(unit)
                .filter(|size| *size <= MAX_SIZE)
                .ok_or_else(|| format!("round-up={unit}: the size of {size} bytes becomes larger than {MAX_SIZE}"))?;
        }
        if let Some(unit) = self.round_down {
            size -= size % unit;
        }
        Ok(size)
    }
}

/// The part of a request that the layer below has: its length. The rest lies beyond its end.
pub fn length_below(offset: u64, length: u64, below: u64) -> u64 {
    below.saturating_sub(offset).min(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_set_then_rounded_up_then_rounded_down() {
        let sizing = |truncate, round_up, round_down| Sizing { truncate, round_up, round_down };
        assert_eq!(sizing(None, None, None).size(1000), Ok(1000));
        assert_eq!(sizing(Some(0), None, None).size(1000), Ok(0));
        assert_eq!(sizing(Some(700), Some(512), None).size(1000), Ok(1024));
        assert_eq!(sizing(None, None, Some(512)).size(1000), Ok(512));
        assert_eq!(sizing(None, Some(512), Some(1000)).size(1001), Ok(1000));
        assert_eq!(sizing(None, Some(512), None).size(1024), Ok(1024));
        assert_eq!(sizing(None, Some(700), None).size(1), Ok(700));
    }

    #[test]
    fn a_size_beyond_the_largest_is_refused() {
        let wrong = Sizing { round_up: Some(7 << 60), ..Sizing::default() }.size(MAX_SIZE);
        assert!(wrong.unwrap_err().starts_with("round-up=8070450532247928832: the size of "));
        assert_eq!(Sizing { round_up: Some(7 << 60), ..Sizing::default() }.size(1), Ok(7 << 60));
    }

    #[test]
    fn a_request_is_cut_where_the_layer_below_ends() {
        assert_eq!(length_below(0, 10, 100), 10);
        assert_eq!(length_below(95, 10, 100), 5);
        assert_eq!(length_below(100, 10, 100), 0);
        assert_eq!(length_below(u64::MAX, 10, 100), 0);
    }
}
