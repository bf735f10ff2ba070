//! The interfaces of the contract that a component exports, and the functions of an instance.

use wasmtime::Store;
use wasmtime::component::{ComponentExportIndex, Instance, InstancePre, TypedFunc};

use super::context::Context;
use super::exported::Exported;
use crate::connection::bindings::guest;
use crate::connection::bindings::host::types as wit;
use crate::load::error::{LoadError, one_line};
use crate::load::mismatch;

/// `reads.pread` or `writes.pwrite`, which have the same type. The generated binding would add a
/// second future around the call's future.
pub(super) type TransferFunction = TypedFunc<(u64, u32, wit::CommandFlags), (Result<(), wit::Errno>,)>;

macro_rules! exports {
    ($($transfer:ident.$function:ident),*; $($name:ident),*; in order: $($any:ident $label:literal),*) => {
        /// Which interfaces a component exports, with their indices.
        pub(crate) struct ExportIndices {
            filter: guest::filter::GuestIndices,
            $($transfer: Option<ComponentExportIndex>,)*
            $($name: Option<guest::$name::GuestIndices>,)*
        }

        /// The interfaces of the contract that a filter can export.
        pub(crate) const KNOWN_EXPORTS: &[&str] = &["filter", $($label),*];

        /// The functions of an instance, by interface. None for an interface that the component
        /// does not export.
        pub(crate) struct ExportedFunctions {
            $(pub(super) $transfer: Option<TransferFunction>,)*
            pub(super) filter: guest::filter::Guest,
            $(pub(super) $name: Option<guest::$name::Guest>,)*
        }

        impl ExportIndices {
            /// Looks for each interface of the contract.
            ///
            /// # Errors
            /// `filter` is missing, or an interface lacks a function.
            pub(crate) fn find(pre: &InstancePre<Context>) -> Result<ExportIndices, LoadError> {
                let component = pre.component();
                let wrong = |error| {
                    let why = mismatch::of_exports(component, pre.engine()).unwrap_or_else(|| one_line(&error));
                    LoadError::mismatch(&why)
                };
                if component.get_export_index(None, "rbdkit:filter/filter@0.1.0").is_none() {
                    return Err(mismatch::no_filter(component, pre.engine()));
                }
                Ok(ExportIndices {
                    filter: guest::filter::GuestIndices::new(pre).map_err(wrong)?,
                    $($transfer: {
                        let interface = concat!("rbdkit:filter/", stringify!($transfer), "@0.1.0");
                        match component.get_export_index(None, interface) {
                            None => None,
                            Some(at) => {
                                // Checks that the function is there and has the right type.
                                guest::$transfer::GuestIndices::new(pre).map_err(wrong)?;
                                component.get_export_index(Some(&at), stringify!($function))
                            }
                        }
                    },)*
                    $($name: {
                        let interface = concat!("rbdkit:filter/", stringify!($name), "@0.1.0").replace('_', "-");
                        match component.get_export_index(None, &interface) {
                            None => None,
                            Some(_) => Some(guest::$name::GuestIndices::new(pre).map_err(wrong)?),
                        }
                    },)*
                })
            }

            /// Which interfaces there are, for the layer and by name.
            pub(crate) fn exported(&self) -> (Exported, Vec<&'static str>) {
                let exported = Exported {
                    transparent: false,
                    $($transfer: self.$transfer.is_some(),)*
                    $($name: self.$name.is_some(),)*
                };
                let mut names = vec!["filter"];
                $(if exported.$any {
                    names.push($label);
                })*
                (exported, names)
            }

            /// Looks up the functions of an instance.
            pub(super) fn load(
                &self,
                store: &mut Store<Context>,
                instance: &Instance,
            ) -> wasmtime::Result<ExportedFunctions> {
                Ok(ExportedFunctions {
                    $($transfer: match &self.$transfer {
                        Some(index) => Some(instance.get_typed_func(&mut *store, index)?),
                        None => None,
                    },)*
                    filter: self.filter.load(&mut *store, instance)?,
                    $($name: match &self.$name {
                        Some(indices) => Some(indices.load(&mut *store, instance)?),
                        None => None,
                    },)*
                })
            }
        }
    };
}

exports!(
    reads.pread, writes.pwrite;
    wishes, threading, lifecycle, admission, names, connection, info, features, flushes, trims, zeroes, mapping,
    caching, background, on_alarm, on_watch, on_connection;
    in order: wishes "wishes", threading "threading", lifecycle "lifecycle", admission "admission", names "names",
    connection "connection", info "info", features "features", reads "reads", writes "writes", flushes "flushes",
    trims "trims", zeroes "zeroes", mapping "mapping", caching "caching", background "background",
    on_alarm "on-alarm", on_watch "on-watch", on_connection "on-connection"
);

impl ExportIndices {
    /// Whether the component exports `on-alarm`.
    pub(super) fn has_on_alarm(&self) -> bool {
        self.on_alarm.is_some()
    }
}

/// The functions of an interface. Callers check before that the filter exports it.
pub(super) fn interface<T>(functions: &Option<T>) -> wasmtime::Result<&T> {
    functions.as_ref().ok_or_else(|| wasmtime::format_err!("the filter does not export this function"))
}
