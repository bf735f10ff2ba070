//! Files of lzip.

use rbdkit_filter_formats::testing::{fuzz, piped, sample};

#[test]
fn lzip_files_never_make_it_panic_or_loop() {
    let first = piped("lzip", &[], &sample(200_000, 1));
    let both = [first.clone(), piped("lzip", &[], &sample(50_000, 2))].concat();
    fuzz("lzip", &[first, both], rbdkit_filter_formats::lzip::INFO.open);
}
