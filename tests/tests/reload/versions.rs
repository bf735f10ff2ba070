//! Filters of which there are many versions: each shows its version in its description and in a
//! block of the disk.

use crate::guest::Guest;

/// What a version says of itself. The digits are replaced in the finished component.
const TEXT: &str = "version 00000000";

/// How the filter keeps what it knows of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It knows nothing. It is parallel.
    Stateless,
    /// In its memory, from its open on. A replay restores it. It is serialized.
    Replay,
    /// In its memory, from its open on. It is serialized.
    Lost,
}

/// A filter whose reads at `block` begin with its version.
pub fn filter(name: &str, state: State) -> Guest {
    let body = format!(
        r#"
    (import "rbdkit:filter/next@0.1.0" "pread" (func $next_pread (param i64 i32 i32 i32 i32)))
    (import "rbdkit:filter/next@0.1.0" "get-size" (func $size (param i32)))
    (import "rbdkit:filter/buffer@0.1.0" "write" (func $write (param i32 i32 i32 i32)))
    (import "rbdkit:filter/next-open@0.1.0" "open" (func $open (param i32 i32 i32 i32)))
    (data (i32.const 5000) "{TEXT}")
    (data (i32.const 5100) "\01\00\00\00\88\13\00\00\10\00\00\00")
    (data (i32.const 5200) "\01\00\00\00\07\00\00\00")
    (global $opened (mut i32) (i32.const 0))
    (func (export "rbdkit:filter/connection@0.1.0#open") (param i32 i32 i32 i32 i32) (result i32)
        (call $open (local.get 0) (local.get 1) (local.get 2) (i32.const 2100))
        (global.set $opened (i32.const 1))
        (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#prepare") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#finalize") (result i32) (i32.const 1200))
    (func (export "rbdkit:filter/connection@0.1.0#close"))
    (func (export "rbdkit:filter/info@0.1.0#get-size") (result i32)
        (call $size (i32.const 2048))
        (i32.const 2048))
    (func (export "rbdkit:filter/info@0.1.0#block-size") (result i32) (i32.const 5200))
    (func (export "rbdkit:filter/info@0.1.0#export-description") (result i32) (i32.const 5100))
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (if (i32.eqz (global.get $opened)) (then {without_open}))
        (call $next_pread (local.get 0) (local.get 1) (i32.const 0) (i32.const 0) (i32.const 2048))
        (if (i64.eq (local.get 0) (i64.const $TRIGGER))
            (then (call $write (i32.const 0) (i32.const 0) (i32.const 5000) (i32.const {length}))))
        (i32.const 2048))"#,
        // An instance that knows of no open has lost its state.
        without_open = if state == State::Stateless { "" } else { "(unreachable)" },
        length = TEXT.len(),
    );
    let mut guest = Guest::new(name, &["connection", "info", "reads"], &body);
    (guest.model, guest.recovery) = match state {
        State::Stateless => (3, 0),
        State::Replay => (1, 1),
        State::Lost => (1, 2),
    };
    guest
}

/// A version's text.
pub fn text(version: u32) -> String {
    format!("version {version:08}")
}

/// This version of a component.
pub fn version_of(component: &[u8], version: u32) -> Vec<u8> {
    let at = component.windows(TEXT.len()).position(|bytes| bytes == TEXT.as_bytes()).expect("the component's text");
    let mut patched = component.to_vec();
    patched[at..at + TEXT.len()].copy_from_slice(text(version).as_bytes());
    patched
}
