//! Files of bzip2.

use rbdkit_filter_formats::testing::{fuzz, piped, sample};

#[test]
fn bzip2_files_never_make_it_panic_or_loop() {
    let first = piped("bzip2", &["-1"], &sample(200_000, 1));
    let both = [first.clone(), piped("bzip2", &[], &sample(50_000, 2))].concat();
    fuzz("bzip2", &[first, both], rbdkit_filter_formats::bzip2::INFO.open);
}
