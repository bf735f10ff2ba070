//! The decoder of lvm.

use rbdkit_filter_formats::lvm::{INFO, open_volume};
use rbdkit_filter_formats::testing::lvm::{
    metadata, other_physical, physical, put_text, seal_area, seal_label, segment,
};
use rbdkit_filter_formats::testing::{fuzz, read_all, source};

#[test]
fn mutated_physical_volumes_give_a_line_or_a_volume() {
    let (linear, striped) = (segment(0, 2, 1, "\"pv0\", 0"), segment(2, 2, 2, "\"pv0\", 1, \"pv0\", 0"));
    let text = metadata(1, &[("a", &[&linear, &striped])]);
    let seed = |offset| {
        let mut image = physical(&text);
        // As little as the volume needs.
        image.truncate((1 << 20) + (2 << 16));
        put_text(&mut image, 4096, offset, &text);
        image
    };
    fuzz("lvm", &[seed(512), seed((64 << 10) - 512)], |image| {
        // Right checksums, so that what is behind them is reached.
        let mut bytes = read_all(&*image)?;
        if bytes.len() > 70_000 {
            seal_label(&mut bytes);
            seal_area(&mut bytes, 4096);
        }
        let image = source(&bytes);
        (INFO.report)(&image)?;
        (INFO.probe)(&*image)?;
        open_volume(image, Vec::new(), Some("vg0/a"))
    });
}

#[test]
fn mutated_metadata_gives_a_line_or_a_volume() {
    let (linear, striped) = (segment(0, 2, 1, "\"pv0\", 0"), segment(2, 2, 2, "\"pv1\", 1, \"pv0\", 0"));
    let text = metadata(1, &[("a", &[&linear, &striped])]);
    fuzz("lvm-text", &[text.into_bytes()], |text| {
        let text = String::from_utf8_lossy(&read_all(&*text)?).into_owned();
        let mut cut = 60_000.min(text.len());
        while !text.is_char_boundary(cut) {
            cut -= 1;
        }
        open_volume(source(&physical(&text[..cut])), vec![source(&other_physical(None))], None)
    });
}
