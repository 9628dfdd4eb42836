//! The C library's heap, for processes that are many and mostly idle.

/// One arena for all threads started from here on, instead of one for each: memory counts more than contention where
/// threads allocate little.
pub fn share_one_arena() {
    // SAFETY: plain integers; sets a parameter of the allocator. A refusal changes nothing but memory use.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives free memory back to the system.
pub fn trim() {
    // SAFETY: touches nothing but free chunks, under the allocator's own locks.
    unsafe { libc::malloc_trim(0) };
}
