//! Filters that somebody hostile wrote, in the program itself: the worst that they can do is fail the requests that pass through them.
//!
//! What each of them does, and where it is (`chain` is [`chain`]'s one server with all of them, whose cases have these names; the others are tests).
//!
//! | what it does | where | what comes of it |
//! |---|---|---|
//! | spins in an export, the allocator, post-return, a destructor | `chain`: `spin-in-*` | ended by `cpu`: EIO |
//! | spins in the start function, describe, configure, get-ready | `load` | refused by `setup` |
//! | spins in all instances at once | `spinning` | others' p99 stays; ended within 20 ms of the deadline |
//! | waits in sleep or a lock, for a plugin that does not answer | `blocked` | others are served; ended with its client |
//! | a thousand host calls a millisecond, reads below without end | `chain`: `cheap-host-calls`, `*-reads-below` | ended by `cpu` or `wall`: EIO |
//! | waits again and again | `chain`: `waits-for-ever` | ended by `waits`: EIO |
//! | grows memory and tables to the end, bit by bit and at once | `chain`: `memory-*`, `table-*` | the growth fails, at the limit |
//! | copies and fills 4 GiB, for ever | `chain`: `bulk-*`, `table-fill` | traps or ended: EIO |
//! | nine memories, seventeen tables, a memory that is too large | `load` | refused |
//! | all instances of all filters grow | `faults` | `memory-all`: EIO, and given back |
//! | recursion, with host calls on the way, below a host call | `chain`: `deep-recursion*` | traps: EIO |
//! | a list or string that is huge, or not in its memory, to every function of the host | `chain`: `huge-*`, `long-*` | traps; `transfer`: EIO |
//! | an allocator out of bounds, misaligned, overlapping, that calls back or traps | `chain`: `allocator-*` | EIO; its own affair if it is its own memory |
//! | a million handles; stale, foreign, doubly dropped ones | `chain`: `*-handle*` | traps: EIO |
//! | a million buffers, large ones; stale and foreign ones | `chain`: `*-buffer*` | ENOMEM to the guest; traps: EIO |
//! | floods the log with escapes | `chain`: `log-*` | escaped, dropped and counted |
//! | floods of prefetches, past the end, of nothing | `chain`: `prefetch-flood` | dropped |
//! | fills its scratch file, far beyond any | `chain`: `scratch-*` | ENOSPC at the quota; EINVAL |
//! | fills its maps | `chain`: `map-flood` | `maps`: traps |
//! | holds a range lock to the deadline, traps with it, takes a second, keeps it | `chain`: `lock*`, `trapped-while-locked`, `never-unlocked` | released: the next round gets it |
//! | traps between data and what says where it is | `torn` | a block is what it was or what was written |
//! | results that are short, overlong, nonsense, out of bounds | `chain`: `reads-*`, `answers-*`, `errno-nonsense` | zeroes or EIO, never a stale byte |
//! | extents: none, empty, overlapping, elsewhere, past the end, 100,000 and 100,000,000 | `chain`: `extents-*`, `forwards-*` | EIO; cut to the export |
//! | a size that changes, cannot be, changes while others are served | `lies` | each connection has the one it was told |
//! | abilities that change, that next does not have | `lies` | the same; withdrawn, and the log says so |
//! | a flush that did nothing, writes that were dropped | `lies` | success, as it says: what went through it is lost, no fault |
//! | names, texts, lists of exports without end | `lies` | what asked for them fails |
//! | calls itself through next: opens it again, stands below itself twelve times | `lies` | opened once; only its own client waits |
//! | imports and files that were not granted, phases, maps and scopes that are not there | `load`, `chain`: `*-of-nobody`, `opens-in-a-read`, `no-such-*` | refused; an errno; traps |
//! | compile bombs: 20,000 functions, a million nested blocks, locals, types, 64 MiB | `load` | compiled or refused within the bounds |
//! | truncated and flipped files | `load`, `tests/fuzz/loader.rs` | refused with a line, or a filter |
//! | features that are off | `load` | refused |
//! | asks WASI for files, sockets, the environment | `wasi` | the host's own stubs: not permitted |
//! | keeps failing, many at once, floods the log with it | `faults` | left alone; counted; `--filter-on-fault` |
//! | says another thing of itself each time | `load` | the time and chance are made up for it |
//! | is a pipe, a device | `load` | refused |
//! | fills what may not grow | `full` | the writes fail |
//! | is through the first wall | `confined` | the process can do nothing but serve |

mod blocked;
mod chain;
mod confined;
mod faults;
mod full;
mod guest;
mod lies;
mod load;
mod spinning;
mod torn;
mod wasi;
