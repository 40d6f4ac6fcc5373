//! Processes that must not outlive the one that started them.

/// Asks the system to kill this process when the thread that started it ends. Where that cannot be asked for, the end
/// of the pipe between the two is what is left; a process that is stopped at that moment does not notice it.
pub fn die_with_parent() {
    #[cfg(target_os = "linux")]
    if let Err(e) = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL) {
        tracing::warn!("this process may outlive its parent: {e}");
    }
}
