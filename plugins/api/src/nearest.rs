//! Finds the name that a misspelt word probably means.

/// The name that `given` is probably a misspelling of, if one is close enough: at most one edit for
/// every three letters, and one edit for shorter words.
pub fn nearest<'a>(given: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let within = (given.len() / 3).max(1).min(given.len());
    names
        .into_iter()
        .map(|name| (distance(given, name), name))
        .filter(|(distance, _)| *distance <= within)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// How many letters have to be inserted, removed, changed or swapped with their neighbour to turn
/// `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    // The work grows with the product of the lengths. Names are shorter than this.
    if a.len() > 64 || b.len() > 64 {
        return usize::MAX;
    }
    let (a, b) = (a.as_bytes(), b.as_bytes());
    // `rows[i][j]` is the distance of the first `i` letters of `a` to the first `j` of `b`.
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = changed.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_are_found_and_others_are_not() {
        assert_eq!(nearest("memroy", ["file", "memory", "null"]), Some("memory"));
        assert_eq!(nearest("cwo", ["cache", "cow"]), Some("cow"));
        assert_eq!(nearest("readahaed", ["readahead", "cow"]), Some("readahead"));
        assert_eq!(nearest("curl", ["file", "memory", "null"]), None);
        assert_eq!(nearest("", ["sh"]), None);
    }
}
