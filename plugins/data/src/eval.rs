//! Evaluates the tree to an [`Image`].
//!
//! A name stands for its expression *as it was where it was assigned*: with the names known there,
//! and not with those known where it is used. It is evaluated when it is first used, and only once.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::error::{DataError, Place, Problem};
use crate::image::{Image, ImageError, MAX_LEN};
use crate::source::{Range, Reader};
use crate::tree::{Expr, Item, List, Move, Operator};

/// How deep the evaluation of lists and names may nest. Each level takes some 2 KiB of stack, so
/// 256 levels take half a MiB.
const MAX_DEPTH: u32 = 256;

/// How many expressions may be evaluated: more than any command line can hold, even if each is
/// evaluated a few times.
const MAX_STEPS: u64 = 2_000_000;

/// How many consecutive bytes are collected before they become a piece of the image.
const GATHER: usize = 64 << 10;

/// The image that a text describes. Files and scripts may add at most `max_read` bytes to it.
pub(crate) fn evaluate(list: &Rc<List>, max_read: u64) -> Result<Arc<Image>, DataError> {
    let mut evaluator =
        Evaluator { names: Vec::new(), lists: HashMap::new(), reader: Reader::new(max_read), depth: 0, steps: 0 };
    evaluator.list(list, None)
}

/// The operators after an expression, in order.
type Operators<'t> = &'t [(Place, Operator)];

/// The names known at some place, as the index of the last one; each refers to the one before.
type Scope = Option<usize>;

struct Named<'a> {
    name: &'a str,
    item: &'a Item,
    /// How many operators of the item come before the assignment.
    operators: usize,
    /// The names known before it.
    before: Scope,
    value: Option<Arc<Image>>,
}

struct Evaluator<'a> {
    names: Vec<Named<'a>>,
    /// The values of lists, by identity and scope: a list that is used twice in a scope (a
    /// variable) is evaluated once.
    lists: HashMap<(*const List, Scope), Arc<Image>>,
    reader: Reader,
    depth: u32,
    steps: u64,
}

/// An image under construction, and where the next byte goes.
#[derive(Default)]
struct Output {
    image: Image,
    offset: u64,
    /// Bytes that end at `offset` and are not in the image yet.
    gathered: Vec<u8>,
}

impl Output {
    fn flush(&mut self) -> Result<(), Problem> {
        let at = self.offset - self.gathered.len() as u64;
        let result = self.image.put_bytes(at, &self.gathered);
        self.gathered.clear();
        Ok(result?)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        self.offset = add(self.offset, bytes.len() as u64)?;
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= GATHER { self.flush() } else { Ok(()) }
    }

    fn image(&mut self, image: &Arc<Image>) -> Result<(), Problem> {
        self.flush()?;
        self.image.put_image(self.offset, image)?;
        self.offset = add(self.offset, image.len())?;
        Ok(())
    }

    fn go(&mut self, to: Move) -> Result<(), Problem> {
        self.flush()?;
        self.offset = match to {
            Move::To(offset) => offset,
            Move::Forward(bytes) => add(self.offset, bytes)?,
            Move::Back(bytes) => {
                self.offset.checked_sub(bytes).ok_or(Problem::BeforeTheStart { bytes, offset: self.offset })?
            }
            // The alignment is at most 2^62 and the offset below 2^63, so this does not overflow.
            Move::Align(alignment) => add(self.offset.next_multiple_of(alignment), 0)?,
        };
        Ok(self.image.extend_to(self.offset)?)
    }
}

fn add(offset: u64, bytes: u64) -> Result<u64, ImageError> {
    offset.checked_add(bytes).filter(|sum| *sum <= MAX_LEN).ok_or(ImageError::TooLong)
}

impl<'a> Evaluator<'a> {
    fn list(&mut self, list: &'a Rc<List>, scope: Scope) -> Result<Arc<Image>, DataError> {
        let key = (Rc::as_ptr(list), scope);
        if let Some(image) = self.lists.get(&key) {
            return Ok(Arc::clone(image));
        }
        let mut inner = scope;
        let mut output = Output::default();
        let mut last = None;
        for item in &list.items {
            self.step(&item.place)?;
            last = Some(&item.place);
            self.item(item, &mut inner, &mut output)?;
        }
        if let Some(place) = last {
            output.flush().map_err(|problem| DataError::new(place, problem))?;
        }
        let image = output.image.share();
        self.lists.insert(key, Arc::clone(&image));
        Ok(image)
    }

    fn step(&mut self, place: &Place) -> Result<(), DataError> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(DataError::new(place, Problem::TooManySteps));
        }
        Ok(())
    }

    /// Evaluates one expression of a list. An assignment extends the scope.
    fn item(&mut self, item: &'a Item, scope: &mut Scope, output: &mut Output) -> Result<(), DataError> {
        let wrong = |problem: Problem| DataError::new(&item.place, problem);
        if item.operators.is_empty() {
            match &item.expr {
                Expr::Byte(byte) => return output.bytes(&[*byte]).map_err(wrong),
                Expr::Bytes(bytes) => return output.bytes(bytes).map_err(wrong),
                Expr::Move(to) => return output.go(*to).map_err(wrong),
                _ => {}
            }
        }
        if let Some((_, Operator::Assign(name))) = item.operators.last() {
            let operators = item.operators.len() - 1;
            self.names.push(Named { name, item, operators, before: *scope, value: None });
            *scope = Some(self.names.len() - 1);
            return Ok(());
        }
        let image = self.value(item, item.operators.len(), *scope)?;
        output.image(&image).map_err(wrong)
    }

    /// Evaluates an expression with its first operators.
    fn value(&mut self, item: &'a Item, operators: usize, scope: Scope) -> Result<Arc<Image>, DataError> {
        let operators = &item.operators[..operators];
        // After one of these operators the value is empty, so what comes before it is not
        // evaluated.
        let nothing = operators.iter().rposition(|(_, operator)| match operator {
            Operator::Repeat(times) => *times == 0,
            Operator::Slice { from, to } => Some(*from) == *to,
            Operator::Assign(_) => true,
        });
        let (mut image, rest) = match nothing {
            Some(at) => (Arc::default(), &operators[at + 1..]),
            None => self.primary(&item.expr, &item.place, operators, scope)?,
        };
        for (place, operator) in rest {
            image = match operator {
                Operator::Assign(_) => image,
                Operator::Repeat(times) => image.repeat(*times).map_err(|error| DataError::new(place, error))?,
                Operator::Slice { from, to } => {
                    let length = image.len();
                    let to = to.unwrap_or(length);
                    if *from > to || to > length {
                        return Err(DataError::new(place, Problem::SliceOutside { from: *from, to, length }));
                    }
                    image.slice(*from, to).map_err(|error| DataError::new(place, error))?
                }
            };
        }
        Ok(image)
    }

    /// Evaluates the expression before the operators. Returns the operators that are still to be
    /// applied: a slice of a file or script is applied while it is read, because the whole may have
    /// no end.
    fn primary<'t>(
        &mut self,
        expr: &'a Expr,
        place: &'a Place,
        operators: Operators<'t>,
        scope: Scope,
    ) -> Result<(Arc<Image>, Operators<'t>), DataError> {
        let wrong = |problem: Problem| DataError::new(place, problem);
        let (range, rest) = match operators {
            [(_, Operator::Slice { from, to }), rest @ ..] => (Range { from: *from, to: *to }, rest),
            _ => (Range { from: 0, to: None }, operators),
        };
        let image = match expr {
            Expr::Byte(byte) => Arc::new(Image::of_bytes(&[*byte])),
            Expr::Bytes(bytes) => Arc::new(Image::of_bytes(bytes)),
            // Not reached: without operators `item` handles it, and the parser refuses operators
            // after it.
            Expr::Move(_) => Arc::default(),
            Expr::File(name) => return Ok((self.reader.file(name, range).map_err(wrong)?.share(), rest)),
            Expr::Script(script) => return Ok((self.reader.script(script, range).map_err(wrong)?.share(), rest)),
            Expr::Name(name) => self.nested(place, |this| this.name(name, place, scope))?,
            Expr::List(list) => match &list.items[..] {
                // (<FILE)[N:M]
                [only] if only.operators.is_empty() && !matches!(only.expr, Expr::Move(_)) => {
                    return self.nested(place, |this| {
                        this.step(place)?;
                        this.primary(&only.expr, &only.place, operators, scope)
                    });
                }
                _ => self.nested(place, |this| this.list(list, scope))?,
            },
        };
        Ok((image, operators))
    }

    fn nested<T>(&mut self, place: &Place, go: impl FnOnce(&mut Self) -> Result<T, DataError>) -> Result<T, DataError> {
        if self.depth >= MAX_DEPTH {
            return Err(DataError::new(place, Problem::ReferencesTooDeep(MAX_DEPTH)));
        }
        self.depth += 1;
        let result = go(self);
        self.depth -= 1;
        result
    }

    fn name(&mut self, name: &str, place: &Place, scope: Scope) -> Result<Arc<Image>, DataError> {
        let mut next = scope;
        while let Some(index) = next {
            let named = &self.names[index];
            if named.name != name {
                next = named.before;
                continue;
            }
            if let Some(value) = &named.value {
                return Ok(Arc::clone(value));
            }
            let (item, operators, before) = (named.item, named.operators, named.before);
            self.step(place)?;
            let value = self.value(item, operators, before)?;
            self.names[index].value = Some(Arc::clone(&value));
            return Ok(value);
        }
        Err(DataError::new(place, Problem::Undefined(name.to_string())))
    }
}
