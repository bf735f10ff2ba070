//! The gate in front of a layer: one call through a hop to the null plugin, with all checks.

use divan::Bencher;

use crate::stack::Stack;

#[divan::bench]
fn pread(bencher: Bencher<'_, '_>) {
    Stack::of(&[]).bench_reads(bencher, 4096);
}

#[divan::bench]
fn pwrite(bencher: Bencher<'_, '_>) {
    Stack::of(&[]).bench_writes(bencher, 4096);
}
