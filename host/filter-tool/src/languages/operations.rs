//! What is written is what runs: compares the operations that a filter's source implements with
//! those that its component exports.
//!
//! An operation that the source implements and the component does not export would never be called,
//! and nothing else would say so.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Interfaces of the contract, each with its functions.
pub type Interfaces = BTreeMap<String, Vec<String>>;

/// Compares what is exported with what is implemented. `exported` are the interfaces that the
/// component has; `all` are those that a filter can have. `is_implemented` says whether the source
/// has a function, by the names of its interface and of itself. `world` is where the author lists
/// the exports.
///
/// # Errors
/// All differences, a line for each.
pub fn compare(
    exported: &Interfaces,
    all: &Interfaces,
    world: &str,
    is_implemented: impl Fn(&str, &str) -> bool,
) -> Result<()> {
    let mut wrong = Vec::new();
    for (interface, functions) in all {
        let has: Vec<&String> = functions.iter().filter(|function| is_implemented(interface, function)).collect();
        if !exported.contains_key(interface) {
            if !has.is_empty() {
                wrong.push(not_exported(interface, world));
            }
            continue;
        }
        for function in functions.iter().filter(|function| !has.contains(function)) {
            wrong.push(format!(
                "{world} exports {interface}, but the filter does not implement {interface}.{function}: write it, or \
                 remove the export"
            ));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(Error::Operations(wrong)) }
}

/// The line for an interface that is implemented and not exported.
pub fn not_exported(interface: &str, world: &str) -> String {
    format!(
        "the filter implements {interface}, but {world} does not export it: the server would never call it. {} Add the \
         export, or remove the code",
        without(interface)
    )
}

/// The line for an interface that is implemented where the host cannot see it. `place` is the file
/// and line where it is written, and `first` the file that the host calls.
pub fn out_of_reach(place: &str, interface: &str, first: &str) -> String {
    format!(
        "{place}: {interface} is written here, but {first} does not export it: the server would never call it. {} \
         Export it from {first}, or remove the code",
        without(interface)
    )
}

/// The line for a field that the description lacks. `place` is the file and line of the
/// description.
pub fn missing_field(place: &str, field: &str) -> String {
    format!("{place}: describe: field `{field}` is missing")
}

/// The line for an operation that is asynchronous. `place` is the file and line where it is
/// written.
pub fn asynchronous(place: &str, operation: &str) -> String {
    format!(
        "{place}: {operation} is async. The server needs its answer when it returns, and nothing would run it to \
         its end: write it without async and await"
    )
}

/// What the server does with the operation of an interface that a filter does not export.
fn without(interface: &str) -> &'static str {
    match interface {
        "zeroes" => "Zeroes would be written with pwrite, or pass by a transparent filter.",
        "caching" => "Cache requests would become reads, or pass by a transparent filter.",
        "trims" => "Clients could not trim, or trims would pass by a transparent filter.",
        "mapping" => "Clients would get no extents, or those of the layer below a transparent filter.",
        "writes" => "The disk would be read-only, or writes would pass by a transparent filter.",
        "reads" => "Reads would fail, or pass by a transparent filter.",
        "wishes" => "The filter would get the default limits.",
        "on-alarm" => "No alarm could be set.",
        "on-watch" => "Nothing would be told when a file, a descriptor or a process changes.",
        "on-control" => "Nobody could connect to the control sockets.",
        "on-connection" => "Nothing would be told when connections come and go.",
        "background" => "Nothing would be prefetched in the background.",
        _ => "The layer below would answer in its place.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interfaces(list: &[(&str, &[&str])]) -> Interfaces {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        list.iter().map(|(name, functions)| ((*name).to_owned(), owned(functions))).collect()
    }

    #[test]
    fn what_is_written_has_to_be_exported_and_the_other_way_round() {
        let all = interfaces(&[("filter", &["describe", "configure"]), ("reads", &["pread"]), ("trims", &["trim"])]);
        let exported = interfaces(&[("filter", &["describe", "configure"]), ("reads", &["pread"])]);
        let compare =
            |has: &[(&str, &str)]| match compare(&exported, &all, "wit/world.wit", |a, b| has.contains(&(a, b))) {
                Ok(()) => Vec::new(),
                Err(Error::Operations(wrong)) => wrong,
                Err(other) => panic!("{other}"),
            };
        let mut has = vec![("filter", "describe"), ("filter", "configure"), ("reads", "pread")];
        assert_eq!(compare(&has), Vec::<String>::new());
        has.push(("trims", "trim"));
        assert_eq!(
            compare(&has),
            ["the filter implements trims, but wit/world.wit does not export it: the server would never call it. \
              Clients could not trim, or trims would pass by a transparent filter. Add the export, or remove the code"]
        );
        assert_eq!(
            compare(&[("filter", "describe"), ("filter", "configure")]),
            ["wit/world.wit exports reads, but the filter does not implement reads.pread: write it, or remove \
                 the export"]
        );
    }
}
