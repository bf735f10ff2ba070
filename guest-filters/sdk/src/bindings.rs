//! The code that wit-bindgen generates from `wit/`: one world for the imports and the required
//! export, and one for each optional export, so that a component exports only what its author
//! names. Only this crate and its macros use it; filters use the crate's other modules.
#![allow(missing_docs, clippy::all)]

/// The imports, and the required export `filter`.
pub mod host {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "host",
        pub_export_macro: true,
        export_macro_name: "export_filter",
        default_bindings_module: "rbdkit_filter_sdk::bindings::host",
    });
}

pub mod threading {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package rbdkit:sdk; world threading { export rbdkit:filter/threading@0.1.0; }",
        world: "rbdkit:sdk/threading",
        with: { "rbdkit:filter/types@0.1.0": super::host::rbdkit::filter::types },
        pub_export_macro: true,
        export_macro_name: "export_threading",
        default_bindings_module: "rbdkit_filter_sdk::bindings::threading",
    });
    pub use exports::rbdkit::filter::threading::Guest;
}

pub mod lifecycle {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package rbdkit:sdk; world lifecycle { export rbdkit:filter/lifecycle@0.1.0; }",
        world: "rbdkit:sdk/lifecycle",
        with: { "rbdkit:filter/types@0.1.0": super::host::rbdkit::filter::types },
        pub_export_macro: true,
        export_macro_name: "export_lifecycle",
        default_bindings_module: "rbdkit_filter_sdk::bindings::lifecycle",
    });
    pub use exports::rbdkit::filter::lifecycle::Guest;
}

pub mod admission {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package rbdkit:sdk; world admission { export rbdkit:filter/admission@0.1.0; }",
        world: "rbdkit:sdk/admission",
        with: { "rbdkit:filter/types@0.1.0": super::host::rbdkit::filter::types },
        pub_export_macro: true,
        export_macro_name: "export_admission",
        default_bindings_module: "rbdkit_filter_sdk::bindings::admission",
    });
    pub use exports::rbdkit::filter::admission::Guest;
}

pub mod names {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package rbdkit:sdk; world names { export rbdkit:filter/names@0.1.0; }",
        world: "rbdkit:sdk/names",
        with: { "rbdkit:filter/types@0.1.0": super::host::rbdkit::filter::types },
        pub_export_macro: true,
        export_macro_name: "export_names",
        default_bindings_module: "rbdkit_filter_sdk::bindings::names",
    });
    pub use exports::rbdkit::filter::names::Guest;
}

pub mod connection {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package rbdkit:sdk; world connection { export rbdkit:filter/connection@0.1.0; }",
        world: "rbdkit:sdk/connection",
        with: { "rbdkit:filter/types@0.1.0": super::host::rbdkit::filter::types },
        pub_export_macro: true,
        export_macro_name: "export_connection",
        default_bindings_module: "rbdkit_filter_sdk::bindings::connection",
    });
    pub use exports::rbdkit::filter::connection::Guest;
}

pub mod info {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package rbdkit:sdk; world info { export rbdkit:filter/info@0.1.0; }",
        world: "rbdkit:sdk/info",
        with: { "rbdkit:filter/types@0.1.0": super::host::rbdkit::filter::types },
        pub_export_macro: true,
        export_macro_name: "export_info",
        default_bindings_module: "rbdkit_filter_sdk::bindings::info",
    });
    pub use exports::rbdkit::filter::info::Guest;
}

pub mod features {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package rbdkit:sdk; world features { export rbdkit:filter/features@0.1.0; }",
        world: "rbdkit:sdk/features",
        with: { "rbdkit:filter/types@0.1.0": super::host::rbdkit::filter::types },
        pub_export_macro: true,
        export_macro_name: "export_features",
        default_bindings_module: "rbdkit_filter_sdk::bindings::features",
    });
    pub use exports::rbdkit::filter::features::Guest;
}

pub mod reads {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package rbdkit:sdk; world reads { export rbdkit:filter/reads@0.1.0; }",
        world: "rbdkit:sdk/reads",
        with: { "rbdkit:filter/types@0.1.0": super::host::rbdkit::filter::types },
        pub_export_macro: true,
        export_macro_name: "export_reads",
        default_bindings_module: "rbdkit_filter_sdk::bindings::reads",
    });
    pub use exports::rbdkit::filter::reads::Guest;
}

pub mod writes {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package rbdkit:sdk; world writes { export rbdkit:filter/writes@0.1.0; }",
        world: "rbdkit:sdk/writes",
        with: { "rbdkit:filter/types@0.1.0": super::host::rbdkit::filter::types },
        pub_export_macro: true,
        export_macro_name: "export_writes",
        default_bindings_module: "rbdkit_filter_sdk::bindings::writes",
    });
    pub use exports::rbdkit::filter::writes::Guest;
}

pub mod flushes {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package rbdkit:sdk; world flushes { export rbdkit:filter/flushes@0.1.0; }",
        world: "rbdkit:sdk/flushes",
        with: { "rbdkit:filter/types@0.1.0": super::host::rbdkit::filter::types },
        pub_export_macro: true,
        export_macro_name: "export_flushes",
        default_bindings_module: "rbdkit_filter_sdk::bindings::flushes",
    });
    pub use exports::rbdkit::filter::flushes::Guest;
}

pub mod trims {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package rbdkit:sdk; world trims { export rbdkit:filter/trims@0.1.0; }",
        world: "rbdkit:sdk/trims",
        with: { "rbdkit:filter/types@0.1.0": super::host::rbdkit::filter::types },
        pub_export_macro: true,
        export_macro_name: "export_trims",
        default_bindings_module: "rbdkit_filter_sdk::bindings::trims",
    });
    pub use exports::rbdkit::filter::trims::Guest;
}

pub mod zeroes {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package rbdkit:sdk; world zeroes { export rbdkit:filter/zeroes@0.1.0; }",
        world: "rbdkit:sdk/zeroes",
        with: { "rbdkit:filter/types@0.1.0": super::host::rbdkit::filter::types },
        pub_export_macro: true,
        export_macro_name: "export_zeroes",
        default_bindings_module: "rbdkit_filter_sdk::bindings::zeroes",
    });
    pub use exports::rbdkit::filter::zeroes::Guest;
}

pub mod mapping {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package rbdkit:sdk; world mapping { export rbdkit:filter/mapping@0.1.0; }",
        world: "rbdkit:sdk/mapping",
        with: { "rbdkit:filter/types@0.1.0": super::host::rbdkit::filter::types },
        pub_export_macro: true,
        export_macro_name: "export_mapping",
        default_bindings_module: "rbdkit_filter_sdk::bindings::mapping",
    });
    pub use exports::rbdkit::filter::mapping::Guest;
}

pub mod background {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package rbdkit:sdk; world background { export rbdkit:filter/background@0.1.0; }",
        world: "rbdkit:sdk/background",
        pub_export_macro: true,
        export_macro_name: "export_background",
        default_bindings_module: "rbdkit_filter_sdk::bindings::background",
    });
    pub use exports::rbdkit::filter::background::{Guest, Range};
}

pub mod caching {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package rbdkit:sdk; world caching { export rbdkit:filter/caching@0.1.0; }",
        world: "rbdkit:sdk/caching",
        with: { "rbdkit:filter/types@0.1.0": super::host::rbdkit::filter::types },
        pub_export_macro: true,
        export_macro_name: "export_caching",
        default_bindings_module: "rbdkit_filter_sdk::bindings::caching",
    });
    pub use exports::rbdkit::filter::caching::Guest;
}
