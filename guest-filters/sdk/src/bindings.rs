//! The code that wit-bindgen makes from the contract: one module for the imports and the required
//! export, and one for each optional export, so that a component exports only what its author
//! names. Only this crate and its macros use it; filters use the crate's other modules.
//!
//! The files below `bindings/` are checked in. `../bindgen` writes them, and its test fails when
//! they differ from what the generator makes of the contract.
#![allow(missing_docs, clippy::all)]
#![allow(unsafe_code, reason = "wit-bindgen writes these files: they pass values to and from the host")]

/// The imports, and the required export `filter`.
pub mod host {
    include!("bindings/host.inc");
}

pub mod wishes {
    include!("bindings/wishes.inc");
    pub use exports::rbdkit::filter::wishes::Guest;
}

pub mod threading {
    include!("bindings/threading.inc");
    pub use exports::rbdkit::filter::threading::Guest;
}

pub mod lifecycle {
    include!("bindings/lifecycle.inc");
    pub use exports::rbdkit::filter::lifecycle::Guest;
}

pub mod admission {
    include!("bindings/admission.inc");
    pub use exports::rbdkit::filter::admission::Guest;
}

pub mod names {
    include!("bindings/names.inc");
    pub use exports::rbdkit::filter::names::Guest;
}

pub mod connection {
    include!("bindings/connection.inc");
    pub use exports::rbdkit::filter::connection::Guest;
}

pub mod info {
    include!("bindings/info.inc");
    pub use exports::rbdkit::filter::info::Guest;
}

pub mod features {
    include!("bindings/features.inc");
    pub use exports::rbdkit::filter::features::Guest;
}

pub mod reads {
    include!("bindings/reads.inc");
    pub use exports::rbdkit::filter::reads::Guest;
}

pub mod writes {
    include!("bindings/writes.inc");
    pub use exports::rbdkit::filter::writes::Guest;
}

pub mod flushes {
    include!("bindings/flushes.inc");
    pub use exports::rbdkit::filter::flushes::Guest;
}

pub mod trims {
    include!("bindings/trims.inc");
    pub use exports::rbdkit::filter::trims::Guest;
}

pub mod zeroes {
    include!("bindings/zeroes.inc");
    pub use exports::rbdkit::filter::zeroes::Guest;
}

pub mod mapping {
    include!("bindings/mapping.inc");
    pub use exports::rbdkit::filter::mapping::Guest;
}

pub mod caching {
    include!("bindings/caching.inc");
    pub use exports::rbdkit::filter::caching::Guest;
}

pub mod on_alarm {
    include!("bindings/on-alarm.inc");
    pub use exports::rbdkit::filter::on_alarm::Guest;
}

pub mod on_watch {
    include!("bindings/on-watch.inc");
    pub use exports::rbdkit::filter::on_watch::Guest;
}

pub mod on_connection {
    include!("bindings/on-connection.inc");
    pub use exports::rbdkit::filter::on_connection::Guest;
}

pub mod on_control {
    include!("bindings/on-control.inc");
    pub use exports::rbdkit::filter::on_control::Guest;
}

pub mod background {
    include!("bindings/background.inc");
    pub use exports::rbdkit::filter::background::{Guest, Range};
}
