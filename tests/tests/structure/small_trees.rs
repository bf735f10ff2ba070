//! The reader of modules on small crates, each with one thing that it has to see or has to leave
//! alone.

use super::circles::circles;
use super::modules::Crate;
use super::source::Which;

/// The circles of a crate of these files, whose root is `lib.rs`.
fn circles_of(files: &[(&str, &str)]) -> Vec<String> {
    let text = |wanted: &str| files.iter().find(|(name, _)| *name == wanted).map(|(_, text)| (*text).to_owned());
    circles(&Crate::read("src/lib.rs", Which::Product, &text).expect("a crate").imports())
}

const ROOT: (&str, &str) = ("src/lib.rs", "mod a; mod b;");

#[test]
fn a_circle_through_super_is_named_with_what_is_taken() {
    let a = ("src/a.rs", "use super::b::B; pub struct A(B); pub struct A2;");
    let b = ("src/b.rs", "use super::a::{A, A2}; pub struct B;");
    assert_eq!(circles_of(&[ROOT, a, b]), ["src/a.rs -> src/b.rs (B) -> src/a.rs (A, A2)"]);
}

#[test]
fn a_circle_through_crate_is_found() {
    let a = ("src/a.rs", "pub fn f() { crate::b::g() }");
    let b = ("src/b.rs", "use crate::a::f; pub fn g() { f() }");
    assert_eq!(circles_of(&[ROOT, a, b]), ["src/a.rs -> src/b.rs (g) -> src/a.rs (f)"]);
}

#[test]
fn a_circle_through_nested_groups_is_found() {
    let root = ("src/lib.rs", "mod a; mod b; mod c; mod user;");
    let user = ("src/user.rs", "use super::{a::A, c::{self, D as E, F}}; pub struct U; fn f() { c::g() }");
    let a = ("src/a.rs", "pub struct A;");
    let b = ("src/b.rs", "");
    let c = ("src/c.rs", "use super::{b, user::U}; pub struct D; pub struct F; pub fn g() {}");
    assert_eq!(circles_of(&[root, user, a, b, c]), ["src/c.rs -> src/user.rs (U) -> src/c.rs (D, F, g)"]);
}

#[test]
fn a_circle_through_an_import_of_everything_is_found() {
    let root = ("src/lib.rs", "mod a; use a::f; pub struct Config; fn g() { f() }");
    let a = ("src/a.rs", "use super::*; pub fn f() -> Config { Config }");
    assert_eq!(circles_of(&[root, a]), ["src/a.rs -> src/lib.rs (*, Config) -> src/a.rs (f)"]);
}

#[test]
fn a_circle_of_three_files_is_found_once() {
    let root = ("src/lib.rs", "mod a; mod b; mod c;");
    let a = ("src/a.rs", "pub struct A(crate::b::B);");
    let b = ("src/b.rs", "pub struct B(super::c::C);");
    let c = ("src/c.rs", "pub struct C(Box<super::a::A>);");
    let wanted = ["src/a.rs -> src/b.rs (B) -> src/c.rs (C) -> src/a.rs (A)"];
    assert_eq!(circles_of(&[root, a, b, c]), wanted);
}

#[test]
fn a_child_that_takes_a_name_of_the_parent_that_uses_it_is_a_circle() {
    let root = ("src/lib.rs", "mod a;");
    let a = ("src/a/mod.rs", "mod inner; pub struct A; fn f() { inner::g(A) }");
    let inner = ("src/a/inner.rs", "use super::A; pub fn g(_: A) {}");
    assert_eq!(circles_of(&[root, a, inner]), ["src/a/inner.rs -> src/a/mod.rs (A) -> src/a/inner.rs (g)"]);
}

#[test]
fn a_child_may_take_names_of_a_parent_that_does_not_use_it() {
    let root = ("src/lib.rs", "mod a; pub struct Config;");
    let a = ("src/a.rs", "use crate::Config; pub fn f(_: Config) {}");
    assert_eq!(circles_of(&[root, a]), [""; 0]);
}

#[test]
fn a_name_that_the_parent_re_exports_is_taken_from_the_file_that_defines_it() {
    let root = ("src/lib.rs", "mod a; mod b; pub use a::A; use b::B; pub use b::*; fn f(_: B) {}");
    let a = ("src/a.rs", "pub struct A;");
    let b = ("src/b.rs", "use super::A; use crate::{self as all}; pub struct B(A, all::A);");
    assert_eq!(circles_of(&[root, a, b]), [""; 0]);
    // Through the parent, but still a circle of the two.
    let a = ("src/a.rs", "use super::B; pub struct A;");
    assert_eq!(circles_of(&[root, a, b]), ["src/a.rs -> src/b.rs (B) -> src/a.rs (A)"]);
}

#[test]
fn paths_through_an_imported_module_are_followed() {
    let a = ("src/a.rs", "use super::b; pub struct A; fn f() { b::g() }");
    let b = ("src/b.rs", "pub fn g() { fn h() { use crate::a; a::A; } }");
    assert_eq!(circles_of(&[ROOT, a, b]), ["src/a.rs -> src/b.rs (g) -> src/a.rs (A)"]);
}

#[test]
fn paths_in_macros_and_in_inline_modules_are_followed() {
    let a = ("src/a.rs", "pub struct A; macro_rules! m { ($x:expr) => { $crate::b::g($x, $x::h) } }");
    let b = ("src/b.rs", "pub fn g() {} mod inner { fn f() { assert!(super::super::a::A == 1) } }");
    assert_eq!(circles_of(&[ROOT, a, b]), ["src/a.rs -> src/b.rs (g) -> src/a.rs (A)"]);
}

#[test]
fn a_macro_that_is_exported_at_the_root_belongs_to_its_file() {
    let root = ("src/lib.rs", "mod a; mod b; fn f() { b::g() }");
    let a = ("src/a.rs", "#[macro_export] macro_rules! m { () => {} }");
    let b = ("src/b.rs", "pub fn g() { crate::m!() }");
    assert_eq!(circles_of(&[root, a, b]), [""; 0]);
}

#[test]
fn tests_comments_and_strings_import_nothing() {
    let a = ("src/a.rs", "pub struct A; fn f() { super::b::g() }");
    let b = (
        "src/b.rs",
        r##"
        //! See crate::a::A, and `use super::a::A;`.
        #![doc = "crate::a::A"]
        pub fn g() -> &'static str { r#"use super::a::A; crate::a::A"# } // super::a::A
        /* crate::a::A */
        pub(in crate::a) struct B { #[cfg(test)] a: super::a::A, b: u8 }
        impl B { #[cfg(test)] fn t() -> super::a::A { super::a::A } fn u() { let _ = "super::a::A"; } }
        #[cfg(all(test, unix))]
        use super::a::A;
        #[cfg(test)]
        mod tests { use crate::a::A; #[test] fn t() { super::super::a::A; } }
        #[cfg(any(test, feature = "simulation"))]
        fn model() { super::a::A; }
        "##,
    );
    assert_eq!(circles_of(&[ROOT, a, b]), [""; 0]);
    let b = ("src/b.rs", "#![cfg(test)] use super::a::A; pub fn g() {}");
    assert_eq!(circles_of(&[ROOT, a, b]), [""; 0]);
    let b = ("src/b.rs", "#[cfg(not(test))] use super::a::A; pub fn g() {}");
    assert_eq!(circles_of(&[ROOT, a, b]), ["src/a.rs -> src/b.rs (g) -> src/a.rs (A)"]);
}

#[test]
fn other_crates_and_captured_lifetimes_are_no_imports() {
    let a = ("src/a.rs", "use std::{fmt, io::{self, Read as _}}; pub fn b() { ::b::a::A; io::b() }");
    let b = ("src/b.rs", "use crate::a::b; fn g<'a>(_: &'a u8) -> impl Sized + use<'a> { b(); std::a::A }");
    assert_eq!(circles_of(&[ROOT, a, b]), [""; 0]);
}

#[test]
fn types_are_counted_and_items_with_other_words_are_not() {
    let root = (
        "src/lib.rs",
        "pub struct A; enum B { C } pub(crate) unsafe trait D { type E; } type F = u8; union G { a: u8 }
         const fn h() { struct Inside; } static mut I: u8 = { 1 }; impl A { const J: u8 = 1; }
         const _: () = { struct Nobody; }; #[cfg(test)] struct T; mod inner { pub struct A; }
         extern \"C\" { fn k(); } fn union(trait_: u8) {} struct L(pub(crate) u8, pub (u8, u8));",
    );
    let text = |wanted: &str| (wanted == root.0).then(|| root.1.to_owned());
    let types = Crate::read("src/lib.rs", Which::Product, &text).expect("a crate").types();
    let names: Vec<&str> = types.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["A", "B", "D", "F", "G", "L", "A"]);
}

#[test]
fn a_module_without_a_file_is_an_error() {
    let text = |wanted: &str| (wanted == "src/lib.rs").then(|| "mod a;".to_owned());
    let error = Crate::read("src/lib.rs", Which::Product, &text).err().unwrap_or_default();
    assert_eq!(error, "src/lib.rs declares mod a: neither src/a.rs nor src/a/mod.rs exists");
}
