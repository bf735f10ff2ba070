//! Properties: random texts, and random expressions and writes compared with a plain model.

use proptest::prelude::*;
use rbdkit_plugin_api::{Buffer, Extents, Flags};
use rbdkit_ram_disk::{Pages, Residency, Storage};

use super::*;

/// A tree and what it stands for, evaluated in the plainest way.
#[derive(Clone, Debug)]
enum Tree {
    Byte(u8),
    Text(String),
    Word(u16),
    Moved(u16, Vec<Tree>),
    Back(u8, Vec<Tree>),
    Aligned(u32, Vec<Tree>),
    List(Vec<Tree>),
    Repeat(Box<Tree>, u8),
    Slice(Box<Tree>, u16, u16),
    Named(Box<Tree>, u8),
}

struct Plain {
    bytes: Vec<u8>,
    at: usize,
}

impl Plain {
    fn put(&mut self, bytes: &[u8]) {
        self.go(self.at + bytes.len());
        self.bytes[self.at - bytes.len()..self.at].copy_from_slice(bytes);
    }

    fn go(&mut self, to: usize) {
        self.at = to;
        self.bytes.resize(self.bytes.len().max(to), 0);
    }

    /// Adds a tree's text and bytes.
    fn add(&mut self, tree: &Tree, text: &mut String) {
        use std::fmt::Write;
        match tree {
            Tree::Byte(byte) => {
                write!(text, "{byte:#x} ").unwrap();
                self.put(&[*byte]);
            }
            Tree::Text(string) => {
                write!(text, "\"{string}\"").unwrap();
                self.put(string.as_bytes());
            }
            Tree::Word(word) => {
                write!(text, "be16:{word} ").unwrap();
                self.put(&word.to_be_bytes());
            }
            Tree::Moved(to, then) => {
                write!(text, "@{to} ").unwrap();
                self.go(usize::from(*to));
                self.add_all(then, text);
            }
            Tree::Back(by, then) => {
                let by = self.at.min(usize::from(*by));
                write!(text, "@-{by} ").unwrap();
                self.go(self.at - by);
                self.add_all(then, text);
            }
            Tree::Aligned(shift, then) => {
                write!(text, "@^{} ", 1 << shift).unwrap();
                self.go(self.at.next_multiple_of(1 << shift));
                self.add_all(then, text);
            }
            Tree::List(list) => {
                let (inner, bytes) = plain(list);
                write!(text, "({inner})").unwrap();
                self.put(&bytes);
            }
            Tree::Repeat(tree, times) => {
                let (inner, bytes) = plain(std::slice::from_ref(tree));
                write!(text, "({inner})*{times} ").unwrap();
                self.put(&bytes.repeat(usize::from(*times)));
            }
            Tree::Slice(tree, from, to) => {
                let (inner, bytes) = plain(std::slice::from_ref(tree));
                let from = usize::from(*from) % (bytes.len() + 1);
                let to = from + usize::from(*to) % (bytes.len() - from + 1);
                write!(text, "({inner})[{from}:{to}]").unwrap();
                self.put(&bytes[from..to]);
            }
            Tree::Named(tree, times) => {
                let (inner, bytes) = plain(std::slice::from_ref(tree));
                write!(text, "({inner})->\\n {}", "\\n ".repeat(usize::from(*times))).unwrap();
                self.put(&bytes.repeat(usize::from(*times)));
            }
        }
    }

    fn add_all(&mut self, trees: &[Tree], text: &mut String) {
        trees.iter().for_each(|tree| self.add(tree, text));
    }
}

fn plain(trees: &[Tree]) -> (String, Vec<u8>) {
    let (mut plain, mut text) = (Plain { bytes: Vec::new(), at: 0 }, String::new());
    plain.add_all(trees, &mut text);
    (text, plain.bytes)
}

fn tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        any::<u8>().prop_map(Tree::Byte),
        "[a-z ]{0,5}".prop_map(Tree::Text),
        any::<u16>().prop_map(Tree::Word),
    ];
    leaf.prop_recursive(5, 40, 4, |inner| {
        let list = || proptest::collection::vec(inner.clone(), 0..4);
        prop_oneof![
            (0u16..9000, list()).prop_map(|(to, then)| Tree::Moved(to, then)),
            (any::<u8>(), list()).prop_map(|(by, then)| Tree::Back(by, then)),
            (0u32..14, list()).prop_map(|(shift, then)| Tree::Aligned(shift, then)),
            list().prop_map(Tree::List),
            (inner.clone(), 0u8..6).prop_map(|(tree, times)| Tree::Repeat(Box::new(tree), times)),
            (inner.clone(), any::<u16>(), any::<u16>()).prop_map(|(tree, from, to)| Tree::Slice(
                Box::new(tree),
                from,
                to
            )),
            (inner.clone(), 0u8..4).prop_map(|(tree, times)| Tree::Named(Box::new(tree), times)),
        ]
    })
}

/// What a client may do.
#[derive(Clone, Debug)]
enum Act {
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    Read(u64, u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0u64..200_000, proptest::collection::vec(any::<u8>(), 1..3000)).prop_map(|(at, bytes)| Act::Write(at, bytes)),
        (0u64..200_000, 1u64..100_000).prop_map(|(at, length)| Act::Zero(at, length)),
        (0u64..200_000, 1u64..100_000).prop_map(|(at, length)| Act::Read(at, length)),
    ]
}

proptest! {
    // A failure prints its input and is kept in proptest-regressions.
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_refused(text in r#"[0-9a-fx@+*^\->()\[\]:"\\$# \nl]{0,60}"#) {
        // Without <, which would run programs or open files.
        if let Ok(image) = image(&text) {
            image.read(image.len() / 2, &mut [0; 100]);
            prop_assert!(image.len() <= i64::MAX as u64);
        } else {
            prop_assert!(wrong(&text).starts_with("data: "));
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        let text: Vec<u8> = text.into_iter().filter(|byte| *byte != b'<').collect();
        let _ = parse::parse(OsStr::from_bytes(&text), &|_| None).map(|list| eval::evaluate(&list, MAX_READ).is_ok());
    }

    #[test]
    fn expressions_stand_for_what_the_plain_way_makes_of_them(trees in proptest::collection::vec(tree(), 0..5)) {
        let (text, expected) = plain(&trees);
        let image = image(&text).unwrap();
        prop_assert_eq!(image.len(), expected.len() as u64, "{}", text);
        let mut all = vec![0xee; expected.len()];
        image.read(0, &mut all);
        prop_assert!(all == expected, "{}", text);
        // In pieces it is the same, and what is said to be nothing is nothing.
        let mut at = 0;
        while at < expected.len() {
            let (length, data) = image.run(at as u64, expected.len() as u64 - at as u64);
            prop_assert!(length > 0);
            let run = at..at + length as usize;
            prop_assert!(data || expected[run.clone()].iter().all(|byte| *byte == 0), "{}", text);
            let mut part = vec![0xee; run.len()];
            image.read(at as u64, &mut part);
            prop_assert!(part == expected[run.clone()], "{}", text);
            at = run.end;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn the_disk_keeps_what_is_written(
        trees in proptest::collection::vec(tree(), 0..4),
        acts in proptest::collection::vec(act(), 0..30),
        kind in 0..3,
    ) {
        const SIZE: usize = 200_000;
        let (text, mut model) = plain(&trees);
        model.resize(SIZE, 0);
        let image = image(&text).unwrap();
        let storage: Box<dyn Storage> = match kind {
            0 => Box::new(
                Flat::new(SIZE as u64, Residency::Swappable, |offset, bytes| image.read(offset, bytes)).unwrap(),
            ),
            1 => Box::new(Sparse::new(&image, Pages::plain())),
            _ => Box::new(Sparse::new(&image, Pages::compressed())),
        };
        let read = |offset: u64, length: u64| {
            let mut buffer = Buffer::new(length as u32);
            let span = buffer.span();
            storage.pread(&mut buffer, span, offset).unwrap();
            buffer.bytes(span).to_vec()
        };
        let within = |at: u64, length: u64| length.min(SIZE as u64 - at);
        for act in acts {
            match act {
                Act::Write(at, bytes) => {
                    let bytes = &bytes[..within(at, bytes.len() as u64) as usize];
                    storage.pwrite(bytes, at).unwrap();
                    model[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
                }
                Act::Zero(at, length) => {
                    let length = within(at, length);
                    storage.zero(at, length).unwrap();
                    model[at as usize..(at + length) as usize].fill(0);
                }
                Act::Read(at, length) => {
                    let length = within(at, length);
                    prop_assert!(read(at, length) == model[at as usize..(at + length) as usize]);
                    let extents = storage.extents(at, length, SIZE as u64, Flags::NONE);
                    let list = extents.as_slice();
                    prop_assert!((at + length..=SIZE as u64).contains(&extents.next_offset()));
                    for extent in list.iter().filter(|extent| extent.zero) {
                        let hole = &model[extent.offset as usize..extent.end() as usize];
                        prop_assert!(hole.iter().all(|byte| *byte == 0));
                    }
                    let checked = Extents::check(list.iter().copied(), at, length, SIZE as u64, false).unwrap();
                    prop_assert_eq!(checked.as_slice(), list);
                }
            }
        }
        prop_assert!(read(0, SIZE as u64) == model);
    }
}
