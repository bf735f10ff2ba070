//! [`export!`](crate::export), which makes a component's exports from a filter's traits.

use crate::host::log;

/// Makes a panic write its message to the server's log, before the trap ends the instance.
#[doc(hidden)]
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| log::error(&panic.to_string())));
}

/// Whether `export!` names an interface.
#[doc(hidden)]
pub const fn names(named: &[&str], interface: &str) -> bool {
    let mut n = 0;
    while n < named.len() {
        if same(named[n].as_bytes(), interface.as_bytes()) {
            return true;
        }
        n += 1;
    }
    false
}

/// `==` cannot be used in a constant.
const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut n = 0;
    while n < a.len() && n < b.len() && a[n] == b[n] {
        n += 1;
    }
    n == a.len() && n == b.len()
}

/// Exports a filter: `export!(MyFilter: reads, writes)` names the interfaces that it implements, as
/// the contract calls them.
///
/// What is written is what runs. The crate does not compile, on any target, if a trait is
/// implemented and its interface is not named, or the other way round. `cargo check` shows it.
///
/// On other targets than WebAssembly the macro exports nothing. There it lets the simulated host of
/// [`testing`](crate::testing) call the filter.
#[macro_export]
macro_rules! export {
    ($filter:ident $(: $($group:ident),* $(,)?)?) => {
        const _: () = {
            const NAMED: &[&str] = &[$($(stringify!($group)),*)?];
            $crate::__assert_exported!($filter, NAMED);
        };
        $($($crate::__assert_interface!($group);)*)?

        #[cfg(not(target_arch = "wasm32"))]
        impl $crate::testing::Exported for $filter {
            const INTERFACES: &'static [&'static str] = &[$($(stringify!($group)),*)?];
            $($($crate::__testing_group!($group);)*)?
        }

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

            type Params = <Filter as $crate::Filter>::Params;

            impl $crate::bindings::host::exports::rbdkit::filter::filter::Guest for Exports {
                fn describe() -> $crate::bindings::host::rbdkit::filter::types::Description {
                    $crate::report_panics();
                    let params = <Params as $crate::Parameters>::declare();
                    <Filter as $crate::Filter>::describe().into_contract(params)
                }
                fn configure(given: Vec<(String, String)>) -> Result<(), String> {
                    $crate::report_panics();
                    let given = $crate::Params::from_host::<Params>(given);
                    let filter = <Filter as $crate::Filter>::configure($crate::Parameters::read(&given)?)?;
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

/// Fails to compile for a word that is no interface.
#[doc(hidden)]
#[macro_export]
macro_rules! __assert_interface {
    (wishes) => {};
    (threading) => {};
    (lifecycle) => {};
    (admission) => {};
    (names) => {};
    (connection) => {};
    (info) => {};
    (features) => {};
    (reads) => {};
    (writes) => {};
    (flushes) => {};
    (trims) => {};
    (zeroes) => {};
    (mapping) => {};
    (caching) => {};
    (background) => {};
    (on_alarm) => {};
    (on_watch) => {};
    (on_connection) => {};
    (on_control) => {};
    ($other:ident) => {
        ::std::compile_error!(::std::concat!(
            "the contract has no interface `",
            stringify!($other),
            "`: export! takes wishes, threading, lifecycle, admission, names, connection, info, features, reads, ",
            "writes, flushes, trims, zeroes, mapping, caching, background, on_alarm, on_watch, on_connection, \
            on_control"
        ));
    };
}

/// Fails to compile if the filter implements a trait whose interface is not named.
#[doc(hidden)]
#[macro_export]
macro_rules! __assert_exported {
    ($filter:ident, $named:ident) => {
        $crate::__assert_exported! {
            $filter, $named,
            wishes Wishes "limits would never be called: the filter would get the default limits",
            threading Threading "thread_model would never be called: the thread model of describe would count",
            lifecycle Lifecycle "get_ready, after_fork and cleanup would never be called",
            admission Admission "preconnect would never be called: the layers below would decide who may connect",
            names Names "list_exports and default_export would never be called: the exports of the layer below would \
                count",
            connection Connection "open, prepare, finalize and close would never be called: the host would open the \
                layer below itself",
            info Info "get_size, block_size and export_description would never be called: those of the layer below \
                would count",
            features Features "can would never be called: the host would decide what the layer can do",
            reads Reads "pread would never be called: reads would pass by a transparent filter, and an opaque one \
                would not load",
            writes Writes "pwrite would never be called: writes would pass by a transparent filter, and an opaque one \
                would make the disk read-only",
            flushes Flushes "flush would never be called: flushes would pass by the filter",
            trims Trims "trim would never be called: trims would pass by a transparent filter, and an opaque one would \
                offer none",
            zeroes Zeroes "zero would never be called: zeroes would pass by a transparent filter, and the host would \
                make writes of them for an opaque one",
            mapping Mapping "extents would never be called: they would pass by a transparent filter, and an opaque one \
                would offer none",
            caching Caching "cache would never be called: cache requests would pass by a transparent filter, and the \
                host would make reads of them for an opaque one",
            background Background "next_range would never be called: nothing would be prefetched in the background",
            on_alarm OnAlarm "alarm would never be called, and no alarm could be set",
            on_watch OnWatch "changed would never be called when a file, a descriptor or a process changes",
            on_connection OnConnection "opened and closed would never be called when connections come and go",
            on_control OnControl "received would never be called, and nobody could connect to the control sockets",
        }
    };
    ($filter:ident, $named:ident, $($interface:ident $ability:ident $consequence:literal,)*) => {
        $(const _: () = {
            // For a type that implements the trait the inherent constant hides that of `Absent`.
            struct Probe<T>(::std::marker::PhantomData<T>);
            #[allow(dead_code, reason = "unused if the type implements the trait")]
            trait Absent {
                const IMPLEMENTED: bool = false;
            }
            impl<T> Absent for Probe<T> {}
            #[allow(dead_code, reason = "unused if the type does not implement the trait")]
            impl<T: $crate::$ability> Probe<T> {
                const IMPLEMENTED: bool = true;
            }
            if <Probe<$filter>>::IMPLEMENTED && !$crate::__names($named, stringify!($interface)) {
                panic!(concat!(
                    "`", stringify!($filter), "` implements `", stringify!($ability), "`, and export! does not name `",
                    stringify!($interface), "`: ", $consequence,
                ));
            }
        };)*
    };
}

/// What the simulated host of `testing` calls for one interface.
#[doc(hidden)]
#[macro_export]
macro_rules! __testing_group {
    (threading) => { $crate::__testing_group!(Threading thread_model() -> $crate::ThreadModel); };
    (lifecycle) => {
        $crate::__testing_group!(Lifecycle get_ready() -> Result<(), String>);
        $crate::__testing_group!(Lifecycle after_fork() -> Result<(), String>);
        $crate::__testing_group!(Lifecycle cleanup() -> ());
    };
    (admission) => { $crate::__testing_group!(Admission preconnect(readonly: bool) -> Result<(), $crate::Errno>); };
    (names) => {
        $crate::__testing_group!(
            Names list_exports(readonly: bool, is_tls: bool) -> Result<Vec<$crate::ExportEntry>, $crate::Errno>
        );
        $crate::__testing_group!(
            Names default_export(readonly: bool, is_tls: bool) -> Result<String, $crate::Errno>
        );
    };
    (connection) => {
        $crate::__testing_group!(
            Connection open(readonly: bool, exportname: &str, is_tls: bool, replayed: bool)
                -> Result<u64, $crate::Errno>
        );
        $crate::__testing_group!(Connection prepare() -> Result<(), $crate::Errno>);
        $crate::__testing_group!(Connection finalize() -> Result<(), $crate::Errno>);
        $crate::__testing_group!(Connection close() -> ());
    };
    (info) => {
        $crate::__testing_group!(Info get_size() -> Result<u64, $crate::Errno>);
        $crate::__testing_group!(Info block_size() -> Result<$crate::BlockSizes, $crate::Errno>);
        $crate::__testing_group!(Info export_description() -> Option<String>);
    };
    (features) => {
        $crate::__testing_group!(
            Features can(below: $crate::Capabilities) -> Result<$crate::Capabilities, $crate::Errno>
        );
    };
    (reads) => {
        $crate::__testing_group!(
            Reads pread(offset: u64, length: u32, flags: $crate::CommandFlags) -> Result<(), $crate::Errno>
        );
    };
    (writes) => {
        $crate::__testing_group!(
            Writes pwrite(offset: u64, length: u32, flags: $crate::CommandFlags) -> Result<(), $crate::Errno>
        );
    };
    (flushes) => { $crate::__testing_group!(Flushes flush() -> Result<(), $crate::Errno>); };
    (trims) => {
        $crate::__testing_group!(
            Trims trim(offset: u64, length: u64, flags: $crate::CommandFlags) -> Result<(), $crate::Errno>
        );
    };
    (zeroes) => {
        $crate::__testing_group!(
            Zeroes zero(offset: u64, length: u64, flags: $crate::CommandFlags) -> Result<(), $crate::Errno>
        );
    };
    (mapping) => {
        $crate::__testing_group!(
            Mapping extents(offset: u64, length: u64, flags: $crate::CommandFlags)
                -> Result<Vec<$crate::Extent>, $crate::Errno>
        );
    };
    (caching) => {
        $crate::__testing_group!(Caching cache(offset: u64, length: u64) -> Result<(), $crate::Errno>);
    };
    (background) => { $crate::__testing_group!(Background next_range() -> Option<(u64, u64)>); };
    (on_alarm) => { $crate::__testing_group!(OnAlarm alarm(scope: $crate::Scope, id: u32) -> ()); };
    (on_watch) => { $crate::__testing_group!(OnWatch changed(param: &str, nth: u32, holds: bool) -> ()); };
    (on_connection) => {
        $crate::__testing_group!(OnConnection opened(connection: u64) -> ());
        $crate::__testing_group!(OnConnection closed(connection: u64) -> ());
    };
    (on_control) => {
        $crate::__testing_group!(OnControl received(param: &str, nth: u32, data: &[u8]) -> Vec<u8>);
    };
    ($ability:ident $operation:ident($($argument:ident: $type:ty),*) -> $answer:ty) => {
        fn $operation(&self $(, $argument: $type)*) -> Option<$answer> {
            Some(<Self as $crate::$ability>::$operation(self $(, $argument)*))
        }
    };
    ($other:ident) => {};
}

#[doc(hidden)]
#[macro_export]
macro_rules! __export_group {
    (wishes) => {
        impl $crate::bindings::wishes::Guest for Exports {
            fn limits() -> Vec<(String, u64)> {
                <Filter as $crate::Wishes>::limits().into_iter().map($crate::Wish::into_contract).collect()
            }
        }
        $crate::bindings::wishes::export_wishes!(Exports with_types_in $crate::bindings::wishes);
    };
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
    (on_alarm) => {
        impl $crate::bindings::on_alarm::Guest for Exports {
            fn alarm(scope: $crate::Scope, id: u32) {
                <Filter as $crate::OnAlarm>::alarm(filter(), scope, id)
            }
        }
        $crate::bindings::on_alarm::export_on_alarm!(Exports with_types_in $crate::bindings::on_alarm);
    };
    (on_watch) => {
        impl $crate::bindings::on_watch::Guest for Exports {
            fn changed(param: String, nth: u32, holds: bool) {
                <Filter as $crate::OnWatch>::changed(filter(), &param, nth, holds)
            }
        }
        $crate::bindings::on_watch::export_on_watch!(Exports with_types_in $crate::bindings::on_watch);
    };
    (on_connection) => {
        impl $crate::bindings::on_connection::Guest for Exports {
            fn opened(connection: u64) {
                <Filter as $crate::OnConnection>::opened(filter(), connection)
            }
            fn closed(connection: u64) {
                <Filter as $crate::OnConnection>::closed(filter(), connection)
            }
        }
        $crate::bindings::on_connection::export_on_connection!(Exports with_types_in $crate::bindings::on_connection);
    };
    (on_control) => {
        impl $crate::bindings::on_control::Guest for Exports {
            fn received(param: String, nth: u32, data: Vec<u8>) -> Vec<u8> {
                <Filter as $crate::OnControl>::received(filter(), &param, nth, &data)
            }
        }
        $crate::bindings::on_control::export_on_control!(Exports with_types_in $crate::bindings::on_control);
    };
    (caching) => {
        impl $crate::bindings::caching::Guest for Exports {
            fn cache(offset: u64, length: u64) -> Result<(), $crate::Errno> {
                <Filter as $crate::Caching>::cache(filter(), offset, length)
            }
        }
        $crate::bindings::caching::export_caching!(Exports with_types_in $crate::bindings::caching);
    };
    ($other:ident) => {};
}
