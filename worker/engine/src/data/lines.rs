//! Lines of text files: what formats of one sample a line have in common.

/// Most bytes of one line, without its end.
pub(super) const MAX_LINE: usize = 1 << 20;

/// What a line says, by its number from 1: without its end, the first one without a byte order mark; nothing where it is
/// blank.
///
/// # Errors
/// Says in words what is wrong with it.
pub(super) fn said(number: usize, bytes: &[u8]) -> Result<Option<&str>, String> {
    let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.len() > MAX_LINE {
        return Err(format!("has more than {MAX_LINE} bytes"));
    }
    let line = std::str::from_utf8(line).map_err(|_| "is not UTF-8")?;
    let line = if number == 1 { line.strip_prefix('\u{feff}').unwrap_or(line) } else { line };
    Ok((!line.trim().is_empty()).then_some(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_and_marks_are_no_part_of_a_line_and_its_limit_is_the_same_with_and_without() {
        for end in ["", "\n", "\r\n"] {
            let line = |n: usize| "x".repeat(n) + end;
            assert_eq!(said(2, line(3).as_bytes()), Ok(Some("xxx")));
            assert_eq!(said(2, line(0).as_bytes()), Ok(None));
            assert!(said(2, line(MAX_LINE).as_bytes()).is_ok() && said(2, line(MAX_LINE + 1).as_bytes()).is_err());
        }
        assert_eq!((said(1, b"\xef\xbb\xbfx"), said(2, b"\xef\xbb\xbfx")), (Ok(Some("x")), Ok(Some("\u{feff}x"))));
        assert_eq!(said(1, b"\xff"), Err("is not UTF-8".into()));
    }
}
