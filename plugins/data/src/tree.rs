//! The tree that a text in the data language is read into.

use std::ffi::OsString;
use std::rc::Rc;

use crate::error::Place;

/// Expressions in a scope of their own.
#[derive(Debug, Default)]
pub(crate) struct List {
    pub(crate) items: Vec<Item>,
    /// Lists within lists.
    pub(crate) depth: u32,
}

/// An expression, and the operators that follow it.
///
/// The operators are a list beside the expression rather than nodes around it, so that their number
/// adds no depth.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) place: Place,
    pub(crate) expr: Expr,
    pub(crate) operators: Vec<(Place, Operator)>,
}

#[derive(Debug)]
pub(crate) enum Expr {
    Byte(u8),
    Bytes(Vec<u8>),
    Move(Move),
    File(OsString),
    Script(OsString),
    Name(Rc<str>),
    List(Rc<List>),
}

/// `@...`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    To(u64),
    Forward(u64),
    Back(u64),
    /// A power of two.
    Align(u64),
}

/// An operator after an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    /// `*N`
    Repeat(u64),
    /// `[FROM:TO]`; FROM is not after TO.
    Slice { from: u64, to: Option<u64> },
    /// `-> \NAME`
    Assign(Rc<str>),
}
