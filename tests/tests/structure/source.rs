//! Reads one Rust file as far as the structure of a crate needs: the modules it declares, the items
//! it defines, the names it imports, and the paths in its code.
//!
//! It works on tokens, so comments and strings cannot be mistaken for code. [`Which::Product`]
//! skips everything that is compiled for tests only: items under `#[cfg(test)]` and under the
//! features in [`TEST_FEATURES`].

use std::collections::BTreeSet;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Features that only `[dev-dependencies]` enable: what they add is a test's model, not the
/// product.
const TEST_FEATURES: &[&str] = &["simulation"];

/// Which code is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Product,
    ProductAndTests,
}

/// The segments of a path. The first is `crate`, `self`, `super`, a name, or empty for `::name`.
pub type Path = Vec<String>;

/// One module: a file, or a `mod name { ... }` in it.
#[derive(Debug, Default)]
pub struct Source {
    /// `mod name;`, by name.
    pub files: Vec<String>,
    /// `mod name { ... }`.
    pub inline: Vec<(String, Source)>,
    /// Structs, enums, unions, traits and type aliases.
    pub types: Vec<String>,
    /// All items that have a name, the types among them; modules are not.
    pub items: BTreeSet<String>,
    /// Macros that `#[macro_export]` puts at the root of the crate.
    pub exported_macros: Vec<String>,
    /// Imports of the module itself.
    pub imports: Vec<Import>,
    /// Imports inside function bodies: only this module's own code sees them.
    pub local_imports: Vec<Import>,
    /// Paths of two segments or more, outside of `use`.
    pub paths: Vec<Path>,
    /// All names in the code. An import of everything (`*`) may stand for any of them.
    pub names: BTreeSet<String>,
}

/// One name that a `use` brings in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// Where it comes from. For `*`, the module.
    pub path: Path,
    /// What it is called here; `*` for everything.
    pub name: String,
}

impl Source {
    /// Reads a file. `None` if only the product is wanted and the whole file is for tests
    /// (`#![cfg(test)]`).
    pub fn read(text: &str, which: Which) -> Result<Option<Source>, String> {
        let tokens: TokenStream = text.parse().map_err(|error| format!("{error}"))?;
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        if which == Which::Product && is_test_file(&tokens) {
            return Ok(None);
        }
        let mut source = Source::default();
        source.items(&tokens, which);
        Ok(Some(source))
    }

    /// The items of a module.
    fn items(&mut self, tokens: &[TokenTree], which: Which) {
        let mut at = 0;
        while at < tokens.len() {
            let start = Start::of(tokens, at);
            at = start.at;
            let end = end_of_item(tokens, at);
            if start.is_for_tests && which == Which::Product {
                at = end;
                continue;
            }
            let item = &tokens[at..end];
            let name = item.get(1).and_then(ident);
            match (item.first().and_then(ident).as_deref(), name) {
                (Some("mod"), Some(name)) => match item.get(2) {
                    Some(TokenTree::Group(body)) => {
                        let mut inner = Source::default();
                        inner.items(&body.stream().into_iter().collect::<Vec<_>>(), which);
                        self.inline.push((name, inner));
                    }
                    _ => self.files.push(name),
                },
                (Some("use"), _) => import_tree(&item[1..], &mut Vec::new(), &mut self.imports),
                (Some("macro_rules"), _) => {
                    // macro_rules ! name { ... }
                    let name = item.get(2).and_then(ident).unwrap_or_default();
                    if start.is_exported {
                        self.exported_macros.push(name.clone());
                    }
                    self.items.insert(name);
                    self.code(item);
                }
                _ => {
                    if let Some((name, is_type)) = defined(item) {
                        if is_type {
                            self.types.push(name.clone());
                        }
                        self.items.insert(name);
                    }
                    self.code(item);
                }
            }
            at = end;
        }
    }

    /// The paths and imports in code, at any depth.
    fn code(&mut self, tokens: &[TokenTree]) {
        let mut at = 0;
        while at < tokens.len() {
            let start = Start::of(tokens, at);
            if start.is_for_tests {
                at = end_of_part(tokens, start.at);
                continue;
            }
            if start.at > at {
                at = start.at;
                continue;
            }
            match &tokens[at] {
                TokenTree::Group(group) => {
                    self.code(&group.stream().into_iter().collect::<Vec<_>>());
                    at += 1;
                }
                // `use<'a>` lists what a type captures and imports nothing.
                TokenTree::Ident(word) if *word == "use" && !is_punct(tokens.get(at + 1), '<') => {
                    let end = end_of_item(tokens, at);
                    import_tree(&tokens[at + 1..end], &mut Vec::new(), &mut self.local_imports);
                    at = end;
                }
                TokenTree::Ident(_) => {
                    let (path, end) = path_at(tokens, at);
                    self.names.extend(path.iter().cloned());
                    // A macro's `$name::...` begins with what the caller gave; only `$crate` is
                    // known.
                    let of_macro = at > 0 && is_punct(tokens.get(at - 1), '$') && path[0] != "crate";
                    let is_global = at > 1 && is_separator(tokens, at - 2);
                    if path.len() > 1 && !of_macro && !is_global {
                        self.paths.push(path);
                    }
                    at = end;
                }
                _ => at += 1,
            }
        }
    }
}

/// What stands in front of an item: attributes and visibility.
struct Start {
    /// Where the item itself begins.
    at: usize,
    is_for_tests: bool,
    is_exported: bool,
}

impl Start {
    fn of(tokens: &[TokenTree], mut at: usize) -> Start {
        let (mut is_for_tests, mut is_exported) = (false, false);
        loop {
            let bang = usize::from(is_punct(tokens.get(at + 1), '!'));
            if is_punct(tokens.get(at), '#')
                && let Some(TokenTree::Group(attribute)) = tokens.get(at + 1 + bang)
                && attribute.delimiter() == Delimiter::Bracket
            {
                is_for_tests |= bang == 0 && is_test_attribute(attribute.stream());
                is_exported |= attribute.stream().to_string() == "macro_export";
                at += 2 + bang;
            } else if tokens.get(at).and_then(ident).is_some_and(|word| word == "pub") {
                // `pub(in crate::a)` imports nothing.
                let scope = matches!(tokens.get(at + 1), Some(TokenTree::Group(group))
                    if group.delimiter() == Delimiter::Parenthesis && is_scope(group.stream()));
                at += 1 + usize::from(scope);
            } else {
                return Start { at, is_for_tests, is_exported };
            }
        }
    }
}

/// Whether this is the inside of `pub(...)` rather than the field of a tuple struct.
fn is_scope(stream: TokenStream) -> bool {
    let first = stream.into_iter().next();
    first.as_ref().and_then(ident).is_some_and(|word| ["crate", "super", "self", "in"].contains(&word.as_str()))
}

/// Whether the file begins with `#![cfg(test)]`.
fn is_test_file(tokens: &[TokenTree]) -> bool {
    let mut at = 0;
    while is_punct(tokens.get(at), '#') && is_punct(tokens.get(at + 1), '!') {
        if let Some(TokenTree::Group(attribute)) = tokens.get(at + 2)
            && is_test_attribute(attribute.stream())
        {
            return true;
        }
        at += 3;
    }
    false
}

/// Whether an attribute keeps its item out of the product: `cfg(test)`, alone or among others, or
/// `cfg(feature = "...")` with a feature of tests.
fn is_test_attribute(attribute: TokenStream) -> bool {
    let tokens: Vec<TokenTree> = attribute.into_iter().collect();
    match &tokens[..] {
        [TokenTree::Ident(word), TokenTree::Group(condition)] if *word == "cfg" => {
            is_test_condition(condition.stream())
        }
        _ => false,
    }
}

fn is_test_condition(condition: TokenStream) -> bool {
    let tokens: Vec<TokenTree> = condition.into_iter().collect();
    tokens.iter().enumerate().any(|(at, token)| match token {
        TokenTree::Ident(word) => *word == "test",
        TokenTree::Literal(text) => TEST_FEATURES.contains(&text.to_string().trim_matches('"')),
        TokenTree::Group(group) => {
            let negated = at > 0 && ident(&tokens[at - 1]).is_some_and(|word| word == "not");
            !negated && is_test_condition(group.stream())
        }
        TokenTree::Punct(_) => false,
    })
}

/// The name that an item defines, and whether it is a type.
fn defined(item: &[TokenTree]) -> Option<(String, bool)> {
    let mut words = item.iter().enumerate().map_while(|(at, token)| match token {
        TokenTree::Literal(_) => Some((at, String::new())), // The ABI in `extern "C" fn`.
        token => Some((at, ident(token)?)),
    });
    let (at, is_type) = words.find_map(|(at, word)| match word.as_str() {
        "struct" | "enum" | "union" | "trait" | "type" => Some((at, true)),
        "fn" | "static" => Some((at, false)),
        "const" => {
            let next = item.get(at + 1).and_then(ident)?;
            (!["fn", "unsafe", "extern", "async"].contains(&next.as_str())).then_some((at, false))
        }
        _ => None,
    })?;
    let name = item[at + 1..].iter().filter_map(ident).find(|word| word != "mut")?;
    Some((name, is_type))
}

/// Behind the item that begins here: its braces, or its semicolon where it ends with one.
fn end_of_item(tokens: &[TokenTree], at: usize) -> usize {
    let first = tokens.get(at).and_then(ident).unwrap_or_default();
    let is_function = tokens[at..].iter().map_while(ident).any(|word| word == "fn");
    let to_semicolon = ["use", "type", "static", "let"].contains(&first.as_str()) || first == "const" && !is_function;
    end(tokens, at, |token| match token {
        TokenTree::Group(group) => !to_semicolon && group.delimiter() == Delimiter::Brace,
        token => is_punct(Some(token), ';'),
    })
}

/// Behind an item, a statement, a field, an arm: whatever an attribute can stand in front of.
fn end_of_part(tokens: &[TokenTree], at: usize) -> usize {
    const ITEMS: &[&str] = &["use", "type", "static", "let", "const", "fn", "async", "unsafe", "extern", "struct"];
    const MORE: &[&str] = &["enum", "union", "trait", "impl", "mod", "macro_rules"];
    let first = tokens.get(at).and_then(ident).unwrap_or_default();
    if ITEMS.contains(&first.as_str()) || MORE.contains(&first.as_str()) {
        return end_of_item(tokens, at);
    }
    end(tokens, at, |token| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        token => is_punct(Some(token), ';') || is_punct(Some(token), ','),
    })
}

fn end(tokens: &[TokenTree], at: usize, is_last: impl Fn(&TokenTree) -> bool) -> usize {
    tokens[at..].iter().position(is_last).map_or(tokens.len(), |nth| at + nth + 1)
}

/// The path that begins at this name, and where it ends.
fn path_at(tokens: &[TokenTree], mut at: usize) -> (Path, usize) {
    let mut path = vec![ident(&tokens[at]).unwrap_or_default()];
    at += 1;
    while is_separator(tokens, at)
        && let Some(word) = tokens.get(at + 2).and_then(ident)
    {
        path.push(word);
        at += 3;
    }
    (path, at)
}

/// The names of a `use`, from behind the word or inside a group. `before` is the path so far.
fn import_tree(tokens: &[TokenTree], before: &mut Path, found: &mut Vec<Import>) {
    let parts = tokens.split(|token| is_punct(Some(token), ',') || is_punct(Some(token), ';'));
    // A macro's `$name` is what its caller gives.
    let is_known = |part: &&[TokenTree]| !part.is_empty() && !part.iter().any(|token| is_punct(Some(token), '$'));
    for part in parts.filter(is_known) {
        let depth = before.len();
        let mut name = None;
        let mut is_group = false;
        let mut at = 0;
        if is_separator(part, 0) && before.is_empty() {
            before.push(String::new());
        }
        while at < part.len() {
            match &part[at] {
                TokenTree::Ident(word) if *word == "as" => {
                    name = part.get(at + 1).and_then(ident);
                    at += 1;
                }
                TokenTree::Group(group) => {
                    import_tree(&group.stream().into_iter().collect::<Vec<_>>(), before, found);
                    is_group = true;
                }
                TokenTree::Punct(star) if star.as_char() == '*' => name = Some("*".to_owned()),
                token => before.extend(ident(token)),
            }
            at += 1;
        }
        if !is_group {
            // `a::{self}` is `a`.
            if before.len() > 1 && before.last().is_some_and(|word| word == "self") {
                before.pop();
            }
            let name = name.or_else(|| before.last().cloned()).unwrap_or_default();
            found.push(Import { path: before.clone(), name });
        }
        before.truncate(depth);
    }
}

fn ident(token: &TokenTree) -> Option<String> {
    match token {
        TokenTree::Ident(word) => Some(word.to_string().trim_start_matches("r#").to_owned()),
        _ => None,
    }
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

/// Whether `::` stands here.
fn is_separator(tokens: &[TokenTree], at: usize) -> bool {
    is_punct(tokens.get(at), ':') && is_punct(tokens.get(at + 1), ':')
}
