//! The names of the accounts of a chain's layers.

use rbdkit_plugin_api::Usage;

/// All accounts of a chain, under their names: those of its layers, of its disks' chains, and those
/// that layers share. Layers and disks come with their own names.
pub(super) fn named(
    layers: Vec<(&str, Vec<Usage>)>,
    disks: Vec<(&str, Vec<Usage>)>,
    shared: impl Iterator<Item = Usage>,
) -> Vec<Usage> {
    let mut all: Vec<Usage> = Vec::new();
    for (index, (name, usage)) in layers.iter().enumerate() {
        let target = match layers[..index].iter().filter(|(above, _)| above == name).count() {
            0 => (*name).to_string(),
            above => format!("{name}#{}", above + 1),
        };
        let own = usage.iter().cloned();
        all.extend(own.map(|usage| Usage { account: format!("{target}:{}", usage.account), ..usage }));
    }
    let of_disks = disks.into_iter().flat_map(|(disk, usage)| {
        usage.into_iter().map(move |usage| match usage.account.contains(':') {
            true => Usage { account: format!("{disk}/{}", usage.account), ..usage },
            // Filters share it, so it is the same in all chains.
            false => usage,
        })
    });
    for usage in of_disks.chain(shared) {
        if all.iter().all(|known| known.account != usage.account) {
            all.push(usage);
        }
    }
    all
}
