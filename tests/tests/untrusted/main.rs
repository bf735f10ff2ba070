//! Filters that somebody hostile wrote, in the program itself: the worst that they can do is fail the requests that pass through them.

mod blocked;
mod chain;
mod confined;
mod faults;
mod guest;
mod load;
mod spinning;
mod torn;
mod wasi;
