//! Runs, extents and bounds, with a layout that the test writes down.

use super::*;
use crate::testing::{read_all, source};
use rbdkit_filter_sdk::Extent;

/// Blocks of 10 bytes.
struct Listed {
    below: Rc<dyn Source>,
    places: Vec<BlockPlace>,
    parent: Option<(Rc<dyn Source>, u64)>,
    is_fixed: bool,
}

impl BlockMap for Listed {
    fn size(&self) -> u64 {
        self.places.len() as u64 * 10
    }
    fn stored_in(&self) -> &dyn Source {
        &*self.below
    }
    fn place(&self, offset: u64) -> Result<(BlockPlace, u64), Error> {
        let within = offset % 10;
        let place = match self.places[offset as usize / 10] {
            BlockPlace::Stored(u64::MAX) => return Err(Error::image("a wrong table")),
            BlockPlace::Stored(at) => BlockPlace::Stored(at + within),
            place => place,
        };
        Ok((place, 10 - within))
    }
    fn unpacked(&self, offset: u64) -> Result<(Rc<Vec<u8>>, usize), Error> {
        Ok((Rc::new((100..110).collect()), offset as usize % 10))
    }
    fn parent(&self) -> Option<&(Rc<dyn Source>, u64)> {
        self.parent.as_ref()
    }
    fn is_fixed(&self) -> bool {
        self.is_fixed
    }
    fn description(&self) -> Option<String> {
        None
    }
}

fn image(places: &[BlockPlace]) -> MappedImage<Listed> {
    let below = source(&(0..100).collect::<Vec<u8>>());
    MappedImage(Listed { below, places: places.to_vec(), parent: None, is_fixed: false })
}

fn extents(image: &dyn Source, offset: u64, length: u64) -> Vec<Extent> {
    let mut list = ExtentList::new(offset, length);
    image.extents(&mut list).unwrap();
    list.into_answer().unwrap()
}

const NOTHING: ExtentType = ExtentType::HOLE.union(ExtentType::ZERO);

#[test]
fn blocks_of_each_kind_are_read_and_told() {
    let mut image = image(&[
        BlockPlace::Stored(50),
        BlockPlace::Stored(60),
        BlockPlace::Zero,
        BlockPlace::Absent,
        BlockPlace::Packed,
    ]);
    let mut expected: Vec<u8> = (50..70).collect();
    expected.extend([0; 20]);
    expected.extend(100..110);
    assert_eq!(read_all(&image), Ok(expected.clone()));
    let mut middle = [9; 30];
    image.read(15, &mut middle).unwrap();
    assert_eq!(middle, expected[15..45]);
    let told = |offset, length, kind| Extent { offset, length, kind };
    let list = extents(&image, 5, 45);
    let data = ExtentType::empty();
    assert_eq!(list, [told(5, 15, data), told(20, 20, NOTHING), told(40, 10, data)]);
    // A parent has only what is absent, and ends within that block.
    image.0.parent = Some((source(&[7; 45]), 10));
    expected[30..35].fill(7);
    assert_eq!(read_all(&image), Ok(expected));
    let list = extents(&image, 20, 30);
    assert_eq!(list, [told(20, 10, NOTHING), told(30, 5, data), told(35, 5, NOTHING), told(40, 10, data)]);
}

#[test]
fn neighbours_are_one_read() {
    struct Reads(std::cell::RefCell<Vec<(u64, usize)>>);
    impl Source for Reads {
        fn size(&self) -> u64 {
            1000
        }
        fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
            self.0.borrow_mut().push((offset, into.len()));
            Ok(())
        }
    }
    let reads = Rc::new(Reads(std::cell::RefCell::default()));
    let mut image =
        image(&[BlockPlace::Stored(50), BlockPlace::Stored(60), BlockPlace::Stored(80), BlockPlace::Stored(70)]);
    image.0.below = Rc::clone(&reads) as Rc<dyn Source>;
    read_all(&image).unwrap();
    assert_eq!(*reads.0.borrow(), [(50, 20), (80, 10), (70, 10)]);
}

#[test]
fn a_wrong_table_is_an_error_where_it_is_and_not_before() {
    let image = image(&[BlockPlace::Stored(0), BlockPlace::Stored(u64::MAX), BlockPlace::Zero]);
    let wrong = Err(Error::image("a wrong table"));
    assert_eq!(image.read(0, &mut [0; 10]), Ok(()));
    assert_eq!(image.read(5, &mut [0; 10]), wrong);
    assert_eq!(extents(&image, 0, 30).len(), 1, "the first block");
    assert_eq!(image.extents(&mut ExtentList::new(10, 20)), wrong);
    assert_eq!(image.cache(0, 10), Ok(()));
    assert_eq!(image.cache(0, 20), wrong);
}

#[test]
fn a_range_beyond_the_end_is_an_error() {
    let image = image(&[BlockPlace::Zero, BlockPlace::Zero]);
    let line = |length, offset| Error::image(format!("{length} bytes at {offset} are not within the disk of 20 bytes"));
    assert_eq!(image.read(15, &mut [0; 6]), Err(line(6, 15)));
    assert_eq!(image.cache(u64::MAX, 2), Err(line(2, u64::MAX)));
    assert_eq!(image.extents(&mut ExtentList::new(20, 1)), Err(line(1, 20)));
}

#[test]
fn a_question_about_many_blocks_ends_early() {
    let mut places = vec![BlockPlace::Zero; MOST_PLACES as usize + 5];
    places[0] = BlockPlace::Stored(0);
    let image = image(&places);
    let list = extents(&image, 0, image.size());
    assert_eq!(list.iter().map(|extent| extent.length).sum::<u64>(), u64::from(MOST_PLACES) * 10);
}

#[test]
fn a_fixed_image_has_the_zeroes_of_what_stores_it() {
    struct Half;
    impl Source for Half {
        fn size(&self) -> u64 {
            100
        }
        fn read(&self, _: u64, into: &mut [u8]) -> Result<(), Error> {
            into.fill(0);
            Ok(())
        }
        fn extents(&self, list: &mut ExtentList) -> Result<(), Error> {
            list.push_data(50u64.saturating_sub(list.at()));
            list.push_hole(list.left());
            Ok(())
        }
    }
    let mut image = image(&[BlockPlace::Stored(40), BlockPlace::Stored(50)]);
    image.0.below = Rc::new(Half);
    assert_eq!(extents(&image, 0, 20).len(), 1, "what was written later may be zero or not");
    image.0.is_fixed = true;
    let list = extents(&image, 0, 20);
    let kinds: Vec<_> = list.iter().map(|extent| (extent.length, extent.kind)).collect();
    assert_eq!(kinds, [(10, ExtentType::empty()), (10, ExtentType::ZERO)]);
}
