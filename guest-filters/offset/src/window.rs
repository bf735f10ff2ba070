//! The part of the layer below that is served.

/// A window of `size` bytes from `offset` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Where it starts in the layer below, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub size: u64,
}

impl Window {
    /// The window into a layer of `size_below` bytes that starts at `offset` and is `range` bytes
    /// long, or reaches to the end.
    ///
    /// # Errors
    /// One line for the log if the window does not lie within the layer.
    pub fn new(size_below: u64, offset: u64, range: Option<u64>) -> Result<Window, String> {
        let Some(rest) = size_below.checked_sub(offset) else {
            return Err(format!("offset={offset}: beyond the end of the layer below, which has {size_below} bytes"));
        };
        let size = range.unwrap_or(rest);
        if size > rest {
            return Err(format!(
                "range={size}: with offset={offset} the part ends beyond the layer below, which has {size_below} bytes"
            ));
        }
        Ok(Window { offset, size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_reaches_to_the_end_or_is_as_long_as_range_says() {
        assert_eq!(Window::new(100, 0, None), Ok(Window { offset: 0, size: 100 }));
        assert_eq!(Window::new(100, 30, None), Ok(Window { offset: 30, size: 70 }));
        assert_eq!(Window::new(100, 30, Some(20)), Ok(Window { offset: 30, size: 20 }));
        assert_eq!(Window::new(100, 100, None), Ok(Window { offset: 100, size: 0 }));
        assert_eq!(Window::new(100, 0, Some(100)), Ok(Window { offset: 0, size: 100 }));
    }

    #[test]
    fn a_window_that_ends_beyond_the_layer_below_is_refused_even_if_the_sum_overflows() {
        assert!(Window::new(100, 101, None).is_err());
        assert!(Window::new(100, 50, Some(51)).is_err());
        assert!(Window::new(100, 1, Some(u64::MAX)).is_err());
        assert!(Window::new(100, u64::MAX, Some(u64::MAX)).is_err());
    }
}
