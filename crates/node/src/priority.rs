//! Threads that let others go first.

/// Nice value of the threads that check signatures. Consensus and sockets go first where there are fewer cores than
/// threads: an append that waits behind signature checks holds up every message of its batch, a check only one.
pub(crate) const VERIFICATION: i32 = 5;
/// Nice value of the thread that makes backups: after everything else.
pub(crate) const BACKUP: i32 = 15;

/// Lets the calling thread give way to others, where the system allows it.
pub(crate) fn give_way(nice: i32) {
    // SAFETY: changes the scheduling of the calling thread (0) and touches no memory. A refusal leaves it as it is.
    #[allow(unsafe_code)]
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, nice);
    }
}
