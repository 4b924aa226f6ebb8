//! What travels between shards: closures on the way out, their results on the way home, type-erased in place.
//!
//! A batch is one piece of memory with one slot after the other. A slot has 32 bytes, 16 of them for a small
//! closure and later its result; or 64 bytes with room for 40; or, when either is larger still, a block of
//! memory of its own, made by whoever made the slot. So a plain call allocates nothing, what a large one
//! allocates is freed where that was done, and two small calls share a cache line, which is what a call
//! between shards costs most of all. This file knows the bytes and their types, and nothing of queues.

use super::error::{CallError, Panic};
use super::foreign::Answer;
use super::local::Local;
use super::prefetch;
use super::reply::Reply;
use super::withdrawal::Withdrawals;
use crate::ShardId;
use crate::inline;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::any::Any;
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ptr::NonNull;
use std::rc::Rc;

/// What slots were in. Goes home to the shard that made it, or is used again by a shard it came to, for messages to
/// there.
#[derive(Default)]
pub(super) struct Memory(Vec<Unit>);

/// Names a call among those its origin has in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CallKey {
    /// Below [`CALLS_MAX`].
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// Calls that one shard may have in flight, whose indices fit into a slot.
pub(super) const CALLS_MAX: u32 = (1 << 24) - 1;

impl CallKey {
    /// Of a slot that nobody waits for.
    pub(super) const NONE: CallKey = CallKey { index: CALLS_MAX, generation: 0 };
}

/// What happens in a slot. The first three hold a closure; what came of it is left in the same slot. The
/// `Answered…` are messages of their own, about a call of the shard they are sent *to*: on the way back,
/// after they were refused, they mean nothing, whereas their likes name a call of the shard that they come
/// home to.
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
    /// A message: what an async call has come to.
    AnsweredValue,
    /// A message: what an async call has panicked with.
    AnsweredPanic,
    /// A message: nobody is going to answer an async call.
    AnsweredNothing,
    /// Nothing, but for the block if the slot has one.
    Spent,
    /// Nothing at all: the block, too, has been moved elsewhere or freed.
    Empty,
}

/// Slots one after the other, and a place among them up to which they have been dealt with.
///
/// Dropping or clearing slots drops what they hold, which is application code: callers do that under no
/// borrow, and where they mean it to happen.
pub(super) struct Slots<C: 'static> {
    /// Each slot is one unit or two: a header, then its room.
    units: Vec<Unit>,
    /// Where the slot starts that `next` gives next, and the one it gave last. Both are starts of slots, or
    /// the end.
    next: u16,
    last: u16,
    /// Whether any slot has, or had, a block.
    has_blocks: bool,
    context: PhantomData<fn(&C)>,
}

/// Half a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Unit([MaybeUninit<u8>; 32]);

const UNITS_PER_LINE: usize = 2;
const UNITS_PER_SLOT_MAX: usize = 2;

/// As many as a processor has under way at a time, more or less; by then its own prefetcher has seen the stride.
const LINES_AHEAD: usize = 16;

/// What a slot starts with; its room follows.
#[repr(C)]
struct Header<C: 'static> {
    kind: &'static Kind<C>,
    generation: u32,
    /// The index has 24 bits.
    index_low: u16,
    index_high: u8,
    status: Status,
}

/// What is known of a slot's types once they are forgotten: fixed when the slot was made.
struct Kind<C: 'static> {
    shape: Shape,
    run: unsafe fn(&mut Slot<'_, C>, &Site<'_, C>),
    drop_request: unsafe fn(&mut Slot<'_, C>),
    drop_value: unsafe fn(&mut Slot<'_, C>),
}

/// Where closure and result of a slot lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// In the rest of its one unit.
    Small,
    /// In the rest of its two units.
    Large,
    /// In a block, which the room of two units describes.
    Boxed,
}

/// What a slot of this closure and this result has room for. C layout: both start where the union starts.
#[repr(C)]
union Either<F, T> {
    request: ManuallyDrop<F>,
    value: ManuallyDrop<T>,
}

/// Five words that belong to a slot, or that its outcome was moved to: a value, or the payload of a panic in
/// the first two beside the description of a block in the other three.
pub(super) type Words = inline::Words<5>;

/// The word that holds a block's address; its size and alignment follow.
const BLOCK: usize = 2;

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

/// Where a closure runs and where its answer goes.
pub(super) struct Site<'a, C: 'static> {
    pub(super) context: &'a C,
    pub(super) local: &'a Rc<Local<C>>,
    pub(super) origin: ShardId,
    pub(super) withdrawals: &'a Withdrawals,
}

/// One slot among others: a closure, or what came of it.
pub(super) struct Slot<'a, C: 'static> {
    /// The slot's header, with provenance for its units. They are ours alone for `'a`, and valid as their
    /// status says.
    start: NonNull<Header<C>>,
    slots: PhantomData<&'a mut Slots<C>>,
}

impl<C: 'static> Slots<C> {
    pub(super) const fn new() -> Self {
        Slots { units: Vec::new(), next: 0, last: 0, has_blocks: false, context: PhantomData }
    }

    /// A closure to run, and no more.
    #[inline]
    pub(super) fn push_post<F: FnOnce(&C) + Send + 'static>(&mut self, f: F) {
        let kind = const { &Kind::of::<F, ()>(run_post::<C, F>) };
        self.push::<F, F, ()>(Status::Post, CallKey::NONE, kind, f);
    }

    /// A closure whose result comes home in the slot.
    #[inline]
    pub(super) fn push_call<F, T>(&mut self, key: CallKey, f: F)
    where
        F: FnOnce(&C) -> T + Send + 'static,
        T: Send + 'static,
    {
        let kind = const { &Kind::of::<F, T>(run_plain::<C, F, T>) };
        self.push::<F, F, T>(Status::Call, key, kind, f);
    }

    /// A closure that sends its result home later.
    #[inline]
    pub(super) fn push_async_call<F, T>(&mut self, key: CallKey, f: F)
    where
        F: FnOnce(&C, Reply<T, C>) + Send + 'static,
        T: Send + 'static,
    {
        let kind = const { &Kind::of::<F, ()>(run_async::<C, F, T>) };
        self.push::<F, F, ()>(Status::AsyncCall, key, kind, f);
    }

    /// A closure that answers a thread which is no shard.
    pub(super) fn push_foreign_call<F, T>(&mut self, f: F, answer: Answer<T>)
    where
        F: FnOnce(&C) -> T + Send + 'static,
        T: Send + 'static,
    {
        let kind = const { &Kind::of::<(F, Answer<T>), ()>(run_foreign::<C, F, T>) };
        self.push::<_, (F, Answer<T>), ()>(Status::Post, CallKey::NONE, kind, (f, answer));
    }

    /// What came of an async call, on its way home.
    pub(super) fn push_answer<T: Send + 'static>(&mut self, key: CallKey, result: Result<T, Panic>) {
        match result {
            Ok(value) => {
                let kind = const { &Kind::of::<T, T>(nothing_to_run) };
                self.push::<T, T, T>(Status::AnsweredValue, key, kind, value);
            }
            Err(panic) => {
                type Payload = Box<dyn Any + Send>;
                let kind = const { &Kind::of::<Payload, ()>(nothing_to_run) };
                self.push::<Payload, Payload, ()>(Status::AnsweredPanic, key, kind, panic.into_payload());
            }
        }
    }

    /// Tells the origin of an async call that no answer will come.
    pub(super) fn push_unanswered(&mut self, key: CallKey) {
        let kind = const { &Kind::of::<(), ()>(nothing_to_run) };
        self.push::<(), (), ()>(Status::AnsweredNothing, key, kind, ());
    }

    /// Adds a slot with room for an `F` and, later, a `T`, that holds `content`.
    #[inline]
    fn push<V, F, T>(&mut self, status: Status, key: CallKey, kind: &'static Kind<C>, content: V) {
        const { assert!(size_of::<Header<C>>() == 16 && align_of::<Header<C>>() <= align_of::<Unit>()) };
        debug_assert!(key.index <= CALLS_MAX);
        let start = self.units.len();
        let units = const { Shape::of::<Either<F, T>>().units() as usize };
        if self.units.capacity() - start < units {
            self.grow();
        }
        // SAFETY: there is room for so many more, just made if need be; and units need no initialisation.
        unsafe { self.units.set_len(start + units) };
        let header = Header {
            kind,
            generation: key.generation,
            index_low: key.index as u16,
            index_high: (key.index >> 16) as u8,
            status,
        };
        // SAFETY: `start` is in bounds, and a unit has the size and alignment for a header.
        let mut slot = unsafe {
            let start = self.units.as_mut_ptr().add(start).cast::<Header<C>>();
            start.write(header);
            Slot::<C> { start: NonNull::new_unchecked(start), slots: PhantomData }
        };
        if const { matches!(Shape::of::<Either<F, T>>(), Shape::Boxed) } {
            slot.make_block(Layout::new::<Either<F, T>>());
            self.has_blocks = true;
        }
        // SAFETY: the room is of this shape, since the kind was made for the same types, and is empty.
        unsafe { slot.room::<Either<F, T>>().cast::<V>().write(content) };
    }

    /// Makes room for a slot, and for as many again as there are.
    #[cold]
    #[inline(never)]
    fn grow(&mut self) {
        self.units.reserve(UNITS_PER_SLOT_MAX);
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// How much they fill, in units of 32 bytes.
    #[inline]
    pub(super) fn units(&self) -> usize {
        self.units.len()
    }

    /// Whether `next` has given them all.
    pub(super) fn are_done(&self) -> bool {
        usize::from(self.next) == self.units.len()
    }

    /// Starts again from the first.
    pub(super) fn rewind(&mut self) {
        self.next = 0;
    }

    /// The next slot.
    #[inline]
    pub(super) fn next(&mut self) -> Option<Slot<'_, C>> {
        if usize::from(self.next) >= self.units.len() {
            return None;
        }
        self.last = self.next;
        // SAFETY: `next` is the start of a slot, as the first slot's is and whatever follows a whole slot.
        let slot = unsafe { self.at(self.next) };
        let units = slot.header().kind.shape.units();
        self.next = self.last + units;
        // Borrowed anew, for the field above to be written.
        // SAFETY: as before.
        Some(unsafe { self.at(self.last) })
    }

    /// Asks for the first cache lines of what another CPU has written, all at once: met one by one, each would be
    /// waited for.
    #[inline]
    pub(super) fn fetch_ahead(&self) {
        for line in self.units.chunks(UNITS_PER_LINE).take(LINES_AHEAD) {
            prefetch::to_write(line.as_ptr().cast());
        }
    }

    /// Likewise of memory that another CPU has used last, and that is about to be written.
    #[inline]
    pub(super) fn fetch_room(&mut self) {
        let room = self.units.spare_capacity_mut();
        for line in room.chunks(UNITS_PER_LINE).take(LINES_AHEAD) {
            prefetch::to_write(line.as_ptr().cast());
        }
    }

    /// The slot that `next` gave last.
    pub(super) fn last(&mut self) -> Slot<'_, C> {
        assert!(usize::from(self.last) < self.units.len(), "no slot was given yet");
        // SAFETY: `next` has left the start of a slot in `last`, or it is the first one's.
        unsafe { self.at(self.last) }
    }

    /// # Safety
    /// A slot starts at this unit.
    #[inline]
    unsafe fn at(&mut self, unit: u16) -> Slot<'_, C> {
        // SAFETY: the caller's promise; hence in bounds.
        let start = unsafe { self.units.as_mut_ptr().add(usize::from(unit)).cast() };
        // SAFETY: it points into a vector.
        Slot { start: unsafe { NonNull::new_unchecked(start) }, slots: PhantomData }
    }

    /// Drops what is left in the slots, and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.rewind();
        while let Some(mut slot) = self.next() {
            slot.clear();
        }
        self.forget();
    }

    /// Makes them empty of slots that hold nothing but perhaps their blocks: no application code runs.
    pub(super) fn clear_spent(&mut self) {
        if self.has_blocks || cfg!(debug_assertions) {
            self.rewind();
            while let Some(mut slot) = self.next() {
                assert!(
                    matches!(slot.status(), Status::Spent | Status::Empty),
                    "something is left in a slot"
                );
                slot.clear();
            }
        }
        self.forget();
    }

    fn forget(&mut self) {
        self.units.clear();
        (self.next, self.last, self.has_blocks) = (0, 0, false);
    }

    /// Whether there is nothing about them that only the shard that made them may deal with, but for their memory.
    pub(super) fn have_blocks(&self) -> bool {
        self.has_blocks
    }

    /// The memory of slots that hold nothing.
    pub(super) fn into_memory(mut self) -> Memory {
        self.clear_spent();
        Memory(std::mem::take(&mut self.units))
    }

    pub(super) fn within(memory: Memory) -> Self {
        Slots { units: memory.0, next: 0, last: 0, has_blocks: false, context: PhantomData }
    }
}

impl Memory {
    pub(super) const NONE: Memory = Memory(Vec::new());

    #[inline]
    pub(super) fn is_none(&self) -> bool {
        self.0.capacity() == 0
    }
}

impl<C> Drop for Slots<C> {
    fn drop(&mut self) {
        self.clear();
    }
}

impl<C: 'static> Slot<'_, C> {
    #[inline]
    fn header(&self) -> &Header<C> {
        // SAFETY: a slot starts with a header, and is ours.
        unsafe { self.start.as_ref() }
    }

    #[inline]
    fn header_mut(&mut self) -> &mut Header<C> {
        // SAFETY: as above, and it is borrowed mutably.
        unsafe { self.start.as_mut() }
    }

    #[inline]
    pub(super) fn status(&self) -> Status {
        self.header().status
    }

    #[inline]
    pub(super) fn key(&self) -> CallKey {
        let header = self.header();
        let index = u32::from(header.index_low) | u32::from(header.index_high) << 16;
        CallKey { index, generation: header.generation }
    }

    /// Whether this is what came of the call that was made in this slot.
    #[inline]
    pub(super) fn is_outcome(&self) -> bool {
        matches!(self.status(), Status::Value | Status::Panicked | Status::Unanswered)
    }

    /// Runs the closure; its result is then in the slot, if anybody waits for it. When the closure panics, so
    /// does this, and leaves the slot [`Status::Running`].
    #[inline]
    pub(super) fn run(&mut self, site: &Site<'_, C>) {
        assert!(matches!(self.status(), Status::Post | Status::Call | Status::AsyncCall), "nothing to run");
        let run = self.header().kind.run;
        // SAFETY: the status says that a request of this kind is in place.
        unsafe { run(self, site) }
    }

    /// Keeps the payload of a closure that panicked while it ran.
    pub(super) fn set_panicked(&mut self, payload: Box<dyn Any + Send>) {
        assert_eq!(self.status(), Status::Running, "something is in the way");
        // SAFETY: the closure has left its room; every room has the two words, and in that of a block they
        // are free.
        unsafe { self.words().cast::<Box<dyn Any + Send>>().write(payload) };
        self.header_mut().status = Status::Panicked;
    }

    /// Says that nobody is going to answer.
    pub(super) fn set_unanswered(&mut self) {
        assert_eq!(self.status(), Status::Spent, "something is in the way");
        self.header_mut().status = Status::Unanswered;
    }

    /// Says that the closure has been taken out and nothing came of it.
    pub(super) fn set_spent(&mut self) {
        assert_eq!(self.status(), Status::Running, "something is in the way");
        self.header_mut().status = Status::Spent;
    }

    /// Moves what came of the call into `words`, with its block; the slot stays behind with nothing to drop.
    pub(super) fn take_outcome(&mut self, words: &mut Words) -> Came {
        let shape = self.header().kind.shape;
        let (came, left) = match self.status() {
            Status::Value | Status::AnsweredValue if shape == Shape::Boxed => (Came::Boxed, Status::Empty),
            Status::Value | Status::AnsweredValue => (Came::Inline, Status::Empty),
            // A payload needs no block: if there is one, it stays to be freed with the slot.
            Status::Panicked | Status::AnsweredPanic => (Came::Panicked, Status::Spent),
            Status::Unanswered | Status::AnsweredNothing => (Came::Stopped, Status::Spent),
            _ => panic!("nothing came of this slot yet"),
        };
        // SAFETY: a room has this many words, and they are copied as they are, initialised or not.
        unsafe {
            match shape {
                Shape::Small => *words.first_two() = self.words().cast::<[_; 2]>().read(),
                Shape::Large | Shape::Boxed => *words = self.words().cast::<Words>().read(),
            }
        }
        self.header_mut().status = left;
        came
    }

    /// As `take_outcome`, of the most common outcome; `false`, and nothing has happened, if it is another.
    #[inline]
    pub(super) fn take_small_value(&mut self, words: &mut Words) -> bool {
        let header = self.header();
        if header.status != Status::Value || header.kind.shape != Shape::Small {
            return false;
        }
        // SAFETY: a small slot has two words, which are copied as they are, initialised or not.
        *words.first_two() = unsafe { self.words().cast::<[_; 2]>().read() };
        self.header_mut().status = Status::Empty;
        true
    }

    /// Drops what is in it.
    pub(super) fn clear(&mut self) {
        let (status, kind) = (self.status(), self.header().kind);
        self.header_mut().status = Status::Empty;
        match status {
            // SAFETY: the status said that a request of this kind is in place; it is not looked at again.
            Status::Post | Status::Call | Status::AsyncCall => unsafe { (kind.drop_request)(self) },
            // SAFETY: likewise of a value.
            Status::Value | Status::AnsweredValue => unsafe { (kind.drop_value)(self) },
            Status::Panicked | Status::AnsweredPanic => {
                // SAFETY: the status said that there is a payload; it is not looked at again.
                let payload = unsafe { self.words().cast::<Box<dyn Any + Send>>().read() };
                // SAFETY: nothing else was in the room; and the slot is empty from now on.
                unsafe { self.free_block() };
                drop(payload);
            }
            // SAFETY: nothing is in the room in these states; and the slot is empty from now on.
            Status::Running | Status::Unanswered | Status::AnsweredNothing | Status::Spent => unsafe {
                self.free_block();
            },
            Status::Empty => {}
        }
    }

    /// The words of the room: two in a small slot, five in any other.
    #[inline]
    fn words(&mut self) -> *mut MaybeUninit<usize> {
        // SAFETY: the room follows the header in the same unit. (No reference is made here: a header's
        // would not reach beyond it.)
        unsafe { self.start.as_ptr().add(1).cast() }
    }

    /// Where an `R` lies.
    ///
    /// # Safety
    /// The slot was made with room for an `R`.
    #[inline]
    unsafe fn room<R>(&mut self) -> *mut R {
        match const { Shape::of::<R>() } {
            Shape::Small | Shape::Large => self.words().cast(),
            // SAFETY: the caller's promise: the room is that of a block, which was made with the slot.
            Shape::Boxed => unsafe { self.words().add(BLOCK).cast::<*mut R>().read() },
        }
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
        // SAFETY: the slot is boxed, hence has five words. The address is written as a pointer: its
        // provenance must survive the journey.
        unsafe {
            let description = self.words().add(BLOCK);
            description.cast::<*mut u8>().write(address);
            description.add(1).write(MaybeUninit::new(layout.size()));
            description.add(2).write(MaybeUninit::new(layout.align()));
        }
    }

    /// Frees the block, if the slot is one with a block.
    ///
    /// # Safety
    /// The block, if any, is still there, nothing in it is wanted, and it is not used again.
    unsafe fn free_block(&mut self) {
        if self.header().kind.shape == Shape::Boxed {
            // SAFETY: a boxed slot's words are initialised from `BLOCK` on; the rest is the caller's promise.
            unsafe { free_block(self.words().add(BLOCK)) };
        }
    }
}

/// # Safety
/// The three words describe a block that `make_block` made; what was in it is not wanted, and neither is used
/// again.
#[cold]
unsafe fn free_block(description: *mut MaybeUninit<usize>) {
    // SAFETY: the caller's promise: the words are initialised, with the layout that the block was made with.
    unsafe {
        let address = description.cast::<*mut u8>().read();
        let (size, align) =
            (description.add(1).read().assume_init(), description.add(2).read().assume_init());
        if size != 0 {
            dealloc(address, Layout::from_size_align_unchecked(size, align));
        }
    }
}

impl<C: 'static> Kind<C> {
    const fn of<F, T>(run: unsafe fn(&mut Slot<'_, C>, &Site<'_, C>)) -> Self {
        Kind {
            shape: Shape::of::<Either<F, T>>(),
            run,
            drop_request: drop_as::<C, Either<F, T>, F>,
            drop_value: drop_as::<C, Either<F, T>, T>,
        }
    }
}

impl Shape {
    const fn of<R>() -> Shape {
        if inline::Words::<2>::fit::<R>() {
            Shape::Small
        } else if Words::fit::<R>() {
            Shape::Large
        } else {
            Shape::Boxed
        }
    }

    #[inline]
    const fn units(self) -> u16 {
        match self {
            Shape::Small => 1,
            Shape::Large | Shape::Boxed => 2,
        }
    }
}

/// For slots that are made with a result.
fn nothing_to_run<C>(_: &mut Slot<'_, C>, _: &Site<'_, C>) {
    unreachable!("a result is not run")
}

/// Runs a closure of which nobody waits for anything.
///
/// # Safety
/// The slot was made for `F` and `()` and holds the closure.
unsafe fn run_post<C: 'static, F: FnOnce(&C)>(slot: &mut Slot<'_, C>, site: &Site<'_, C>) {
    // SAFETY: the caller's promise; the status says from here on that the closure has left.
    let f = unsafe { slot.room::<Either<F, ()>>().cast::<F>().read() };
    slot.header_mut().status = Status::Running;
    f(site.context);
    slot.header_mut().status = Status::Spent;
}

/// Runs a closure and puts what it returns into its place.
///
/// # Safety
/// The slot was made for `F` and `T` and holds the closure.
unsafe fn run_plain<C: 'static, F: FnOnce(&C) -> T, T>(slot: &mut Slot<'_, C>, site: &Site<'_, C>) {
    // SAFETY: the caller's promise; the status says from here on that the closure has left.
    let f = unsafe { slot.room::<Either<F, T>>().cast::<F>().read() };
    slot.header_mut().status = Status::Running;
    let value = f(site.context);
    // SAFETY: the room has the layout of both, and is empty.
    unsafe { slot.room::<Either<F, T>>().cast::<T>().write(value) };
    slot.header_mut().status = Status::Value;
}

/// Starts an async call: its closure gets the means to answer.
///
/// # Safety
/// The slot was made by `push_async_call` for `F` and `T` and holds the closure.
unsafe fn run_async<C: 'static, F, T>(slot: &mut Slot<'_, C>, site: &Site<'_, C>)
where
    F: FnOnce(&C, Reply<T, C>),
    T: Send + 'static,
{
    // SAFETY: the caller's promise; the status says from here on that the closure has left.
    let f = unsafe { slot.room::<Either<F, ()>>().cast::<F>().read() };
    slot.header_mut().status = Status::Running;
    let reply = Reply::new(site.local, site.origin, slot.key());
    f(site.context, reply);
    slot.header_mut().status = Status::Spent;
}

/// Runs a closure for a thread that is no shard, and answers it.
///
/// # Safety
/// The slot was made by `push_foreign_call` for `F` and `T` and holds both.
unsafe fn run_foreign<C: 'static, F, T>(slot: &mut Slot<'_, C>, site: &Site<'_, C>)
where
    F: FnOnce(&C) -> T,
    T: Send,
{
    // SAFETY: the caller's promise; the status says from here on that both have left.
    let (f, answer) = unsafe { slot.room::<Either<(F, Answer<T>), ()>>().cast::<(F, Answer<T>)>().read() };
    slot.header_mut().status = Status::Spent;
    if answer.is_wanted() {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| f(site.context)));
        if let Err(payload) = &result {
            site.local.note_panic("a called closure", &**payload);
        }
        answer.send(result.map_err(|payload| CallError::Panicked(Panic::new(payload))));
    }
}

/// Drops the `V` in a room for an `R`. The block is freed first, so that it is also when the drop panics.
///
/// # Safety
/// The slot was made with room for an `R`, which has a `V` at its start, and holds one. It holds nothing
/// afterwards.
unsafe fn drop_as<C: 'static, R, V>(slot: &mut Slot<'_, C>) {
    // SAFETY: the caller's promise: the value is moved out, then its block is freed.
    let value = unsafe {
        let value = slot.room::<R>().cast::<V>().read();
        slot.free_block();
        value
    };
    drop(value);
}

impl Words {
    fn first_two(&mut self) -> &mut [MaybeUninit<usize>; 2] {
        let (first, _) = self.0.split_first_chunk_mut().expect("five words are two and three");
        first
    }

    /// Moves out what came of a call, and frees what it lay in.
    ///
    /// # Safety
    /// It came of a call whose closure returned a `T` (or whose answer was one), in this way, and is opened
    /// once.
    #[inline]
    pub(super) unsafe fn open<T>(&mut self, came: Came) -> Result<T, CallError> {
        match came {
            // SAFETY: the caller's promise.
            Came::Inline => Ok(unsafe { self.take() }),
            // SAFETY: a boxed value is at the start of the block, which then is freed; opened once.
            Came::Boxed => unsafe {
                let description = self.0.as_mut_ptr().add(BLOCK);
                let value = description.cast::<*mut T>().read().read();
                free_block(description);
                Ok(value)
            },
            Came::Panicked => {
                // SAFETY: a panicked call left its payload in the first two words; opened once.
                let payload = unsafe { self.0.as_mut_ptr().cast::<Box<dyn Any + Send>>().read() };
                Err(CallError::Panicked(Panic::new(payload)))
            }
            Came::Stopped => Err(CallError::Stopped),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::batch::Batch;
    use super::super::test_kit::Shard;
    use super::*;

    #[test]
    fn small_calls_share_a_cache_line_and_envelopes_are_small() {
        let mut slots = Slots::<Shard>::new();
        let (one, two, six) = (1_u64, [1_u64; 2], [1_u64; 6]);
        slots.push_call(CallKey::NONE, move |_| one);
        slots.push_call(CallKey::NONE, move |_| two);
        assert_eq!(slots.units(), 2);
        slots.push_call(CallKey::NONE, |_| [0_u64; 5]);
        slots.push_post(move |_| assert_eq!(six.len(), 6));
        assert_eq!(slots.units(), 6);
        assert_eq!((size_of::<Unit>(), size_of::<Batch<Shard>>()), (32, 64));
    }

    #[test]
    fn keys_of_all_sizes_survive_in_a_slot() {
        let mut slots = Slots::<Shard>::new();
        let key = |index| CallKey { index, generation: index ^ u32::MAX };
        let keys = [0, 1, 0xffff, 0x1_0000, 0xfe_dcba, CALLS_MAX - 1].map(key);
        for key in keys {
            slots.push_unanswered(key);
        }
        for key in keys {
            assert_eq!(slots.next().unwrap().key(), key);
        }
        assert!(slots.are_done() && slots.next().is_none());
        slots.clear();
    }

    #[test]
    fn messages_may_go_to_shards_that_may_not() {
        fn is_send<T: Send>() {}
        // A context that is neither `Send` nor `Sync`: it stays where it is.
        is_send::<Batch<Rc<()>>>();
    }
}
