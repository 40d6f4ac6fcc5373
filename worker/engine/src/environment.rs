//! What a process that trains is started with: how it asks the system for memory, no threads of candle's own, and no waiting in
//! NCCL that nothing ends.

use std::process::Command;

/// A variable of the GNU C library, and what it says to a rank.
///
/// A step takes and gives back some hundreds of megabytes in large blocks. By default each goes back to the kernel, which
/// interrupts all threads for it, and is asked for again, page by page, each cleared anew: a quarter of the time of a step
/// of MiniLM or ResNet-50 on two cores. So one arena keeps what it has, without a mapping of its own for a large block, in
/// huge pages where the kernel has them (`hugetlb`, glibc 2.35). What a rank holds it gives back when its phase ends, for
/// then it ends.
const TUNABLES: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.hugetlb=1",
);

/// A variable of candle, and what it says to a rank. Of 65 536 elements on, candle shares a sum or a product over threads
/// that wait for the next one by spinning, as many as the machine has cores, in every rank: a quarter of the time of a
/// domain adaptation with two ranks on two cores. Such tensors are only in losses; networks have the engine's own threads.
const THREADS: (&str, &str) = ("CANDLE_NUM_THREADS", "1");

/// A variable of NCCL, and what it says to a rank. With 1, also from NCCL's own files, all its calls wait for the other ranks, and
/// none can be ended when one of them is lost; so it is said here, whatever somebody has chosen.
const BLOCKING: (&str, &str) = ("NCCL_COMM_BLOCKING", "0");

/// Whether this process was started with what is good for it, or with what somebody chose.
pub fn is_tuned() -> bool {
    std::env::var_os(TUNABLES.0).is_some()
}

/// Whether NCCL in this process never waits without end, whatever its own files say.
pub fn never_blocks() -> bool {
    std::env::var_os(BLOCKING.0).is_some_and(|value| value == BLOCKING.1)
}

/// Lets a process be started for training. What somebody has chosen stays, but for what no rank can do with; another C library
/// does not look.
pub fn tune(command: &mut Command) {
    for (name, value) in [TUNABLES, THREADS] {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    command.env(BLOCKING.0, BLOCKING.1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_somebody_has_chosen_ranks_do_not_wait_in_nccl_without_end() {
        let mut command = Command::new("rank");
        tune(command.env("NCCL_COMM_BLOCKING", "1"));
        let told = command.get_envs().find(|(name, _)| *name == "NCCL_COMM_BLOCKING").and_then(|(_, value)| value);
        assert_eq!(told.and_then(|value| value.to_str()), Some("0"));
    }
}
