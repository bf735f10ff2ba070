//! Images of qemu-img, and images of the writer: differencing ones, and others that are wrong.

mod images;
mod logs;
mod wrong;

use super::*;
use crate::testing::{read_all, source};

fn opened(bytes: &[u8]) -> Image {
    open(source(bytes), || Ok(None)).unwrap()
}

fn refused(bytes: &[u8]) -> String {
    open(source(bytes), || Ok(None)).err().expect("an image that is wrong").to_string()
}

fn report(bytes: &[u8]) -> crate::Report {
    (INFO.report)(&source(bytes)).unwrap()
}

/// What the first byte of the disk is read as, or why it cannot be.
fn first_byte(bytes: &[u8]) -> Result<u8, String> {
    let mut byte = [0];
    opened(bytes).read(0, &mut byte).map(|()| byte[0]).map_err(|error| error.to_string())
}
