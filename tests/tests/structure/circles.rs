//! Circles in a graph of files.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::modules::Imports;

/// The shortest circle through each file that is in one, each once, shortest first. A circle is
/// written `a.rs -> b.rs (names) -> a.rs (names)`: the names are those that the file before takes
/// from it.
pub fn circles(imports: &Imports) -> Vec<String> {
    let mut found = BTreeSet::new();
    for file in imports.keys() {
        if let Some(circle) = shortest(imports, file) {
            let least = circle.iter().enumerate().min_by_key(|(_, file)| **file).map_or(0, |(nth, _)| nth);
            found.insert((circle.len(), [&circle[least..], &circle[..least]].concat()));
        }
    }
    found.iter().map(|(_, circle)| shown(imports, circle)).collect()
}

/// The files of the shortest way from `start` back to it.
fn shortest<'a>(imports: &'a Imports, start: &'a str) -> Option<Vec<&'a str>> {
    let mut before: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(file) = queue.pop_front() {
        for next in imports.get(file).into_iter().flat_map(BTreeMap::keys) {
            if next == start {
                let mut way = vec![file];
                while let Some(previous) = before.get(way[way.len() - 1]) {
                    way.push(previous);
                }
                way.reverse();
                return Some(way);
            }
            if !before.contains_key(next.as_str()) {
                before.insert(next, file);
                queue.push_back(next);
            }
        }
    }
    None
}

fn shown(imports: &Imports, circle: &[&str]) -> String {
    let mut text = circle[0].to_owned();
    for (nth, file) in circle.iter().enumerate() {
        let next = circle[(nth + 1) % circle.len()];
        let names: Vec<&str> = imports[*file][next].iter().map(String::as_str).collect();
        text.push_str(&format!(" -> {next} ({})", names.join(", ")));
    }
    text
}
