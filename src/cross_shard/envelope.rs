//! What travels between shards: closures on the way out, their results on the way home, type-erased in place.
//!
//! A [`Slot`] is 64 bytes: five words for a small closure, and later its result; one block of memory
//! instead, made by whoever made the slot, when either is larger. So a plain call allocates nothing, and what
//! a large one allocates is freed where that was done. This file knows the bytes and their types, and nothing of queues.

use super::endpoint::{Local, Reply};
use super::error::{CallError, Panic};
use super::foreign::Answer;
use super::withdrawal::Withdrawals;
use crate::ShardId;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::any::Any;
use std::mem::ManuallyDrop;
use std::mem::MaybeUninit;
use std::rc::Rc;

/// What lies in an inbox.
pub(super) enum Envelope<C: 'static> {
    /// One message of a thread that is no shard, which has no inbox to send anything home to.
    One(Box<Slot<C>>),
    /// What a shard sent at once, or got back.
    Batch(Batch<C>),
}

pub(super) struct Batch<C: 'static> {
    pub(super) slots: Vec<Slot<C>>,
    /// The shard that made it.
    pub(super) origin: ShardId,
    pub(super) way: Way,
    /// Whether somebody waits for it to come home.
    pub(super) brings_replies: bool,
}

/// Which way a batch is going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To the shard that runs it.
    Out,
    /// Back to the shard that made it: with the replies of its calls, and its memory.
    Home,
}

/// Names a call among those its origin has in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CallKey {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl CallKey {
    /// Of a slot that nobody waits for.
    pub(super) const NONE: CallKey = CallKey { index: u32::MAX, generation: 0 };
}

/// What happens in a slot. Only `Post`, `Call` and `AsyncCall` hold a closure, only `Value` and `Panicked` a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// A closure whose result nobody waits for.
    Post,
    /// A closure whose result comes home in this slot.
    Call,
    /// A closure that was given a [`Reply`] and answers by a message of its own.
    AsyncCall,
    /// The closure has been taken out and is running.
    Running,
    /// What the closure returned.
    Value,
    /// What the closure panicked with.
    Panicked,
    /// Nobody is going to answer this call.
    Unanswered,
    /// Nothing, but for the block if the slot has one.
    Spent,
    /// Nothing at all: the block, too, has been moved elsewhere.
    Empty,
}

/// A closure or what came of it. Dropping a slot drops what it holds, which is application code:
/// callers do that under no borrow, and where they mean it to happen. One cache line: it travels as such.
#[repr(C, align(64))]
pub(super) struct Slot<C: 'static> {
    words: Words,
    key: CallKey,
    kind: &'static Kind<C>,
    status: Status,
}

/// Room for one value at a time: in the words themselves, or in a block that the last three describe.
#[derive(Clone, Copy)]
pub(super) struct Words([MaybeUninit<usize>; 5]);

/// Where a closure runs and where its answer goes.
pub(super) struct Site<'a, C: 'static> {
    pub(super) context: &'a C,
    pub(super) local: &'a Rc<Local<C>>,
    pub(super) origin: ShardId,
    pub(super) withdrawals: &'a Withdrawals,
}

/// What is known of a slot's types once they are forgotten: fixed when the slot was made.
struct Kind<C: 'static> {
    /// Whether closure and result lie in a block.
    boxed: bool,
    run: unsafe fn(&mut Slot<C>, &Site<'_, C>),
    drop_request: unsafe fn(&mut Words),
    drop_value: unsafe fn(&mut Words),
}

/// What a slot of this closure and this result has room for. C layout: both start where the union starts.
#[repr(C)]
union Room<F, T> {
    request: ManuallyDrop<F>,
    value: ManuallyDrop<T>,
}

impl<C: 'static> Slot<C> {
    /// A closure to run, and no more.
    #[inline]
    pub(super) fn post<F: FnOnce(&C) + Send + 'static>(f: F) -> Self {
        Slot::new::<F, ()>(
            Status::Post,
            CallKey::NONE,
            const { &Kind::of::<F, ()>(run_plain::<C, F, ()>) },
            f,
        )
    }

    /// A closure whose result comes home in the slot.
    #[inline]
    pub(super) fn call<F, T>(key: CallKey, f: F) -> Self
    where
        F: FnOnce(&C) -> T + Send + 'static,
        T: Send + 'static,
    {
        Slot::new::<F, T>(Status::Call, key, const { &Kind::of::<F, T>(run_plain::<C, F, T>) }, f)
    }

    /// A closure that sends its result home later.
    #[inline]
    pub(super) fn async_call<F, T>(key: CallKey, f: F) -> Self
    where
        F: FnOnce(&C, Reply<T, C>) + Send + 'static,
        T: Send + 'static,
    {
        Slot::new::<F, ()>(Status::AsyncCall, key, const { &Kind::of::<F, ()>(run_async::<C, F, T>) }, f)
    }

    /// A closure that answers a thread which is no shard.
    #[inline]
    pub(super) fn foreign_call<F, T>(f: F, answer: Answer<T>) -> Self
    where
        F: FnOnce(&C) -> T + Send + 'static,
        T: Send + 'static,
    {
        Slot::new::<(F, Answer<T>), ()>(
            Status::Post,
            CallKey::NONE,
            const { &Kind::of::<(F, Answer<T>), ()>(run_foreign::<C, F, T>) },
            (f, answer),
        )
    }

    /// What came of an async call, on its way home.
    pub(super) fn answer<T: Send + 'static>(key: CallKey, result: Result<T, Panic>) -> Self {
        match result {
            Ok(value) => {
                Slot::new::<T, T>(Status::Value, key, const { &Kind::of::<T, T>(nothing_to_run) }, value)
            }
            Err(panic) => {
                let mut slot = Slot::nothing(Status::Spent, key);
                slot.set_panicked(panic.into_payload());
                slot
            }
        }
    }

    /// Tells the origin of an async call that no answer will come.
    pub(super) fn unanswered(key: CallKey) -> Self {
        Slot::nothing(Status::Unanswered, key)
    }

    fn nothing(status: Status, key: CallKey) -> Self {
        Slot::new::<(), ()>(status, key, const { &Kind::of::<(), ()>(nothing_to_run) }, ())
    }

    #[inline]
    fn new<F, T>(status: Status, key: CallKey, kind: &'static Kind<C>, request: F) -> Self {
        let mut words = Words::with_room::<Room<F, T>>();
        // SAFETY: the room was just made for this type, and is empty.
        unsafe { words.room::<Room<F, T>>().cast::<F>().write(request) };
        Slot { words, key, kind, status }
    }

    pub(super) fn status(&self) -> Status {
        self.status
    }

    pub(super) fn key(&self) -> CallKey {
        self.key
    }

    /// Runs the closure; its result is then in the slot, if anybody waits for it. When the closure panics, so does
    /// this, and leaves the slot [`Status::Running`].
    #[inline]
    pub(super) fn run(&mut self, site: &Site<'_, C>) {
        assert!(matches!(self.status, Status::Post | Status::Call | Status::AsyncCall), "nothing to run");
        // SAFETY: the status says that a request of this kind is in place; `run` is of the same kind.
        unsafe { (self.kind.run)(self, site) }
    }

    /// Keeps the payload of a closure that panicked while it ran.
    pub(super) fn set_panicked(&mut self, payload: Box<dyn Any + Send>) {
        assert!(matches!(self.status, Status::Running | Status::Spent), "something is in the way");
        // SAFETY: a slot in these states holds no value, and the payload lies beside the description of a block.
        unsafe { self.words.payload().write(payload) };
        self.status = Status::Panicked;
    }

    /// Says that nobody is going to answer.
    pub(super) fn set_unanswered(&mut self) {
        assert!(matches!(self.status, Status::Running | Status::Spent), "something is in the way");
        self.status = Status::Unanswered;
    }

    /// Says that the closure has been taken out and nothing came of it.
    pub(super) fn set_spent(&mut self) {
        assert_eq!(self.status, Status::Running, "something is in the way");
        self.status = Status::Spent;
    }

    /// Whether this is what came of a call.
    #[inline]
    pub(super) fn is_answer(&self) -> bool {
        matches!(self.status, Status::Value | Status::Panicked | Status::Unanswered)
    }

    /// Moves what came of the call into `words`, with its block; the slot stays behind with nothing to drop.
    #[inline]
    pub(super) fn take_outcome(&mut self, words: &mut Words) -> Came {
        assert!(self.is_answer(), "nothing came of this slot yet");
        *words = self.words;
        match self.status {
            Status::Value => {
                self.status = Status::Empty;
                if self.kind.boxed { Came::Boxed } else { Came::Inline }
            }
            // A payload needs no block: if there is one, it stays to be freed with the slot.
            Status::Panicked => {
                self.status = Status::Spent;
                Came::Panicked
            }
            _ => {
                self.status = Status::Spent;
                Came::Stopped
            }
        }
    }
}

impl<C: 'static> Drop for Slot<C> {
    #[inline]
    fn drop(&mut self) {
        match self.status {
            Status::Empty => {}
            Status::Spent if !self.kind.boxed => {}
            _ => self.drop_content(),
        }
    }
}

impl<C: 'static> Slot<C> {
    /// Drops what is in it.
    pub(super) fn clear(&mut self) {
        if self.status != Status::Empty {
            self.drop_content();
        }
    }

    #[cold]
    fn drop_content(&mut self) {
        let status = std::mem::replace(&mut self.status, Status::Empty);
        match status {
            // SAFETY: the status says that a request of this kind is in place; it is not looked at again.
            Status::Post | Status::Call | Status::AsyncCall => unsafe {
                (self.kind.drop_request)(&mut self.words)
            },
            // SAFETY: likewise of a value.
            Status::Value => unsafe { (self.kind.drop_value)(&mut self.words) },
            Status::Panicked => {
                // SAFETY: the status says that there is a payload; it is not looked at again.
                let payload = unsafe { self.words.payload().read() };
                self.free_block();
                drop(payload);
            }
            Status::Running | Status::Unanswered | Status::Spent => self.free_block(),
            Status::Empty => {}
        }
    }

    fn free_block(&mut self) {
        if self.kind.boxed {
            // SAFETY: slots of this kind have a block, nothing is in it in the states that lead here, and they end in `Empty`.
            unsafe { self.words.free_block() };
        }
    }
}

impl<C: 'static> Kind<C> {
    const fn of<F, T>(run: unsafe fn(&mut Slot<C>, &Site<'_, C>)) -> Self {
        Kind {
            boxed: !Words::hold::<Room<F, T>>(),
            run,
            drop_request: drop_as::<Room<F, T>, F>,
            drop_value: drop_as::<Room<F, T>, T>,
        }
    }
}

/// For slots that are made with a result.
fn nothing_to_run<C>(_: &mut Slot<C>, _: &Site<'_, C>) {
    unreachable!("a result is not run")
}

/// Runs a closure and puts what it returns into its place.
///
/// # Safety
/// The slot was made for `F` and `T` and holds the closure.
unsafe fn run_plain<C: 'static, F: FnOnce(&C) -> T, T>(slot: &mut Slot<C>, site: &Site<'_, C>) {
    let keeps_value = slot.status == Status::Call;
    // SAFETY: the caller's promise; the status says from here on that the closure has left.
    let f = unsafe { slot.words.room::<Room<F, T>>().cast::<F>().read() };
    slot.status = Status::Running;
    let value = f(site.context);
    if keeps_value {
        // SAFETY: the room has the layout of both, and is empty.
        unsafe { slot.words.room::<Room<F, T>>().cast::<T>().write(value) };
        slot.status = Status::Value;
    } else {
        slot.status = Status::Spent;
    }
}

/// Starts an async call: its closure gets the means to answer.
///
/// # Safety
/// The slot was made by `async_call` for `F` and `T` and holds the closure.
unsafe fn run_async<C: 'static, F, T>(slot: &mut Slot<C>, site: &Site<'_, C>)
where
    F: FnOnce(&C, Reply<T, C>),
    T: Send + 'static,
{
    // SAFETY: the caller's promise; the status says from here on that the closure has left.
    let f = unsafe { slot.words.room::<Room<F, ()>>().cast::<F>().read() };
    slot.status = Status::Running;
    let reply = Reply::new(site.local, site.origin, slot.key);
    f(site.context, reply);
    slot.status = Status::Spent;
}

/// Runs a closure for a thread that is no shard, and answers it.
///
/// # Safety
/// The slot was made by `foreign_call` for `F` and `T` and holds both.
unsafe fn run_foreign<C: 'static, F, T>(slot: &mut Slot<C>, site: &Site<'_, C>)
where
    F: FnOnce(&C) -> T,
    T: Send,
{
    // SAFETY: the caller's promise; the status says from here on that both have left.
    let (f, answer) =
        unsafe { slot.words.room::<Room<(F, Answer<T>), ()>>().cast::<(F, Answer<T>)>().read() };
    slot.status = Status::Spent;
    if answer.is_wanted() {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| f(site.context)));
        if let Err(payload) = &result {
            site.local.note_panic("a called closure", &**payload);
        }
        answer.send(result.map_err(|payload| CallError::Panicked(Panic::new(payload))));
    }
}

/// Drops the `V` in a room of layout `R`. The block is freed first, so that it is also when the drop panics.
///
/// # Safety
/// The words were made for `R`, which has room for a `V` at its start, and hold one. They hold nothing afterwards.
unsafe fn drop_as<R, V>(words: &mut Words) {
    // SAFETY: the caller's promise: the value is moved out, then its block is freed empty.
    let value = unsafe {
        let value = words.room::<R>().cast::<V>().read();
        words.free_room::<R>();
        value
    };
    drop(value);
}

/// How what came of a call lies in its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// A value, in the words themselves.
    Inline,
    /// A value, in their block.
    Boxed,
    /// The payload of a panic.
    Panicked,
    /// Nothing: there will be no answer.
    Stopped,
}

impl Words {
    pub(super) const EMPTY: Words = Words([MaybeUninit::uninit(); 5]);

    /// Moves out what came of a call, and frees what it lay in.
    ///
    /// # Safety
    /// It came of a call whose closure returned a `T` (or whose answer was one), in this way, and is opened once.
    #[inline]
    pub(super) unsafe fn open<T>(&mut self, came: Came) -> Result<T, CallError> {
        match came {
            // SAFETY: an inline value is at the start of the words, which are aligned for it; opened once.
            Came::Inline => Ok(unsafe { self.0.as_ptr().cast::<T>().read() }),
            // SAFETY: a boxed value is at the start of the block, which then is freed empty; opened once.
            Came::Boxed => unsafe {
                let value = self.block().cast::<T>().read();
                self.free_block();
                Ok(value)
            },
            // SAFETY: a panicked call left its payload in the words; opened once.
            Came::Panicked => Err(CallError::Panicked(Panic::new(unsafe { self.payload().read() }))),
            Came::Stopped => Err(CallError::Stopped),
        }
    }

    /// Whether the words themselves hold an `R`.
    const fn hold<R>() -> bool {
        size_of::<R>() <= size_of::<Words>() && align_of::<R>() <= align_of::<Words>()
    }

    #[inline]
    fn with_room<R>() -> Self {
        let mut words = Words::EMPTY;
        if !Words::hold::<R>() {
            words.make_block(Layout::new::<R>());
        }
        words
    }

    /// Where an `R` lies.
    ///
    /// # Safety
    /// The words were made `with_room::<R>`, and still are.
    #[inline]
    unsafe fn room<R>(&mut self) -> *mut R {
        if Words::hold::<R>() {
            self.0.as_mut_ptr().cast()
        } else {
            // SAFETY: the caller's promise; words that do not hold an `R` have a block for it.
            unsafe { self.block() }.cast()
        }
    }

    /// # Safety
    /// The words were made `with_room::<R>`, and what was in there has been moved out.
    #[inline]
    unsafe fn free_room<R>(&mut self) {
        if !Words::hold::<R>() {
            // SAFETY: the caller's promise: there is a block, and it is empty.
            unsafe { self.free_block() };
        }
    }

    /// Two words beside the block's description, for a panic's payload.
    fn payload(&mut self) -> *mut Box<dyn Any + Send> {
        const { assert!(size_of::<Box<dyn Any + Send>>() == 2 * size_of::<usize>()) };
        self.0.as_mut_ptr().cast()
    }

    #[cold]
    fn make_block(&mut self, layout: Layout) {
        let address = if layout.size() == 0 {
            std::ptr::without_provenance_mut(layout.align())
        } else {
            // SAFETY: the size is not zero.
            unsafe { alloc(layout) }
        };
        if address.is_null() {
            handle_alloc_error(layout);
        }
        // A pointer, not a number: its provenance must survive the journey.
        // SAFETY: a word has the size and alignment of a thin pointer, and is in bounds.
        unsafe { self.0.as_mut_ptr().add(BLOCK).cast::<*mut u8>().write(address) };
        self.0[BLOCK + 1].write(layout.size());
        self.0[BLOCK + 2].write(layout.align());
    }

    /// # Safety
    /// `make_block` was called, and `free_block` not since.
    unsafe fn block(&mut self) -> *mut u8 {
        // SAFETY: the caller's promise: the word is initialised, and with a pointer.
        unsafe { self.0.as_mut_ptr().add(BLOCK).cast::<*mut u8>().read() }
    }

    /// # Safety
    /// As for `block`; nothing is in it that anybody wants to see dropped.
    #[cold]
    unsafe fn free_block(&mut self) {
        // SAFETY: the caller's promise: the three words are initialised and describe a block that `make_block` made.
        unsafe {
            let address = self.block();
            let layout = Layout::from_size_align_unchecked(
                self.0[BLOCK + 1].assume_init(),
                self.0[BLOCK + 2].assume_init(),
            );
            if layout.size() != 0 {
                dealloc(address, layout);
            }
        }
    }
}

/// The word that holds the block's address; its size and alignment follow.
const BLOCK: usize = 2;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::test_kit::Shard;
    use super::*;

    #[test]
    fn a_slot_is_one_cache_line_and_an_envelope_less() {
        assert_eq!((size_of::<Slot<Shard>>(), align_of::<Slot<Shard>>()), (64, 64));
        assert_eq!(size_of::<Envelope<Shard>>(), 32);
    }

    #[test]
    fn messages_may_go_to_shards_that_may_not() {
        fn is_send<T: Send>() {}
        // A context that is neither `Send` nor `Sync`: it stays where it is.
        is_send::<Envelope<Rc<()>>>();
    }
}
