//! The languages in which `new` writes a filter and `build` builds one: a file for each, which says
//! what a project consists of, what its build needs, and how it is built.

mod bindings;
mod c;
mod c_family;
mod cpp;
mod declarations;
mod definition;
mod ecmascript;
mod go;
mod go_glue;
mod js;
mod language;
mod listing;
mod module;
mod operations;
mod project;
mod python;
mod run;
mod rust;
mod tools;
mod ts;
mod zig;

pub use definition::{Definition, Keep};
pub use language::Language;
pub use project::{FILE as PROJECT_FILE, Project, is_name};
pub use tools::{Tool, Way, first_complete};

/// What the tool knows of a language.
pub fn definition(language: Language) -> Definition {
    match language {
        Language::Rust => rust::DEFINITION,
        Language::C => c::DEFINITION,
        Language::Cpp => cpp::DEFINITION,
        Language::Zig => zig::DEFINITION,
        Language::Go => go::DEFINITION,
        Language::Js => js::DEFINITION,
        Language::Ts => ts::DEFINITION,
        Language::Python => python::DEFINITION,
    }
}
