//! Values whose type is forgotten, kept in a few words instead of a box of their own; among them closures to be called
//! once. Knows where a value lies, not when it is wanted.

use std::marker::PhantomData;
use std::mem::{ManuallyDrop, MaybeUninit, needs_drop};

/// Room for a value of at most `N` words. Whether one lies in it, and which, its owner has to know: nothing is dropped
/// with it.
#[derive(Clone, Copy)]
pub(crate) struct Words<const N: usize>(pub(crate) [MaybeUninit<usize>; N]);

impl<const N: usize> Words<N> {
    pub(crate) const EMPTY: Self = Words([MaybeUninit::uninit(); N]);

    /// Whether a `V` has room in `N` words.
    pub(crate) const fn fit<V>() -> bool {
        size_of::<V>() <= size_of::<Self>() && align_of::<V>() <= align_of::<Self>()
    }

    /// Moves `value` in; what was there is forgotten.
    #[inline]
    fn put<V>(&mut self, value: V) {
        assert!(Self::fit::<V>(), "a value is larger than its room");
        // SAFETY: the words have the size and the alignment of a `V`, and are borrowed mutably.
        unsafe { self.0.as_mut_ptr().cast::<V>().write(value) };
    }

    /// Moves a value out.
    ///
    /// # Safety
    /// A `V` lies in the words, and it is moved out once.
    #[inline]
    pub(crate) unsafe fn take<V>(&mut self) -> V {
        // SAFETY: the caller's promise: a `V` lies at the start of the words, which are aligned for it.
        unsafe { self.0.as_mut_ptr().cast::<V>().read() }
    }
}

/// A closure to be called once, where it was made: up to three words of it lie in place, a larger one in a box.
pub(crate) struct InlineCall<C: 'static> {
    kind: &'static Kind<C>,
    words: Words<3>,
    /// What lies in the words may be neither `Send` nor `Sync`.
    closure: PhantomData<*mut dyn FnOnce(&C)>,
}

/// What is known of a closure once its type is forgotten.
struct Kind<C: 'static> {
    call: unsafe fn(&mut Words<3>, &C),
    /// `None` if it has no destructor.
    drop: Option<unsafe fn(&mut Words<3>)>,
}

impl<C: 'static> InlineCall<C> {
    #[inline]
    pub(crate) fn new<F: FnOnce(&C) + 'static>(closure: F) -> Self {
        if Words::<3>::fit::<F>() { Self::in_place(closure) } else { Self::boxed(closure) }
    }

    fn boxed<F: FnOnce(&C) + 'static>(closure: F) -> Self {
        // A box of a closure is a closure too, of one word.
        Self::in_place(Box::new(closure))
    }

    #[inline]
    fn in_place<F: FnOnce(&C) + 'static>(closure: F) -> Self {
        let kind = const {
            let drop: Option<unsafe fn(&mut Words<3>)> =
                if needs_drop::<F>() { Some(drop_as::<F>) } else { None };
            &Kind { call: call_as::<C, F>, drop }
        };
        let mut words = Words::EMPTY;
        words.put(closure);
        InlineCall { kind, words, closure: PhantomData }
    }

    /// Calls the closure. It is gone when this returns or unwinds.
    #[inline]
    pub(crate) fn call(self, context: &C) {
        let mut this = ManuallyDrop::new(self);
        let call = this.kind.call;
        // SAFETY: a closure of this kind lies in the words from `in_place` on; `this` is not dropped, so it is taken
        // once.
        unsafe { call(&mut this.words, context) }
    }
}

impl<C> Drop for InlineCall<C> {
    #[inline]
    fn drop(&mut self) {
        if let Some(drop) = self.kind.drop {
            // SAFETY: as in `call`, which keeps this from running.
            unsafe { drop(&mut self.words) }
        }
    }
}

/// # Safety
/// An `F` lies in the words, and it is taken once.
unsafe fn call_as<C, F: FnOnce(&C)>(words: &mut Words<3>, context: &C) {
    // SAFETY: the caller's promise.
    let closure = unsafe { words.take::<F>() };
    closure(context);
}

/// # Safety
/// An `F` lies in the words, and it is taken once.
unsafe fn drop_as<F>(words: &mut Words<3>) {
    // SAFETY: the caller's promise.
    drop(unsafe { words.take::<F>() });
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::rc::Rc;

    use super::*;

    type Call = InlineCall<Cell<u64>>;

    /// One that holds `rc` and words beside it.
    fn call_with<const N: usize>(rc: &Rc<()>) -> Call {
        let (rc, words) = (Rc::clone(rc), [7_u64; N]);
        Call::new(move |sum| {
            let _held = &rc;
            sum.set(sum.get() + 1 + words.iter().sum::<u64>());
        })
    }

    #[test]
    fn a_closure_of_any_size_runs_once_and_is_dropped_once() {
        let (rc, sum) = (Rc::new(()), Cell::new(0));
        for (make, expected) in [
            (call_with::<0> as fn(&Rc<()>) -> Call, 1),
            (call_with::<2>, 15),
            (call_with::<3>, 22),
            (call_with::<40>, 281),
        ] {
            let called = make(&rc);
            let dropped = make(&rc);
            assert_eq!(Rc::strong_count(&rc), 3);
            sum.set(0);
            called.call(&sum);
            assert_eq!((sum.get(), Rc::strong_count(&rc)), (expected, 2));
            drop(dropped);
            assert_eq!((sum.get(), Rc::strong_count(&rc)), (expected, 1));
        }
    }

    #[test]
    fn a_closure_that_panics_is_dropped_all_the_same() {
        let rc = Rc::new(());
        let held = Rc::clone(&rc);
        let call = Call::new(move |_| {
            let _held = &held;
            panic!("as it should");
        });
        assert!(catch_unwind(AssertUnwindSafe(|| call.call(&Cell::new(0)))).is_err());
        assert_eq!(Rc::strong_count(&rc), 1);
    }

    #[test]
    fn values_of_no_size_and_of_great_alignment_find_room() {
        #[derive(Clone, Copy)]
        #[repr(align(64))]
        struct Aligned(u64);
        let (sum, aligned) = (Cell::new(0), Aligned(5));
        Call::new(|sum| sum.set(1)).call(&sum);
        assert_eq!(sum.get(), 1);
        Call::new(move |sum| {
            let aligned = aligned;
            assert_eq!(std::ptr::from_ref(&aligned).addr() % 64, 0);
            sum.set(aligned.0);
        })
        .call(&sum);
        assert_eq!(sum.get(), 5);
    }

    #[test]
    fn small_closures_own_no_memory_and_a_call_takes_four_words() {
        assert!(
            Words::<3>::fit::<[usize; 3]>() && !Words::<3>::fit::<[usize; 4]>() && !Words::<3>::fit::<u128>()
        );
        let words = size_of::<usize>();
        assert_eq!((size_of::<Call>(), size_of::<Option<Call>>()), (4 * words, 4 * words));
    }
}
