//! A finished task's result, its type forgotten: in place if it is small, so that most tasks need no second
//! allocation.

use std::any::TypeId;
use std::mem::{self, ManuallyDrop, MaybeUninit};
use std::ptr;

/// A value of some type, at home in a table of values of many types.
pub(super) struct Output {
    /// The value, or a `Box` of it.
    words: MaybeUninit<[usize; OUTPUT_WORDS]>,
    kind: &'static Kind,
}

struct Kind {
    type_id: fn() -> TypeId,
    drop: unsafe fn(*mut u8),
}

impl Output {
    pub(super) fn new<T: 'static>(value: T) -> Self {
        if const { fits::<T>() } {
            Self::store(value, kind::<T>())
        } else {
            Self::store(Box::new(value), kind::<Box<T>>())
        }
    }

    /// The value again.
    ///
    /// # Panics
    /// Panics if it is not a `T`: a task was mixed up with another one.
    pub(super) fn take<T: 'static>(self) -> T {
        if const { fits::<T>() } { self.load::<T>() } else { *self.load::<Box<T>>() }
    }

    fn store<S>(stored: S, kind: &'static Kind) -> Self {
        assert!(fits::<S>());
        let mut words = MaybeUninit::<[usize; OUTPUT_WORDS]>::uninit();
        // SAFETY: there is room, and alignment, for an `S`: the assertion above.
        unsafe { words.as_mut_ptr().cast::<S>().write(stored) };
        Output { words, kind }
    }

    fn load<S: 'static>(self) -> S {
        // One type may have several kinds, but a kind has one type: the address decides nearly always.
        let is_stored = ptr::eq(self.kind, kind::<S>()) || (self.kind.type_id)() == TypeId::of::<S>();
        assert!(is_stored, "a task's result is of another type");
        let this = ManuallyDrop::new(self);
        // SAFETY: an `S` was stored, says its kind, and `this` never drops it.
        unsafe { this.words.as_ptr().cast::<S>().read() }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // SAFETY: `kind` was made for the type that was stored, which is there until now.
        unsafe { (self.kind.drop)(self.words.as_mut_ptr().cast()) }
    }
}

const fn fits<T>() -> bool {
    mem::size_of::<T>() <= mem::size_of::<[usize; OUTPUT_WORDS]>()
        && mem::align_of::<T>() <= mem::align_of::<usize>()
}

fn kind<S: 'static>() -> &'static Kind {
    const { &Kind { type_id: TypeId::of::<S>, drop: drop_stored::<S> } }
}

/// # Safety
/// `stored` points to an `S` that nobody uses afterwards.
unsafe fn drop_stored<S>(stored: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { stored.cast::<S>().drop_in_place() }
}

/// As many as a live task needs in the same place.
const OUTPUT_WORDS: usize = 4;

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn values_small_large_and_aligned_come_back_and_drop_once() {
        #[repr(align(64))]
        struct Aligned(u8);
        let witness = Rc::new(());
        assert_eq!(Output::new((7u8, "seven")).take::<(u8, &str)>(), (7, "seven"));
        assert_eq!(Output::new([9u64; 100]).take::<[u64; 100]>(), [9; 100]);
        assert_eq!(Output::new(Aligned(5)).take::<Aligned>().0, 5);
        Output::new(()).take::<()>();
        for count in [3, 2] {
            let small = Output::new(Rc::clone(&witness));
            let large = (count == 3).then(|| Output::new(([0u64; 9], Rc::clone(&witness))));
            assert_eq!(Rc::strong_count(&witness), count);
            drop((small, large));
            assert_eq!(Rc::strong_count(&witness), 1);
        }
        assert_eq!(Rc::strong_count(&witness), 1);
        drop(Output::new(Rc::clone(&witness)).take::<Rc<()>>());
        assert_eq!(Rc::strong_count(&witness), 1);
    }

    #[test]
    #[should_panic(expected = "another type")]
    fn a_value_is_not_taken_for_another_type() {
        Output::new(1u32).take::<i32>();
    }
}
