//! The part of the layer below that is served.

/// `size` bytes from `offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Where it starts below.
    pub offset: u64,
    /// How long it is.
    pub size: u64,
}

impl Window {
    /// The part of `real` bytes that starts at `offset` and is `range` long, or reaches to the end.
    ///
    /// # Errors
    /// A line for the log if that is not within.
    pub fn new(real: u64, offset: u64, range: Option<u64>) -> Result<Window, String> {
        let Some(rest) = real.checked_sub(offset) else {
            return Err(format!("offset={offset}: beyond the end of the layer below, which has {real} bytes"));
        };
        let size = range.unwrap_or(rest);
        if size > rest {
            return Err(format!(
                "range={size}: with offset={offset} it ends beyond the layer below, which has {real} bytes"
            ));
        }
        Ok(Window { offset, size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_reaches_to_the_end_or_is_as_long_as_asked_for() {
        assert_eq!(Window::new(100, 0, None), Ok(Window { offset: 0, size: 100 }));
        assert_eq!(Window::new(100, 30, None), Ok(Window { offset: 30, size: 70 }));
        assert_eq!(Window::new(100, 30, Some(20)), Ok(Window { offset: 30, size: 20 }));
        assert_eq!(Window::new(100, 100, None), Ok(Window { offset: 100, size: 0 }));
        assert_eq!(Window::new(100, 0, Some(100)), Ok(Window { offset: 0, size: 100 }));
    }

    #[test]
    fn what_ends_beyond_the_layer_below_is_refused_even_where_the_sum_overflows() {
        assert!(Window::new(100, 101, None).is_err());
        assert!(Window::new(100, 50, Some(51)).is_err());
        assert!(Window::new(100, 1, Some(u64::MAX)).is_err());
        assert!(Window::new(100, u64::MAX, Some(u64::MAX)).is_err());
    }
}
