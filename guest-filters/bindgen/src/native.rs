//! On the developer's own machine there is no host. There each import calls the function of the
//! same name in the SDK's module `testing`, which simulates the host for native tests.
//!
//! The call is put into the generated function. So the compiler checks natively that `testing` has
//! every function of the contract, with its types.

use anyhow::{Context, Result, bail};

/// The indentation of the body of an import.
const INDENT: &str = "                ";

/// How the body of an import begins.
const BODY: &str = "                unsafe {";

/// Puts the native call into each import of the code that the generator made for the world `host`.
///
/// # Errors
/// The generator writes its code in another form than this function knows.
pub(crate) fn call_testing(code: &str) -> Result<String> {
    let (imports, exports) = code.split_once("\npub mod exports {").context("the code has no module exports")?;
    let mut made = String::new();
    let (mut interface, mut functions) = ("", 0);
    let mut lines = imports.lines();
    while let Some(line) = lines.next() {
        made += line;
        made.push('\n');
        if let Some(name) = line.strip_prefix("        pub mod ") {
            interface = name.trim_end_matches(" {");
        }
        let Some(head) = line.strip_prefix("            pub fn ") else { continue };
        let mut head = head.to_string();
        while !head.ends_with('{') {
            let more = lines.next().context("a function without a body")?;
            made += more;
            made.push('\n');
            head += more.trim();
        }
        if lines.next() != Some(BODY) {
            bail!("the body of {interface}::{head} is not one unsafe block");
        }
        let (name, arguments) = name_and_arguments(&head)?;
        made += &format!("{INDENT}#[cfg(not(target_arch = \"wasm32\"))]\n{INDENT}{{\n");
        made += &format!("{INDENT}    crate::testing::imports::{interface}::{name}({arguments})\n{INDENT}}}\n");
        made += &format!("{INDENT}#[cfg(target_arch = \"wasm32\")]\n{BODY}\n");
        functions += 1;
    }
    if functions == 0 {
        bail!("the code has no imports");
    }
    Ok(made + "\npub mod exports {" + exports)
}

/// Splits `name(a: A, b: B) -> ... {` into the name and `a, b`.
fn name_and_arguments(head: &str) -> Result<(&str, String)> {
    let (name, rest) = head.split_once('(').context("a function without arguments")?;
    let names = top_level_arguments(rest)?;
    let names = names.iter().filter_map(|argument| argument.split_once(':')).map(|(name, _)| name.trim());
    Ok((name, names.collect::<Vec<_>>().join(", ")))
}

/// The arguments up to the parenthesis that ends their list. A type may have commas and parentheses
/// of its own.
fn top_level_arguments(rest: &str) -> Result<Vec<&str>> {
    let (mut depth, mut begin, mut arguments) = (0, 0, Vec::new());
    for (at, character) in rest.char_indices() {
        match character {
            '(' | '[' | '<' => depth += 1,
            ')' if depth == 0 => {
                arguments.push(&rest[begin..at]);
                return Ok(arguments);
            }
            ')' | ']' | '>' => depth -= 1,
            ',' if depth == 0 => {
                arguments.push(&rest[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    bail!("arguments without an end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_on_several_lines_gets_its_native_call() {
        let code = format!(
            "        pub mod next {{\n            pub fn pread(\n                offset: u64,\n                \
             data: &[u8],\n            ) -> Result<(), Errno> {{\n{BODY}\n                    1\n                \
             }}\n            }}\n        }}\npub mod exports {{\n}}\n"
        );
        let made = call_testing(&code).unwrap();
        let call = format!(
            "crate::testing::imports::next::pread(offset, data)\n{INDENT}}}\n\
             {INDENT}#[cfg(target_arch = \"wasm32\")]\n{BODY}\n                    1\n"
        );
        assert!(made.contains(&call), "{made}");
    }

    #[test]
    fn the_type_of_an_argument_may_have_commas_and_parentheses() {
        let head =
            "run(param: &str, variables: &[(_rt::String, _rt::Vec<u8>)], nth: u32) -> Result<(u8, i32), Errno> {";
        assert_eq!(name_and_arguments(head).unwrap(), ("run", "param, variables, nth".to_string()));
        assert!(name_and_arguments("run(param: (u8, u8").is_err());
    }

    #[test]
    fn code_in_another_form_is_refused() {
        for code in ["pub mod next {}", "\npub mod exports {", "            pub fn f() {\n1\n}\npub mod exports {"] {
            assert!(call_testing(code).is_err(), "{code}");
        }
    }
}
