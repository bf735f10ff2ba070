//! nbdkit's own plugins, loaded as they are: those of Debian's packages, and ones that the tests
//! compile with nbdkit's header.

mod compiled;
mod equal;
mod faults;
mod packaged;
mod start;
