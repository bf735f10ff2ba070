//! Files of gzip.

use rbdkit_filter_formats::testing::{fuzz, piped, sample};

#[test]
fn gzip_files_never_make_it_panic_or_loop() {
    let first = piped("gzip", &["-9"], &sample(200_000, 1));
    let both = [first.clone(), piped("gzip", &["-9"], &sample(50_000, 2))].concat();
    fuzz("gzip", &[first, both], rbdkit_filter_formats::gzip::INFO.open);
}
