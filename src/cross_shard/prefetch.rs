//! Hints to the processor about memory that another one has written. It may ignore them; where it takes none, they are
//! nothing.

/// Asks for a cache line that is about to be written.
#[inline]
pub(super) fn to_write(line: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: any address may be prefetched, nothing else happens, and a processor without PREFETCHW takes it for a
    // no-op. (The intrinsic becomes a prefetch for reading where the target's features do not promise it.)
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = line;
}
