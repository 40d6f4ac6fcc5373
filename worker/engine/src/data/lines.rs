//! Lines of text files: what formats of one sample a line have in common.

/// How text in UTF-16 is told, with its mark and without.
const UTF_16: [&str; 2] = ["is in UTF-16, and not in UTF-8", "has NULs in it, as UTF-16 has"];

/// Most bytes of one line, without its end.
pub(super) const MAX_LINE: usize = 1 << 20;

/// What to do about what is wrong with a line: `otherwise`, but where the whole file is at fault.
pub(super) fn hint<'a>(why: &str, otherwise: &'a str) -> &'a str {
    if UTF_16.contains(&why) { "`iconv -f UTF-16LE -t UTF-8` converts such a file, or UTF-16BE" } else { otherwise }
}

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
    if number == 1 && (line.starts_with(b"\xff\xfe") || line.starts_with(b"\xfe\xff")) {
        return Err(UTF_16[0].into());
    }
    let line = std::str::from_utf8(line).map_err(|_| "is not UTF-8")?;
    // Without a mark, UTF-16 of plain letters is UTF-8 with NULs; one alone may have come into a text.
    let nuls = line.bytes().filter(|b| *b == 0).count();
    if nuls > 0 && (number == 1 || nuls * 4 >= line.len()) {
        return Err(UTF_16[1].into());
    }
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
        assert_eq!(hint("is not UTF-8", "mend it"), "mend it");
    }

    #[test]
    fn utf_16_is_told_with_and_without_its_mark() {
        for bytes in [&b"\xff\xfea\0"[..], b"\xfe\xff\0a", b"a\0b\0", b"\0a\0b"] {
            let why = said(1, bytes).unwrap_err();
            assert!(why.contains("UTF-16") && hint(&why, "").contains("iconv"), "{why}");
        }
        assert!(said(2, b"a\0b\0").is_err(), "the first line may be blank");
        assert_eq!(said(2, b"some text\0 with one"), Ok(Some("some text\0 with one")));
        assert_eq!(said(2, b"\xff\xfea"), Err("is not UTF-8".into()), "a mark is at the beginning");
    }
}
