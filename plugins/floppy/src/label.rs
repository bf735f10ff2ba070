//! The label of the file system.

/// The label if the user gives none, which is nbdkit's.
pub(crate) const DEFAULT_LABEL: &str = "NBDKITFLOPY";

/// A label, padded with blanks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label(pub(crate) [u8; 11]);

impl Default for Label {
    fn default() -> Label {
        Label(*b"NBDKITFLOPY")
    }
}

impl Label {
    /// None: it is too long or not ASCII.
    pub(crate) fn new(text: &str) -> Option<Label> {
        if text.len() > 11 || !text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
            return None;
        }
        let mut label = [b' '; 11];
        label[..text.len()].copy_from_slice(text.as_bytes());
        Some(Label(label))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_up_to_11_characters() {
        assert_eq!(Label::new("a b"), Some(Label(*b"a b        ")));
        assert_eq!(Label::new(DEFAULT_LABEL), Some(Label::default()));
        assert_eq!((Label::new("123456789012"), Label::new("ä"), Label::new("a\n")), (None, None, None));
    }
}
