//! Reads what methods print into types.

use rbdkit_plugin_api::{BlockSizes, ExportEntry, Extents, Support, units};

/// Text without the newline at its end, if there is one.
pub(crate) fn line(text: &[u8]) -> String {
    String::from_utf8_lossy(text.strip_suffix(b"\n").unwrap_or(text)).into_owned()
}

/// A size, possibly after blanks.
pub(crate) fn size(text: &str) -> Option<u64> {
    units::parse_size(text.trim_start()).ok()
}

/// `none`, `emulate` or `native`.
pub(crate) fn support(word: &str) -> Option<Support> {
    let words = [("none", Support::None), ("emulate", Support::Emulate), ("native", Support::Native)];
    words.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(word)).map(|(_, support)| support)
}

/// Three sizes. Three zeroes mean no constraints. Further words are ignored.
pub(crate) fn block_sizes(text: &str) -> Option<Option<BlockSizes>> {
    let mut words = text.split_ascii_whitespace().map(|word| size(word).and_then(|size| u32::try_from(size).ok()));
    let mut next = || words.next().flatten();
    let sizes = BlockSizes { minimum: next()?, preferred: next()?, maximum: next()? };
    let nothing = sizes.minimum == 0 && sizes.preferred == 0 && sizes.maximum == 0;
    Some((!nothing).then_some(sizes))
}

/// A list of exports in one of its three forms. Each line is an entry, so an empty line is the
/// export with the empty name.
///
/// # Errors
/// What is wrong with the list.
pub(crate) fn exports(text: &[u8]) -> Result<Vec<ExportEntry>, ExportsError> {
    let text = str::from_utf8(text).map_err(|error| {
        let line = text[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        ExportsError::NotUtf8 { line }
    })?;
    let mut lines: Vec<&str> = text.split_terminator('\n').collect();
    let entry = |name: &str, description: Option<&str>| ExportEntry {
        name: name.to_string(),
        description: description.filter(|text| !text.is_empty()).map(str::to_string),
    };
    Ok(match lines.first() {
        Some(&"INTERLEAVED") => lines[1..].chunks(2).map(|pair| entry(pair[0], pair.get(1).copied())).collect(),
        Some(&"NAMES+DESCRIPTIONS") => {
            let lines = &lines[1..];
            let names = lines.len().div_ceil(2);
            let descriptions = &lines[names..];
            lines[..names].iter().enumerate().map(|(i, name)| entry(name, descriptions.get(i).copied())).collect()
        }
        mode => {
            if mode == Some(&"NAMES") {
                lines.remove(0);
            }
            lines.into_iter().map(|name| entry(name, None)).collect()
        }
    })
}

/// What is wrong with the exports that a script prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ExportsError {
    #[error("line {line} of the exports is not UTF-8, so it cannot be the name of an export")]
    NotUtf8 { line: usize },
}

/// What is wrong with the extents that a script prints.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ExtentsError {
    #[error("extents: cannot parse {line:?}: expecting OFFSET LENGTH [TYPE]")]
    Unreadable { line: String },
    #[error("extents: must be in ascending order and contiguous: {line:?} should begin at {expected}")]
    NotContiguous { line: String, expected: u64 },
    #[error("extents: the first begins at {first}, after {offset}")]
    BeginsLate { first: u64, offset: u64 },
    #[error("extents: there is none at {offset}")]
    Missing { offset: u64 },
}

/// Reads lines of `OFFSET LENGTH [TYPE]`, with comments after `#` and empty lines, into the answer
/// for `offset..offset + length`. The lines may begin before that range and go on after it. The
/// last extent may run on beyond it, where the gate cuts it at the size.
pub(crate) fn extents(text: &[u8], offset: u64, length: u64) -> Result<Extents, ExtentsError> {
    let text = line(text);
    let mut answer = Extents::new(offset, length);
    let mut expected = None;
    let limit = offset.saturating_add(length);
    for line in text.split('\n').map(without_comment).filter(|line| !line.is_empty()) {
        let cannot = || ExtentsError::Unreadable { line: line.to_string() };
        let mut words = line.split([' ', '\t']).filter(|word| !word.is_empty());
        let at = words.next().and_then(size).ok_or_else(cannot)?;
        let len = words.next().and_then(size).ok_or_else(cannot)?;
        let (hole, zero) = extent_type(words.next().unwrap_or("0"));
        if len == 0 {
            continue;
        }
        match expected {
            Some(expected) if at != expected => {
                return Err(ExtentsError::NotContiguous { line: line.to_string(), expected });
            }
            None if at > offset => return Err(ExtentsError::BeginsLate { first: at, offset }),
            _ => {}
        }
        let end = at.checked_add(len).ok_or_else(cannot)?;
        expected = Some(end);
        let from = at.max(offset);
        if from < end && !answer.push(end - from, hole, zero) || end >= limit {
            break;
        }
    }
    if answer.as_slice().is_empty() {
        return Err(ExtentsError::Missing { offset });
    }
    Ok(answer)
}

fn without_comment(line: &str) -> &str {
    line.split('#').next().unwrap_or_default().trim()
}

/// Whether an extent is a hole and whether it reads as zero: the two lowest bits of a number, or a
/// text that contains the words.
fn extent_type(word: &str) -> (bool, bool) {
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    match word[..digits].parse::<u64>() {
        Ok(bits) => (bits & 1 != 0, bits & 2 != 0),
        Err(_) => (word.contains("hole"), word.contains("zero")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rbdkit_plugin_api::Extent;

    fn names(text: &str) -> Vec<(String, Option<String>)> {
        exports(text.as_bytes()).unwrap().into_iter().map(|entry| (entry.name, entry.description)).collect()
    }

    fn named(list: &[(&str, Option<&str>)]) -> Vec<(String, Option<String>)> {
        list.iter().map(|(name, text)| (name.to_string(), text.map(str::to_string))).collect()
    }

    #[test]
    fn lists_of_exports_come_in_three_forms() {
        for (text, expected) in [
            ("", named(&[])),
            ("\n", named(&[("", None)])),
            ("\n\n", named(&[("", None), ("", None)])),
            ("a", named(&[("a", None)])),
            ("NAMES\n", named(&[])),
            ("NAMES\n\n", named(&[("", None)])),
            ("INTERLEAVED\n", named(&[])),
            ("INTERLEAVED\n\n", named(&[("", None)])),
            ("INTERLEAVED\n\n\n", named(&[("", None)])),
            ("NAMES+DESCRIPTIONS\n", named(&[])),
            ("NAMES+DESCRIPTIONS\n\nthe disk\n", named(&[("", Some("the disk"))])),
            ("NAMES\na\nb\n", named(&[("a", None), ("b", None)])),
            ("names\na\n\nb\n", named(&[("names", None), ("a", None), ("", None), ("b", None)])),
            ("INTERLEAVED\na\nda\nb\n", named(&[("a", Some("da")), ("b", None)])),
            ("INTERLEAVED\na\n\nb\ndb\n", named(&[("a", None), ("b", Some("db"))])),
            ("NAMES+DESCRIPTIONS\na\nb\nda\ndb\n", named(&[("a", Some("da")), ("b", Some("db"))])),
            ("NAMES+DESCRIPTIONS\na\nb\nda\n", named(&[("a", Some("da")), ("b", None)])),
        ] {
            assert_eq!(names(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_list_that_is_not_utf_8_is_refused_with_its_line() {
        assert_eq!(exports(b"a\nb\n\xff\nc\n"), Err(ExportsError::NotUtf8 { line: 3 }));
    }

    #[test]
    fn the_manuals_example_of_extents_is_read() {
        let map = b"0  1M\n1M 9M  hole,zero\n";
        let answer = extents(map, 0, 10 << 20).unwrap();
        let data = Extent { offset: 0, length: 1 << 20, hole: false, zero: false };
        let hole = Extent { offset: 1 << 20, length: 9 << 20, hole: true, zero: true };
        assert_eq!(answer.as_slice(), [data, hole]);
        // A script may always print its whole map.
        let answer = extents(map, 2 << 20, 4096).unwrap();
        assert_eq!(answer.as_slice(), [Extent { offset: 2 << 20, length: 8 << 20, hole: true, zero: true }]);
    }

    #[test]
    fn comments_and_empty_lines_between_extents_do_not_count() {
        let map = b"# the map\n0 1M # data\n\n \t\n1M 9M hole#, not zero\n#end";
        let answer = extents(map, 0, 10 << 20).unwrap();
        let data = Extent { offset: 0, length: 1 << 20, hole: false, zero: false };
        assert_eq!(answer.as_slice(), [data, Extent { offset: 1 << 20, length: 9 << 20, hole: true, zero: false }]);
    }

    #[test]
    fn types_of_extents_are_numbers_or_words() {
        for (word, expected) in [
            ("0", (false, false)),
            ("1", (true, false)),
            ("2", (false, true)),
            ("3", (true, true)),
            ("4", (false, false)),
            ("hole", (true, false)),
            ("zero,hole", (true, true)),
            ("bogus", (false, false)),
        ] {
            assert_eq!(extent_type(word), expected, "{word}");
        }
    }

    #[test]
    fn bad_extents_are_refused() {
        for text in ["", "\n", "0\n", "# 0 10M\n", "0 5M\n6M 4M\n", "1M 9M\n", "x 1M\n", "0 -1\n", "0 0\n"] {
            assert!(extents(text.as_bytes(), 0, 10 << 20).is_err(), "{text:?}");
        }
    }

    #[test]
    fn block_sizes_are_three_sizes() {
        let sizes = BlockSizes { minimum: 512, preferred: 4096, maximum: 1 << 20 };
        assert_eq!(block_sizes("512 4K 1M\n"), Some(Some(sizes)));
        assert_eq!(block_sizes("0 0 0 5"), Some(None));
        for text in ["", "512 4K", "512 4096 -1", "512 4096 8G"] {
            assert_eq!(block_sizes(text), None, "{text}");
        }
    }
}
