//! [`export!`](crate::export), which makes a component's exports from a filter's traits.

use crate::host::log;

/// Makes a panic write its message to the server's log, before the trap ends the instance.
#[doc(hidden)]
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| log::error(&panic.to_string())));
}

/// Exports a filter: `export!(MyFilter: reads, writes)` names the interfaces that it implements, as
/// the contract calls them.
///
/// On other targets than WebAssembly the macro expands to nothing, so that native tests can build
/// the filter's crate.
#[macro_export]
macro_rules! export {
    ($filter:ident $(: $($group:ident),* $(,)?)?) => {
        #[cfg(target_arch = "wasm32")]
        #[allow(missing_docs)]
        #[allow(unsafe_code, reason = "wit-bindgen makes the exported symbols, which the lint on unsafe code is about")]
        mod rbdkit_exports {
            use super::$filter as Filter;

            struct Exports;

            ::std::thread_local! {
                static FILTER: ::std::cell::Cell<::std::option::Option<&'static Filter>> =
                    const { ::std::cell::Cell::new(None) };
            }

            /// The host calls `configure` before every other function but `describe`.
            #[inline]
            fn filter() -> &'static Filter {
                match FILTER.get() {
                    Some(filter) => filter,
                    None => panic!("the host called the filter before configure"),
                }
            }

            impl $crate::bindings::host::exports::rbdkit::filter::filter::Guest for Exports {
                fn describe() -> $crate::bindings::host::rbdkit::filter::types::Description {
                    $crate::report_panics();
                    <Filter as $crate::Filter>::describe().into_contract()
                }
                fn configure(params: Vec<(String, String)>) -> Result<(), String> {
                    $crate::report_panics();
                    let params = $crate::Params::from_host(params);
                    let filter = <Filter as $crate::Filter>::configure(&params)?;
                    // The host configures an instance once and never undoes it.
                    FILTER.set(Some(Box::leak(Box::new(filter))));
                    Ok(())
                }
            }
            $crate::bindings::host::export_filter!(Exports with_types_in $crate::bindings::host);

            $($($crate::__export_group!($group);)*)?
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __export_group {
    (threading) => {
        impl $crate::bindings::threading::Guest for Exports {
            fn thread_model() -> $crate::ThreadModel {
                <Filter as $crate::Threading>::thread_model(filter())
            }
        }
        $crate::bindings::threading::export_threading!(Exports with_types_in $crate::bindings::threading);
    };
    (lifecycle) => {
        impl $crate::bindings::lifecycle::Guest for Exports {
            fn get_ready() -> Result<(), String> {
                <Filter as $crate::Lifecycle>::get_ready(filter())
            }
            fn after_fork() -> Result<(), String> {
                <Filter as $crate::Lifecycle>::after_fork(filter())
            }
            fn cleanup() {
                <Filter as $crate::Lifecycle>::cleanup(filter())
            }
        }
        $crate::bindings::lifecycle::export_lifecycle!(Exports with_types_in $crate::bindings::lifecycle);
    };
    (admission) => {
        impl $crate::bindings::admission::Guest for Exports {
            fn preconnect(readonly: bool) -> Result<(), $crate::Errno> {
                <Filter as $crate::Admission>::preconnect(filter(), readonly)
            }
        }
        $crate::bindings::admission::export_admission!(Exports with_types_in $crate::bindings::admission);
    };
    (names) => {
        impl $crate::bindings::names::Guest for Exports {
            fn list_exports(readonly: bool, is_tls: bool) -> Result<Vec<$crate::ExportEntry>, $crate::Errno> {
                <Filter as $crate::Names>::list_exports(filter(), readonly, is_tls)
            }
            fn default_export(readonly: bool, is_tls: bool) -> Result<String, $crate::Errno> {
                <Filter as $crate::Names>::default_export(filter(), readonly, is_tls)
            }
        }
        $crate::bindings::names::export_names!(Exports with_types_in $crate::bindings::names);
    };
    (connection) => {
        impl $crate::bindings::connection::Guest for Exports {
            fn open(readonly: bool, exportname: String, is_tls: bool, replayed: bool) -> Result<u64, $crate::Errno> {
                <Filter as $crate::Connection>::open(filter(), readonly, &exportname, is_tls, replayed)
            }
            fn prepare() -> Result<(), $crate::Errno> {
                <Filter as $crate::Connection>::prepare(filter())
            }
            fn finalize() -> Result<(), $crate::Errno> {
                <Filter as $crate::Connection>::finalize(filter())
            }
            fn close() {
                <Filter as $crate::Connection>::close(filter())
            }
        }
        $crate::bindings::connection::export_connection!(Exports with_types_in $crate::bindings::connection);
    };
    (info) => {
        impl $crate::bindings::info::Guest for Exports {
            fn get_size() -> Result<u64, $crate::Errno> {
                <Filter as $crate::Info>::get_size(filter())
            }
            fn block_size() -> Result<$crate::BlockSizes, $crate::Errno> {
                <Filter as $crate::Info>::block_size(filter())
            }
            fn export_description() -> Option<String> {
                <Filter as $crate::Info>::export_description(filter())
            }
        }
        $crate::bindings::info::export_info!(Exports with_types_in $crate::bindings::info);
    };
    (features) => {
        impl $crate::bindings::features::Guest for Exports {
            fn can(below: $crate::Capabilities) -> Result<$crate::Capabilities, $crate::Errno> {
                <Filter as $crate::Features>::can(filter(), below)
            }
        }
        $crate::bindings::features::export_features!(Exports with_types_in $crate::bindings::features);
    };
    (reads) => {
        impl $crate::bindings::reads::Guest for Exports {
            fn pread(offset: u64, length: u32, flags: $crate::CommandFlags) -> Result<(), $crate::Errno> {
                <Filter as $crate::Reads>::pread(filter(), offset, length, flags)
            }
        }
        $crate::bindings::reads::export_reads!(Exports with_types_in $crate::bindings::reads);
    };
    (writes) => {
        impl $crate::bindings::writes::Guest for Exports {
            fn pwrite(offset: u64, length: u32, flags: $crate::CommandFlags) -> Result<(), $crate::Errno> {
                <Filter as $crate::Writes>::pwrite(filter(), offset, length, flags)
            }
        }
        $crate::bindings::writes::export_writes!(Exports with_types_in $crate::bindings::writes);
    };
    (flushes) => {
        impl $crate::bindings::flushes::Guest for Exports {
            fn flush() -> Result<(), $crate::Errno> {
                <Filter as $crate::Flushes>::flush(filter())
            }
        }
        $crate::bindings::flushes::export_flushes!(Exports with_types_in $crate::bindings::flushes);
    };
    (trims) => {
        impl $crate::bindings::trims::Guest for Exports {
            fn trim(offset: u64, length: u64, flags: $crate::CommandFlags) -> Result<(), $crate::Errno> {
                <Filter as $crate::Trims>::trim(filter(), offset, length, flags)
            }
        }
        $crate::bindings::trims::export_trims!(Exports with_types_in $crate::bindings::trims);
    };
    (zeroes) => {
        impl $crate::bindings::zeroes::Guest for Exports {
            fn zero(offset: u64, length: u64, flags: $crate::CommandFlags) -> Result<(), $crate::Errno> {
                <Filter as $crate::Zeroes>::zero(filter(), offset, length, flags)
            }
        }
        $crate::bindings::zeroes::export_zeroes!(Exports with_types_in $crate::bindings::zeroes);
    };
    (mapping) => {
        impl $crate::bindings::mapping::Guest for Exports {
            fn extents(
                offset: u64,
                length: u64,
                flags: $crate::CommandFlags,
            ) -> Result<Vec<$crate::Extent>, $crate::Errno> {
                <Filter as $crate::Mapping>::extents(filter(), offset, length, flags)
            }
        }
        $crate::bindings::mapping::export_mapping!(Exports with_types_in $crate::bindings::mapping);
    };
    (background) => {
        impl $crate::bindings::background::Guest for Exports {
            fn next_range() -> Option<$crate::bindings::background::Range> {
                let range = <Filter as $crate::Background>::next_range(filter());
                range.map(|(offset, length)| $crate::bindings::background::Range { offset, length })
            }
        }
        $crate::bindings::background::export_background!(Exports with_types_in $crate::bindings::background);
    };
    (caching) => {
        impl $crate::bindings::caching::Guest for Exports {
            fn cache(offset: u64, length: u64) -> Result<(), $crate::Errno> {
                <Filter as $crate::Caching>::cache(filter(), offset, length)
            }
        }
        $crate::bindings::caching::export_caching!(Exports with_types_in $crate::bindings::caching);
    };
}
