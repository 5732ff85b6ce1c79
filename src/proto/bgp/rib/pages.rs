//! Large pages for the tables in which any prefix may be looked up next.
//!
//! A million routes lie on some ten thousand pages of 4 KiB, and a move touches a few of them at
//! random. Most of the time the processor no longer has their translations; on a virtual machine the
//! host may have to find its half of them as well. Eight random words among 64 MiB took 1.1 us on
//! small pages and 0.6 us on large ones there, and once in a thousand times 30 to 100 us against 6
//! to 30 us.
//!
//! It is a hint only: nothing the rib does depends on whether the kernel follows it, so it may
//! stand in a room that does no I/O.

/// Two large pages: so much memory has at least one within it, wherever it begins. Less is left
/// alone, since a small table would pay for memory that it does not use.
const LEN_MIN: usize = 2 * (2 << 20);

/// Pages are at least so large, and all are a multiple of it.
const PAGE: usize = 4096;

/// To be called before the memory is touched for the first time.
pub(super) fn prefer_large<T>(memory: &mut [T]) {
    let len = size_of_val(memory);
    if len < LEN_MIN {
        return;
    }
    let start = memory.as_mut_ptr().cast::<libc::c_void>();
    // Only pages that are wholly ours.
    let skipped = start.align_offset(PAGE);
    let len = (len - skipped) / PAGE * PAGE;
    // SAFETY: the range is within `memory`; the advice changes neither its contents nor whether it
    // may be accessed. A kernel without large pages refuses it, which is as good.
    unsafe { libc::madvise(start.byte_add(skipped), len, libc::MADV_HUGEPAGE) };
}
