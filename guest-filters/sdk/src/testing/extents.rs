//! Lists of extents, and the rules that an answer has to keep.

use crate::Extent;

/// Appends an extent, and joins it with the one before if both are of one type.
pub(super) fn push(list: &mut Vec<Extent>, extent: Extent) {
    match list.last_mut() {
        Some(last) if last.kind == extent.kind && last.offset + last.length == extent.offset => {
            last.length += extent.length;
        }
        _ => list.push(extent),
    }
}

/// Checks a filter's answer, and cuts it as the host does: at the end of the export, with
/// `one` at the end of the range, and without the extents that begin beyond the range.
///
/// # Errors
/// Which rule the answer breaks.
pub(super) fn checked(
    list: Vec<Extent>,
    (offset, length): (u64, u64),
    size: u64,
    one: bool,
) -> Result<Vec<Extent>, String> {
    let end = offset + length;
    let mut at = offset;
    for extent in &list {
        if extent.offset != at || extent.length == 0 {
            return Err(format!("the extent {extent:?} does not begin at {at}, or is empty"));
        }
        at = at.checked_add(extent.length).ok_or_else(|| format!("the extent {extent:?} ends beyond 2^64"))?;
    }
    if list.is_empty() {
        return Err("there is no extent".to_string());
    }
    let limit = if one { end } else { size };
    let cut = |mut extent: Extent| {
        extent.length = extent.length.min(limit.saturating_sub(extent.offset));
        extent
    };
    let count = if one { 1 } else { usize::MAX };
    Ok(list.into_iter().filter(|extent| extent.offset < end).map(cut).take(count).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ExtentType;

    fn extent(offset: u64, length: u64) -> Extent {
        Extent { offset, length, kind: ExtentType::empty() }
    }

    #[test]
    fn an_answer_with_a_gap_or_without_an_extent_is_refused() {
        assert!(checked(vec![extent(1, 4)], (0, 8), 8, false).is_err());
        assert!(checked(vec![extent(0, 4), extent(5, 4)], (0, 8), 8, false).is_err());
        assert!(checked(vec![], (0, 8), 8, false).is_err());
    }

    #[test]
    fn an_answer_is_cut_at_the_end_of_the_export_or_of_the_range() {
        assert_eq!(checked(vec![extent(0, 99)], (0, 8), 16, false), Ok(vec![extent(0, 16)]));
        assert_eq!(checked(vec![extent(0, 99)], (0, 8), 16, true), Ok(vec![extent(0, 8)]));
        assert_eq!(checked(vec![extent(0, 8), extent(8, 8)], (0, 8), 16, false), Ok(vec![extent(0, 8)]));
    }
}
