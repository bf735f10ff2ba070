use std::ffi::OsStr;

use rbdkit_plugin_api::{Client, Peer};

use super::*;

mod disk;
mod language;
mod model;

fn start(params: &[(&str, &str)]) -> Result<Data, ConfigError> {
    let mut plugin = Data::default();
    for (key, value) in params {
        plugin.config(Param { key, value: OsStr::new(value) })?;
    }
    plugin.config_complete()?;
    plugin.get_ready()?;
    Ok(plugin)
}

async fn open(params: &[(&str, &str)]) -> Arc<dyn Handle> {
    let client = Arc::new(Client::new(1, Peer::Unknown, None, false));
    let args = OpenArgs { readonly: false, exportname: String::new(), client };
    start(params).unwrap().open(args).await.unwrap()
}

/// Less than a server reads, so that reaching it is quick.
const MAX_READ: u64 = 1 << 20;

fn image(text: &str) -> Result<Arc<Image>, String> {
    let variables = |name: &str| match name {
        "pattern" => Some("0x55 0xAA".into()),
        "inner" => Some("( 7 $pattern )*2".into()),
        "uses_name" => Some(r"\x \x".into()),
        "ones" => Some("$twos 1".into()),
        "twos" => Some("2 $ones".into()),
        _ => None,
    };
    let list = parse::parse(OsStr::new(text), &variables).map_err(|wrong| wrong.to_string())?;
    eval::evaluate(&list, MAX_READ).map_err(|wrong| wrong.to_string())
}

fn bytes(text: &str) -> Vec<u8> {
    let image = image(text).unwrap_or_else(|wrong| panic!("{text}: {wrong}"));
    assert!(image.len() < 10_000_000, "{text}");
    let mut bytes = vec![0xee; image.len() as usize];
    image.read(0, &mut bytes);
    bytes
}

fn wrong(text: &str) -> String {
    image(text).err().unwrap_or_else(|| panic!("{text} is not refused"))
}
