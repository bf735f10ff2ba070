//! What the tests of the compressions share.

use std::rc::Rc;

use rbdkit_filter_sdk::image::{Error, Source, read};

use super::{CHUNK, Codec, Unpacked};
use crate::testing::{Rng, read_all};

/// Reads all of a file, and then at random places, and compares with the data.
pub fn same<C: Codec>(file: &Unpacked<C>, data: &[u8]) {
    assert_eq!(file.size(), data.len() as u64);
    assert!(read_all(file).unwrap() == data, "all of it");
    random_reads(file, data, 40);
}

/// Reads at random places, and compares with the data.
pub fn random_reads<C: Codec>(file: &Unpacked<C>, data: &[u8], count: u32) {
    let mut rng = Rng::new(7);
    for _ in 0..if data.is_empty() { 0 } else { count } {
        let offset = rng.below(data.len() as u64);
        let length = (1 + rng.below(3 * CHUNK / 2)).min(data.len() as u64 - offset);
        let got = read(file, offset, length as usize).unwrap();
        assert!(got == data[offset as usize..][..length as usize], "{length} bytes at {offset}");
    }
}

/// Reads in order in requests of 64 KiB, and tells how often decoding began at a point.
pub fn starts_of_a_sequential_read<C: Codec>(file: &Unpacked<C>) -> u32 {
    let before = file.starts();
    for offset in (0..file.size()).step_by(64 << 10) {
        read(file, offset, (file.size() - offset).min(64 << 10) as usize).unwrap();
    }
    file.starts() - before
}

/// The line of the error that opening or reading a file gives.
pub fn line(open: impl Fn(Rc<dyn Source>) -> crate::Opened, bytes: &[u8]) -> String {
    match open(Rc::new(bytes.to_vec())).and_then(|file| read_all(&*file)) {
        Ok(_) => "it could be read".to_string(),
        Err(Error::Image(line)) => line,
        Err(error) => format!("{error:?}"),
    }
}

/// A file that is cut anywhere is an error, or it gives a part of the data that ends with a unit.
pub fn cut_anywhere(open: impl Fn(Rc<dyn Source>) -> crate::Opened, file: &[u8], data: &[u8]) {
    let places = (0..file.len()).filter(|at| *at < 100 || file.len() - at < 100 || at % 997 == 0);
    for at in places {
        if let Ok(part) = open(Rc::new(file[..at].to_vec())).and_then(|part| read_all(&*part)) {
            assert!(data.starts_with(&part) && part.len() < data.len(), "cut at {at}: {} bytes", part.len());
        }
    }
}
