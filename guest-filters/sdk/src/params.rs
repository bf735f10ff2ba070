//! The parameters of a filter as a struct.
//!
//! [`params!`](crate::params!) makes a struct whose fields are the parameters. From it come both
//! the declaration, which the host checks values against and shows in the help text, and the
//! reading of the values. So a name, a kind and a default stand in one place.
//!
//! ```
//! use rbdkit_filter_sdk::prelude::*;
//!
//! params! {
//!     /// The filter's parameters.
//!     pub struct Settings {
//!         /// The key, 0 to 255.
//!         key: u8 = 255,
//!         /// Bytes of a block: a power of two.
//!         #[param(name = "xor-block-size", alias = "xor-block", check = power_of_two)]
//!         block: Size = Size(64 << 10),
//!         /// How long the part is. By default it reaches to the end.
//!         range: Option<Size>,
//!         /// How many times to try.
//!         #[param(range = 1..=1000)]
//!         tries: u32 = 5,
//!         /// A name that the filter lets in. It may be given more than once.
//!         name: Vec<String>,
//!     }
//! }
//!
//! fn power_of_two(size: &Size) -> Result<(), String> {
//!     if size.0.is_power_of_two() { Ok(()) } else { Err("is not a power of two".into()) }
//! }
//!
//! let given = [("key", "7"), ("name", "a"), ("name", "b")];
//! let settings = Settings::read(&Params::new::<Settings>(&given)).unwrap();
//! assert_eq!((settings.key, settings.block, settings.range), (7, Size(65536), None));
//! assert_eq!((settings.tries, settings.name), (5, vec!["a".to_string(), "b".to_string()]));
//! let wrong = Settings::read(&Params::new::<Settings>(&[("key", "256")])).err();
//! assert_eq!(wrong.as_deref(), Some("key=256: is not from 0 to 255"));
//! ```
//!
//! * **The name** is the field's, with `-` for `_`. `#[param(name = "...")]` gives another, and
//!   `alias = "..."` one more key with the same meaning.
//! * **The help text** is the doc comment.
//! * **The kind** is the field's type: [`Value`] lists the types.
//! * **How often**: a field with a default may be left out, and so may an `Option`. A `Vec` takes
//!   the parameter any number of times. A field of any other type is required.
//! * **Limits**: an integer type is one. `range = a..=b` sets a narrower one, and
//!   `check = function` calls a function with the value. The host cannot know these limits; they
//!   are checked before `configure` is called.
//! * `pass_on` lets the layers below have the parameter as well.

mod field;
mod given;
mod named;
mod value;

#[doc(hidden)]
pub use field::is_setting;
pub use field::{Field, Setting};
pub use given::{Parameters, Params};
pub use named::{
    AppendFile, BoolOrWatch, Control, CurrentFile, Descriptor, Disk, Process, ReadFile, Script, Secret, StorageFile,
    StringOrScript, Watch, WriteFile,
};
pub use value::{Choice, Percent, Probability, Shown, Size, Value};

/// Makes a struct of parameters, and implements [`Parameters`] for it. The module
/// [`params`](crate::params) has an example.
#[macro_export]
macro_rules! params {
    (
        $(#[$attribute:meta])*
        $visible:vis struct $name:ident {
            $(
                $(#[doc = $help:literal])*
                $(#[param($($option:ident $(= $setting:expr)?),* $(,)?)])?
                $field_visible:vis $field:ident : $type:ty $(= $default:expr)?
            ),* $(,)?
        }
    ) => {
        $(#[$attribute])*
        $visible struct $name {
            $(
                $(#[doc = $help])*
                $field_visible $field: $type,
            )*
        }

        const _: () = {
            $($crate::params::is_setting::<$type>();)*

            fn fields() -> ($($crate::params::Field<$type>,)*) {
                ($(
                    $crate::params::Field::<$type>::new(stringify!($field), &[$($help),*])
                        $($(.$option($($setting)?))*)?
                        $(.default($default))?,
                )*)
            }

            impl $crate::params::Parameters for $name {
                fn declare() -> ::std::vec::Vec<$crate::Param> {
                    let ($($field,)*) = fields();
                    ::std::vec![$($field.declare()),*]
                }

                fn read(given: &$crate::Params) -> ::std::result::Result<Self, ::std::string::String> {
                    let ($($field,)*) = fields();
                    ::std::result::Result::Ok($name { $($field: $field.read(given)?),* })
                }
            }
        };
    };
}
