//! Checks of augmentation.

use super::{
    AugmentSection, Views,
    check::{Checked, require, within},
};

/// Checks how samples are transformed: each number in its range, and none that would change nothing.
pub(super) fn check_augment(at: &str, a: &AugmentSection) -> Checked {
    for (key, value, most) in
        [("rotate", a.rotate, 0.5), ("zoom", a.zoom, 0.9), ("crop", a.crop, 0.5), ("erase", a.erase, 1.0)]
    {
        within(&format!("{at}.{key}"), value, 0.0, most)?;
    }
    let moves = a.rotate > 0.0 || a.zoom > 0.0 || a.crop > 0.0 || a.erase > 0.0;
    let views = if let Views::Fixed(n) = a.views { n } else { 0 };
    require(views != 1 || !(moves || a.flip), || {
        (
            format!("`{at}` changes nothing with one view, which is the sample as it is"),
            "set `views = 4` (fixed, cacheable) or `views = \"fresh\"` (a new one each epoch)".into(),
        )
    })?;
    require(views <= 2 || moves, || {
        (
            format!("{views} views, but there are only two different ones"),
            "set `views = 2`, or `rotate`, `zoom`, `crop` or `erase`".into(),
        )
    })
}
