//! Hostile filters in the program itself. The worst that a filter can do is fail the requests that
//! pass through it.
//!
//! What the filters do, by file. In [`chain`] many of them stand in one chain of one server; its
//! cases have the names given here.
//!
//! [`chain`]: what a filter does while it serves a request.
//!
//! * `spin-in-*`: spins in an export, the allocator, post-return, a destructor. Ended by `cpu`:
//!   EIO.
//! * `cheap-host-calls`, `*-reads-below`: a thousand host calls a millisecond, endless reads below.
//!   Ended by `cpu` or `wall`: EIO.
//! * `waits-for-ever`: waits again and again. Ended by `waits`: EIO.
//! * `memory-*`, `table-*`: grows memory and tables, bit by bit and at once. The growth fails at
//!   the limit.
//! * `bulk-*`, `table-fill`: copies and fills 4 GiB. Traps or is ended: EIO.
//! * `deep-recursion*`: recurses, with host calls on the way, and below a host call. Traps: EIO.
//! * `huge-*`, `long-*`: passes a list that is huge, or not in its memory, to every function of the
//!   host. Traps, or is ended by `transfer`: EIO.
//! * `allocator-*`: its allocator is out of bounds, misaligned, overlapping, calls back or traps.
//!   EIO; overlapping its own memory harms only itself.
//! * `*-handle*`: a million handles; stale, foreign and doubly dropped ones. Traps: EIO.
//! * `*-buffer*`: a million buffers, large ones; stale and foreign ones. The guest gets ENOMEM, or
//!   traps: EIO.
//! * `*-key*`, `*-cipher*`, `*-sector*`, `derives-*`, `encrypts-*`: keys that do not exist, of
//!   wrong lengths and without end; ranges that are no sectors or not in the buffer. An errno, or
//!   traps.
//! * `log-*`: floods the log with escapes. Lines are escaped, dropped and counted.
//! * `opens-shared-*`: opens a shared next in a request. ENXIO.
//! * `swaps-*`, `compares-*`, `sums-*`: groups of three bytes, half a group, ranges that end beyond
//!   the buffer. Traps: EIO.
//! * `prefetch-flood`: floods of prefetches, past the end, of nothing. Dropped.
//! * `scratch-*`: fills its scratch file, and writes far beyond it. ENOSPC at the quota; EINVAL.
//! * `map-flood`: fills its maps. Traps at `maps`.
//! * `lock*`, `trapped-while-locked`, `never-unlocked`: holds a range lock to the deadline, traps
//!   with it, takes a second one, keeps it. The lock is released: the next round gets it.
//! * `reads-*`, `answers-*`, `errno-nonsense`: results that are short, overlong, nonsense, out of
//!   bounds. Zeroes or EIO, never an old byte.
//! * `extents-*`, `forwards-*`: extents that are missing, empty, overlapping, elsewhere, past the
//!   end, 100,000 or 100,000,000. EIO, or cut to the export.
//! * `*-of-nobody`, `opens-in-a-read`, `no-such-*`: files that were not granted, calls of another
//!   phase, maps and scopes that do not exist. An errno, or traps.
//!
//! [`load`]: what is refused before a server listens.
//!
//! * Spins in the start function, describe, configure, get-ready. Refused by `setup`.
//! * Nine memories, seventeen tables, a memory that is too large; features that are off; imports
//!   that were not granted; pipes and devices. Refused.
//! * Compile bombs: 20,000 functions, a million nested blocks, locals, types, 64 MiB. Compiled or
//!   refused within the bounds.
//! * Truncated and flipped files (also in `tests/fuzz/loader.rs`). Refused with a line, or a
//!   filter.
//! * A description that depends on time or chance. Time and chance are made up for it.
//!
//! The other files:
//!
//! * [`author`]: takes the name of a built-in filter. The log names the file. More filters than a
//!   chain may have are refused.
//! * [`spinning`]: spins in all instances at once. Others' p99 stays; ended within 20 ms of the
//!   deadline.
//! * [`blocked`]: waits in sleep or a lock, or for a plugin that does not answer. Others are
//!   served; the wait ends with its client.
//! * [`faults`]: keeps failing, many at once, floods the log with it. Paused, counted,
//!   `--filter-on-fault`. All instances of all filters grow: `memory-all` gives EIO, and the memory
//!   is given back.
//! * [`torn`]: traps between writing data and saying where it is. A block is what it was before or
//!   what was written.
//! * [`lies`]: a size or abilities that change or cannot be; each connection keeps what it was
//!   told. A flush that did nothing, writes that were dropped: only what went through the filter is
//!   lost. Names, texts and lists of exports without end: the request for them fails. Calls itself
//!   through next: next is opened once, and twelve layers of itself delay only their own client.
//! * [`keys`]: derives keys without end or with much memory, and uses keys and secrets that are not
//!   its own. ETIMEDOUT at `setup`, ENOMEM at `key-memory`, EINVAL, ENOENT.
//! * [`wasi`]: asks WASI for files, sockets, the environment. The host's stubs do not permit it.
//! * [`events`]: asks for powers that it has not: EPERM. Spins, traps and floods in alarms, watches
//!   and events of connections. Ended by `cpu`; the event is lost; a twentieth of a processor.
//! * [`siblings`]: opens a shared next under invented names: one disk stays open, and ENOSPC beyond
//!   `exports`. Flushes a hundred connections in a loop: EIO at `cpu`, and the others are served.
//! * [`wishes`]: wishes for all of each limit: it gets what there is. For others, twice, without
//!   end: refused.
//! * [`full`]: fills files that may not grow. The writes fail.
//! * [`named`]: what the operator names: scripts that never end, print without end, run in a loop
//!   and with `PATH` set; a kept file filled beyond its limit; sums with more keys than there may
//!   be. The guest gets an errno.
//! * [`disks`]: reads a disk of the operator's beyond its end, with huge lengths, before a client has
//!   opened an export, and under names of other parameters; disks that do not open or never answer.
//!   The guest gets an errno, or traps: EIO. The disk is never written.
//! * [`gate`]: keeps its gate closed, closes it in a request, spins, traps and answers too much in
//!   a command; and clients of a control socket that flood, leave and never read. EDEADLK; the
//!   client of the command is disconnected; all others are served, and the server ends when it is
//!   told to.
//! * [`confined`]: a guest that broke out of its sandbox. The process can do nothing but serve.

mod author;
mod blocked;
mod chain;
mod confined;
mod disks;
mod events;
mod faults;
mod full;
mod gate;
mod guest;
mod keys;
mod lies;
mod load;
mod named;
mod siblings;
mod spinning;
mod torn;
mod wasi;
mod wishes;
