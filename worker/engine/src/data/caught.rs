//! Decoders of files from anywhere: what makes one panic is the file's fault, and told like any other fault of it.

use std::{
    cell::Cell,
    panic::{self, UnwindSafe},
    sync::Once,
};

thread_local! {
    /// Whether this thread is in a decoder.
    static DECODES: Cell<bool> = const { Cell::new(false) };
}

/// What `decode` gives, or that the file contradicts itself where it panics: decoders index into what a file claims. Such a
/// panic is not written to standard error; those of other threads are.
///
/// # Errors
/// Says in words what is wrong with the file.
pub(super) fn caught<T>(decode: impl FnOnce() -> Result<T, String> + UnwindSafe) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let told = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !DECODES.get() {
                told(info);
            }
        }));
    });
    let before = DECODES.replace(true);
    let decoded = panic::catch_unwind(decode);
    DECODES.set(before);
    decoded.unwrap_or_else(|_| Err("it contradicts itself".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_the_thread_goes_on_as_before() {
        let tripped: Result<(), String> = caught(|| {
            assert!(DECODES.get());
            panic!("a file");
        });
        assert_eq!(tripped, Err("it contradicts itself".into()));
        assert!(!DECODES.get());
        assert_eq!(caught(|| Ok(3)), Ok(3));
        assert_eq!(caught::<()>(|| Err("cut off".into())), Err("cut off".into()));
    }
}
