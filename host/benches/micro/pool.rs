//! The pool of buffers: takes a buffer and gives it back, on one thread and on two at once.

use std::sync::LazyLock;

use rbdkit_plugin_api::Pool;

static POOL: LazyLock<Pool> = LazyLock::new(Pool::new);

#[divan::bench(args = [4096, 262144, 1048576], threads = [1, 2])]
fn take_and_return(length: u32) {
    drop(divan::black_box(POOL.take(length)));
}
