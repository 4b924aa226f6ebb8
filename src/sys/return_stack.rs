//! The processor's return predictor after a system call. Knows nothing of what the call was for.
//!
//! A processor predicts where a function returns to from a small stack of its own, which every call feeds. On AMD
//! processors Linux keeps attackers from steering it by "Safe RET" (`admin-guide/hw-vuln/srso.rst`): each return of the
//! kernel becomes one more call, so that nothing takes an entry back, and a system call leaves the stack full of the
//! kernel's addresses. The first function that returns afterwards is predicted to go there. Where this was measured,
//! that costs 250 ns: a twentieth of receiving and answering a small message, twice. A hand-written loop with every
//! call inlined is spared; code in layers is not, unless the stack is filled again with addresses that may be
//! predicted in vain.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether refilling pays here. Off until [`detect`] has looked.
static WANTED: AtomicBool = AtomicBool::new(false);

/// Looks whether this machine's system calls spoil the predictions. Cheap enough to be asked once per driver.
pub(crate) fn detect() {
    let mitigation = fs::read_to_string("/sys/devices/system/cpu/vulnerabilities/spec_rstack_overflow");
    let wanted = mitigation.is_ok_and(|text| spoils_predictions(&text)) && !has_shadow_stack();
    // Relaxed: a hint that guards nothing.
    WANTED.store(wanted, Ordering::Relaxed);
}

fn spoils_predictions(mitigation: &str) -> bool {
    mitigation.contains("Safe RET")
}

/// Gives the returns that follow a system call something harmless to be predicted by. A few nanoseconds, and nothing
/// where it would not pay.
#[inline(always)]
pub(crate) fn refill() {
    if WANTED.load(Ordering::Relaxed) {
        push_sixteen();
    }
}

/// Sixteen entries: more levels than lie between a system call and the loop.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
fn push_sixteen() {
    // SAFETY: each call pushes one return address of eight bytes below the stack pointer, which the block may do since
    // it is not marked `nostack`, and goes on right behind the `int3`; at the end the stack pointer is moved back over
    // all sixteen. No other register and no memory in use changes. A shadow stack, which would notice that these calls
    // do not return, is ruled out by `detect`.
    unsafe {
        core::arch::asm!(
            ".rept 16",
            "call 2f",
            // Whatever is predicted to return here goes no further.
            "int3",
            "2:",
            ".endr",
            "add rsp, 128",
        );
    }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
#[inline(always)]
fn push_sixteen() {}

/// Whether this thread's returns are checked by the processor (`arch/x86/shstk.rst` of Linux).
#[cfg(all(target_arch = "x86_64", not(miri)))]
fn has_shadow_stack() -> bool {
    let mut pointer: u64 = 0;
    // SAFETY: reads the shadow stack pointer into the register; without shadow stacks it does nothing, also on
    // processors that do not know the instruction.
    unsafe { core::arch::asm!("rdsspq {}", inout(reg) pointer, options(nomem, nostack, preserves_flags)) };
    pointer != 0
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
fn has_shadow_stack() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_is_where_it_was() {
        #[inline(never)]
        fn deep(levels: u64, sum: u64) -> u64 {
            let kept = std::hint::black_box([levels; 9]);
            push_sixteen();
            let below = if levels == 0 { sum } else { deep(levels - 1, sum + levels) };
            push_sixteen();
            below + kept.iter().map(|copy| copy - levels).sum::<u64>()
        }
        assert_eq!(deep(100, 0), 5050);
    }

    #[test]
    fn only_the_mitigation_that_spoils_predictions_counts() {
        assert!(spoils_predictions("Mitigation: Safe RET\n"));
        assert!(spoils_predictions("Vulnerable: Safe RET, no microcode\n"));
        assert!(!spoils_predictions("Not affected\n"));
        assert!(!spoils_predictions("Mitigation: IBPB on VMEXIT only\n"));
        assert!(!spoils_predictions("Vulnerable\n"));
    }
}
