//! The limits that a filter asks for.

use rbdkit_plugin_api::Errno;

use super::support::{Disk, Guest, Stack, load, read};
use crate::FilterLimits;

/// A guest whose reads grow its memory to 100 MiB. It asks for limits: each is a name, and a value
/// as text.
fn grows(wishes: &[(&str, &str)]) -> Guest {
    let mut names = String::new();
    let mut body = String::from(
        r#"
    (func (export "rbdkit:filter/reads@0.1.0#pread") (param i64 i32 i32) (result i32)
        (if (i32.eq (memory.grow (i32.const 1600)) (i32.const -1)) (then
            (i32.store8 (i32.const 2048) (i32.const 1))
            (i32.store8 (i32.const 2049) (i32.const 3))
            (return (i32.const 2048))))
        (i32.const 1200))
    (func (export "rbdkit:filter/wishes@0.1.0#limits") (result i32)
        (i32.store (i32.const 2056) (i32.const 2064))
"#,
    );
    for (n, (name, value)) in wishes.iter().enumerate() {
        let (entry, at) = (2064 + 16 * n, 3000 + names.len());
        body.push_str(&format!(
            "        (i32.store (i32.const {entry}) (i32.const {at}))
        (i32.store (i32.const {}) (i32.const {}))
        (i64.store (i32.const {}) (i64.const {value}))\n",
            entry + 4,
            name.len(),
            entry + 8
        ));
        names.push_str(name);
    }
    body.push_str(&format!(
        "        (i32.store (i32.const 2060) (i32.const {}))
        (i32.const 2056))
    (data (i32.const 3000) \"{names}\")\n",
        wishes.len()
    ));
    Guest::new(&["reads", "wishes"], &body)
}

async fn reading(wishes: &[(&str, &str)], limits: FilterLimits) -> Result<Vec<u8>, Errno> {
    let stack = Stack::over(&[grows(wishes)], Disk::default(), limits).await;
    let hop = stack.open().await;
    read(&hop, 0, 512).await.map_err(|error| error.errno())
}

#[tokio::test]
async fn a_filter_gets_the_memory_that_it_asks_for_unless_the_operator_has_set_it() {
    let default = FilterLimits::default();
    assert_eq!(reading(&[], default.clone()).await, Err(Errno::Enomem));
    assert!(reading(&[("memory", "209715200")], default.clone()).await.is_ok());
    let set = FilterLimits { set_by_operator: ["memory"].into(), ..default };
    assert_eq!(reading(&[("memory", "209715200")], set).await, Err(Errno::Enomem));
}

#[tokio::test]
async fn no_wish_gives_more_than_its_bound() {
    let module = load(&grows(&[("waits", "-1"), ("setup", "-1"), ("scratch", "-1"), ("memory", "-1")])).unwrap();
    let granted: Vec<_> = module.wishes().iter().map(|wish| wish.shown(wish.granted)).collect();
    assert_eq!(granted[..3], ["16777216", "600s", "64G"]);
    assert!(module.wishes()[3].granted <= 1 << 30);
}

#[test]
fn a_wish_for_another_limit_is_refused_in_one_line() {
    let refused = load(&grows(&[("cpu", "1")])).err().unwrap();
    assert_eq!(refused, "guest.wasm: it asks for a limit \"cpu\": there are memory, buffers, scratch, setup, waits");
    let many: Vec<_> = (0..40).map(|_| ("memory", "1")).collect();
    assert_eq!(load(&grows(&many)).err().unwrap(), "guest.wasm: it asks for the limit memory twice");
}
