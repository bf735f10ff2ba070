//! Hops into components. These figures include the cost of a chain without filters (`gate`). The
//! difference is the cost of the layer.

use divan::Bencher;

use crate::stack::Stack;

/// This many filters that pass reads on. A request costs the same however long it is.
#[divan::bench(args = [1, 3, 10], consts = [4096, 1048576])]
fn nofilter_pread<const LENGTH: u32>(bencher: Bencher<'_, '_>, layers: usize) {
    Stack::of(&vec!["nofilter"; layers]).bench_reads(bencher, LENGTH);
}

#[divan::bench(args = [1, 3, 10])]
fn nofilter_pwrite(bencher: Bencher<'_, '_>, layers: usize) {
    Stack::of(&vec!["nofilter"; layers]).bench_writes(bencher, 4096);
}

/// Nothing was written: each read asks the map and goes to the layer below.
#[divan::bench]
fn cow_pread_of_the_layer_below(bencher: Bencher<'_, '_>) {
    Stack::of(&["cow"]).bench_reads(bencher, 4096);
}

/// Whole blocks go to the scratch file without a read below.
#[divan::bench]
fn cow_pwrite_of_blocks(bencher: Bencher<'_, '_>) {
    Stack::of(&["cow"]).bench_writes(bencher, 64 << 10);
}

#[divan::bench]
fn cache_pread_of_the_layer_below(bencher: Bencher<'_, '_>) {
    Stack::of(&["cache"]).bench_reads(bencher, 4096);
}
