//! Figures as people read them, the same in every part of `tl`.

/// A number of bytes.
pub fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib >= 1024.0 {
        format!("{:.1} GiB", mib / 1024.0)
    } else if mib >= 1.0 {
        format!("{mib:.1} MiB")
    } else {
        format!("{:.1} KiB", bytes as f64 / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_unit_that_fits() {
        let all = [512, 3 << 20, (5 << 30) + (1 << 29)].map(size);
        assert_eq!(all, ["0.5 KiB", "3.0 MiB", "5.5 GiB"]);
    }
}
