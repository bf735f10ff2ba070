//! Whether the checked-in bindings are those that the generator makes of the contract.
use std::collections::BTreeMap;

use super::{COMMAND, bindings, contract, generate};

#[test]
fn the_checked_in_bindings_are_what_the_generator_makes_of_the_contract() {
    let made: BTreeMap<String, String> = generate(&contract()).expect("the contract").into_iter().collect();
    let entries = std::fs::read_dir(bindings()).expect("the bindings");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    let checked_in: BTreeMap<String, String> = names
        .map(|name| {
            let text = std::fs::read_to_string(bindings().join(&name)).expect("a file");
            (name, text)
        })
        .collect();
    let mut wrong: Vec<&String> = made.keys().filter(|name| checked_in.get(*name) != made.get(*name)).collect();
    wrong.extend(checked_in.keys().filter(|name| !made.contains_key(*name)));
    assert!(wrong.is_empty(), "sdk/src/bindings differs in {wrong:?}. To write it again:\n  {COMMAND}");
}
