//! A run queue of tasks that are polled and dropped in one place, their home, while their wakers roam.
//! Does not know what a shard is: wakes from elsewhere leave through [`Remote`] and come back by
//! [`Executor::accept`].
//!
//! "At home" is the scope of [`Executor::enter`], not a thread: a simulation runs many executors on one
//! thread. Memory safety, however, rests on threads: an executor is `!Send`, and only an executor polls
//! its tasks or drops their futures.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::mem::{self, ManuallyDrop};
use std::panic::{self, AssertUnwindSafe};
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use async_task::{Builder, Runnable, ScheduleInfo, WithInfo};

use super::join::{JoinHandle, message_of};
use super::link::Link;
use super::task::{Parked, TaskFuture};
use crate::reactor::registry::Registry;
use crate::reactor::token::Token;

/// The tasks of one home: spawned, polled and dropped here, woken from anywhere. A cheap handle, `!Send`.
///
/// Dropping the last handle closes the executor, but a task that owns a handle keeps it alive: call
/// [`Executor::close`].
#[derive(Clone)]
pub(crate) struct Executor {
    owner: Rc<Owner>,
}

/// How a task that was woken elsewhere finds its way home.
pub(crate) trait Remote: Send + Sync {
    /// Takes the task to its home, where [`Executor::accept`] puts it on the run queue. Called on any thread.
    ///
    /// When the home has closed, the implementation drops the task (or calls [`RemoteTask::forget`]).
    fn send_home(&self, task: RemoteTask);
}

/// A woken task on its way home. May be dropped anywhere: its future is still dropped at home alone.
pub(crate) struct RemoteTask {
    /// Taken when accepted or dropped, never before.
    runnable: ManuallyDrop<TaskRunnable>,
}

/// While it lives, its executor is the current one of this thread.
#[must_use = "the executor is current only while this lives"]
pub(crate) struct Entered {
    /// `None` if the executor was the current one already, and stays it.
    previous: Option<Option<Rc<Home>>>,
}

impl Executor {
    pub(crate) fn new(remote: Arc<dyn Remote>) -> Self {
        let shared = Arc::new(Shared { remote, strays: Mutex::new(Strays::Kept(Vec::new())) });
        let home = Rc::new(Home {
            shared,
            phase: Cell::new(Phase::Open),
            ready: RefCell::new(VecDeque::new()),
            yielded: RefCell::new(VecDeque::new()),
            cancelled: RefCell::new(Vec::new()),
            parked: RefCell::new(Registry::new()),
            live: Cell::new(0),
            polled: Cell::new(NO_TASK),
            drops_on_stack: Cell::new(0),
            catch: Cell::new(Catch::Off),
            caught: Cell::new(None),
            panics: Cell::new(0),
            panic_hook: RefCell::new(None),
        });
        Executor { owner: Rc::new(Owner { home }) }
    }

    /// Makes this executor the current one of this thread until the guard is dropped. Scopes may be nested.
    pub(crate) fn enter(&self) -> Entered {
        self.home().enter()
    }

    /// Puts a new task on the run queue. After [`Executor::close`] the future is dropped here and the handle
    /// says so.
    pub(crate) fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
    {
        let home = self.home();
        let link = Rc::new(Link::new(Rc::clone(home)));
        let handle = JoinHandle::new(Rc::clone(&link));
        if home.phase.get() != Phase::Open {
            home.contain(|| drop(future));
            link.refuse();
            return handle;
        }
        let future = TaskFuture::new(link, future);
        let builder = Builder::new().metadata(SharedRef::new(&home.shared));
        // SAFETY: the schedule function is a function item: `Send`, `Sync` and `'static`; so is `F`, but for
        // `Send`. What is left is that a `Runnable` is used and dropped on this thread alone. A `Runnable`
        // exists in four places only:
        // - in `ready`, `yielded` or `caught` of `Home`, which is `!Send` and whose executor polls and drops
        //   there; `route` puts it there only if this home is the current one of the thread, and the
        //   current one is set by `Home::enter` on the home's own thread;
        // - in a `RemoteTask`, which does nothing but carry it until `accept` has checked that it came home;
        // - in `strays`, where it is not touched until `close` drops it at home;
        // - in the hands of `RemoteTask::drop` after `close`: dropped on any thread, but then `TaskFuture` has
        //   nothing left of `F` (see `Home::close_if_asked`; the mutex around `strays` orders the two).
        // The output is `()`.
        let (runnable, task) = unsafe { builder.spawn_unchecked(move |_| future, WithInfo(route)) };
        // Now, while nobody else has seen the task, this costs least. From here on its `Runnable` owns it, and
        // what is parked a waker: see `Parked`.
        task.detach();
        home.live.set(home.live.get() + 1);
        home.ready.borrow_mut().push_back(runnable);
        handle
    }

    /// Polls ready tasks, at most `budget_tasks` of them, and asks `stop` every few polls whether to go on.
    /// True if there is more to do.
    ///
    /// A task woken by another one on the way is polled in the same run. One that was woken while it was being
    /// polled, as by [`yield_now`], waits for the next run: it cannot keep the loop from its I/O. Called from
    /// within a poll, this does nothing.
    pub(crate) fn run(&self, budget_tasks: usize, mut stop: impl FnMut() -> bool) -> bool {
        let home = self.home();
        if home.is_on_stack() {
            return self.has_ready();
        }
        let _entered = home.enter();
        // What was cancelled before its first poll is in the queue, and finds out by itself.
        home.drop_cancelled();
        {
            let mut ready = home.ready.borrow_mut();
            let mut yielded = home.yielded.borrow_mut();
            ready.append(&mut yielded);
        }
        for polled in 1..=budget_tasks {
            let Some(runnable) = home.pop_ready() else { break };
            // Does not unwind: `TaskFuture` contains the panics of what it holds.
            runnable.run();
            if polled % POLLS_PER_STOP_CHECK == 0 && stop() {
                break;
            }
        }
        self.has_ready()
    }

    /// Puts a task on the run queue that [`Remote::send_home`] has delivered.
    ///
    /// # Panics
    /// Panics if the task belongs to another executor.
    pub(crate) fn accept(&self, task: RemoteTask) {
        let home = self.home();
        assert!(home.owns(&task.runnable), "a task was delivered to a home that is not its own");
        let runnable = task.into_runnable();
        if home.phase.get() == Phase::Closed {
            // Its future is gone already; this frees what was left of the task.
            drop(runnable);
        } else {
            home.ready.borrow_mut().push_back(runnable);
        }
    }

    /// Whether [`Executor::run`] would find something to do.
    pub(crate) fn has_ready(&self) -> bool {
        let home = self.home();
        !home.ready.borrow().is_empty()
            || !home.yielded.borrow().is_empty()
            || !home.cancelled.borrow().is_empty()
    }

    /// Runs `wake`, and if that made a task of this executor runnable, polls it right away. True if it did.
    ///
    /// Only the first such task is polled, and none at all from within a poll: the rest is queued as ever, as
    /// is a task that was queued before. Meant for the reader of a connection while its bytes are on loan.
    pub(crate) fn run_woken(&self, wake: impl FnOnce()) -> bool {
        let home = self.home();
        let _entered = home.enter();
        if home.is_on_stack() || home.catch.get() != Catch::Off {
            wake();
            return false;
        }
        let catching = Catching::start(home);
        wake();
        let Some(runnable) = catching.stop() else { return false };
        // As in `run`.
        runnable.run();
        true
    }

    /// Tasks that have not finished.
    pub(crate) fn live(&self) -> usize {
        self.home().live.get()
    }

    /// Panics that tasks have thrown: from polling or dropping their futures, or dropping unwanted results.
    #[cfg(test)]
    pub(crate) fn panics(&self) -> u64 {
        self.home().panics.get()
    }

    /// Calls `hook` with the text of each panic from now on, instead of logging it.
    pub(crate) fn set_panic_hook(&self, hook: impl Fn(&str) + 'static) {
        let before = self.home().panic_hook.borrow_mut().replace(Rc::new(hook));
        drop(before);
    }

    /// Drops every live future, here and now, asleep or ready, wherever its wakers are. For ever after, wakes
    /// do nothing and [`Executor::spawn`] refuses.
    ///
    /// Called from within a poll, the future being polled is dropped when that poll returns. Called from the
    /// destructor of a cancelled future, the executor closes when that destructor returns.
    pub(crate) fn close(&self) {
        self.home().close();
    }

    fn home(&self) -> &Rc<Home> {
        &self.owner.home
    }
}

/// Lets every other ready task and a turn of I/O go first.
///
/// # Cancel safety
/// Cancel safe: nothing is lost.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl RemoteTask {
    /// Lets go of a task whose home has closed. Its future has been, or will be, dropped at home.
    #[cfg(test)]
    pub(crate) fn forget(self) {
        drop(self);
    }

    fn into_runnable(self) -> TaskRunnable {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is never dropped, so nobody else takes the runnable.
        unsafe { ManuallyDrop::take(&mut this.runnable) }
    }
}

impl Drop for RemoteTask {
    /// Never drops a future: either this is the empty shell of a task of a closed executor, or the executor
    /// drops it when it closes.
    fn drop(&mut self) {
        // SAFETY: this runs once, and `into_runnable`, the only other taker, prevents it.
        let runnable = unsafe { ManuallyDrop::take(&mut self.runnable) };
        let shared = shared_of(&runnable);
        let mut strays = shared.strays.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *strays {
            Strays::Kept(kept) => kept.push(runnable),
            Strays::Empty => {
                drop(strays);
                drop(runnable);
            }
        }
    }
}

impl Drop for Entered {
    #[inline]
    fn drop(&mut self) {
        if let Some(previous) = self.previous.take() {
            drop(set_current(previous));
        }
    }
}

/// Closes the executor with the last handle to it.
struct Owner {
    home: Rc<Home>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.home.close();
    }
}

/// What tasks and handles share with their executor.
pub(super) struct Home {
    shared: Arc<Shared>,
    phase: Cell<Phase>,
    ready: RefCell<VecDeque<TaskRunnable>>,
    /// Woken while being polled: ready in the next run.
    yielded: RefCell<VecDeque<TaskRunnable>>,
    /// To be dropped at the beginning of the next run.
    cancelled: RefCell<Vec<Token>>,
    /// The live tasks that have been polled. The others are in the queue, which owns them.
    parked: RefCell<Registry<Parked>>,
    live: Cell<usize>,
    /// The task being polled, `UNPARKED` if it is its first poll, or `NO_TASK`. There is never more than one.
    polled: Cell<Token>,
    /// Futures being dropped in place. Meanwhile no `Runnable` is run or dropped: it might drop the same
    /// future.
    drops_on_stack: Cell<u32>,
    catch: Cell<Catch>,
    caught: Cell<Option<TaskRunnable>>,
    panics: Cell<u64>,
    panic_hook: RefCell<Option<PanicHook>>,
}

/// What of an executor its tasks' wakers reach from other threads.
pub(super) struct Shared {
    remote: Arc<dyn Remote>,
    strays: Mutex<Strays>,
}

/// Woken tasks that could not be taken home.
enum Strays {
    Kept(Vec<TaskRunnable>),
    /// The executor has closed: no future is left in any of its tasks.
    Empty,
}

/// The metadata of a task: a pointer that counts nothing, since most tasks never leave home.
///
/// Valid for as long as the task may be scheduled: a live task's [`Link`] keeps its home and that the `Shared`,
/// and what is left of a task that was dropped in place keeps it itself (`Stage::Gone`). A task that has
/// returned, or that async-task has dropped, is never scheduled again.
pub(super) struct SharedRef(NonNull<Shared>);

// SAFETY: it gives access to a `Shared` only, which is `Sync`, and may become the `Arc` of it, so `Send` as well.
unsafe impl Send for SharedRef where Shared: Send + Sync {}
// SAFETY: as above.
unsafe impl Sync for SharedRef where Shared: Send + Sync {}

impl SharedRef {
    #[inline]
    fn new(shared: &Arc<Shared>) -> Self {
        SharedRef(NonNull::new(Arc::as_ptr(shared).cast_mut()).expect("an `Arc` points somewhere"))
    }
}

type TaskRunnable = Runnable<SharedRef>;
type PanicHook = Rc<dyn Fn(&str)>;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Open,
    /// [`Executor::close`] was called from within a destructor that must return first.
    ToBeClosed,
    Closing,
    Closed,
}

/// Whether the next woken task is caught for [`Executor::run_woken`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Catch {
    Off,
    Next,
    Done,
}

impl Home {
    #[inline]
    fn enter(self: &Rc<Self>) -> Entered {
        let is_current = ptr::eq(CURRENT.get(), Rc::as_ptr(self));
        Entered { previous: (!is_current).then(|| set_current(Some(Rc::clone(self)))) }
    }

    #[inline]
    fn owns(&self, runnable: &TaskRunnable) -> bool {
        ptr::eq(Arc::as_ptr(&self.shared), runnable.metadata().0.as_ptr())
    }

    /// Whether application code of a task is running further down the stack.
    #[inline]
    fn is_on_stack(&self) -> bool {
        self.polled.get() != NO_TASK || self.drops_on_stack.get() > 0
    }

    #[inline]
    fn pop_ready(&self) -> Option<TaskRunnable> {
        self.ready.borrow_mut().pop_front()
    }

    fn pop_any(&self) -> Option<TaskRunnable> {
        self.pop_ready().or_else(|| self.yielded.borrow_mut().pop_front())
    }

    /// A task has become ready, here at home. Gives it back if nobody will ever poll it.
    #[inline]
    fn enqueue(&self, runnable: TaskRunnable, info: ScheduleInfo) -> Option<TaskRunnable> {
        if self.phase.get() == Phase::Closed {
            return Some(runnable);
        }
        if info.woken_while_running {
            self.yielded.borrow_mut().push_back(runnable);
        } else if self.catch.get() == Catch::Next {
            self.catch.set(Catch::Done);
            // Forgets nothing: what was caught before has been taken.
            mem::forget(self.caught.replace(Some(runnable)));
        } else {
            self.ready.borrow_mut().push_back(runnable);
        }
        None
    }

    /// A task is about to be polled.
    #[inline]
    pub(super) fn begin_poll(&self, token: Token) {
        self.polled.set(token);
    }

    #[inline]
    pub(super) fn end_poll(&self) {
        self.polled.set(NO_TASK);
    }

    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.phase.get() == Phase::Open
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// A task's future has been polled for the first time, and rests there between polls.
    pub(super) fn park(&self, parked: Parked) -> Token {
        self.parked.borrow_mut().insert(parked)
    }

    /// A task has dropped its future.
    #[inline]
    pub(super) fn note_finished(&self, token: Token) {
        self.live.set(self.live.get() - 1);
        if token != UNPARKED {
            self.unpark(token);
        }
    }

    fn unpark(&self, token: Token) {
        let parked = self.parked.borrow_mut().remove(token);
        drop(parked);
    }

    /// Has a parked task's future dropped: at the beginning of the next run, or in place of its next poll.
    pub(super) fn cancel(&self, token: Token) {
        self.cancelled.borrow_mut().push(token);
    }

    fn drop_cancelled(self: &Rc<Self>) {
        loop {
            let Some(token) = self.cancelled.borrow_mut().pop() else { break };
            self.drop_parked(token);
        }
    }

    fn close(self: &Rc<Self>) {
        if self.phase.get() == Phase::Open {
            self.phase.set(Phase::ToBeClosed);
            self.close_if_asked();
        }
    }

    fn close_if_asked(self: &Rc<Self>) {
        if self.phase.get() != Phase::ToBeClosed || self.drops_on_stack.get() > 0 {
            return;
        }
        self.phase.set(Phase::Closing);
        let _entered = self.enter();
        // No task is made any more, so one pass finds them all: the sleeping here, and those never polled,
        // which nothing but the queue can hold, below. What is being polled clears itself afterwards.
        let tokens = self.parked.borrow().tokens();
        for token in tokens {
            self.drop_parked(token);
        }
        // The futures dropped above may have woken others: those are shells by now.
        while let Some(runnable) = self.caught.take().or_else(|| self.pop_any()) {
            drop(runnable);
        }
        self.cancelled.borrow_mut().clear();
        self.phase.set(Phase::Closed);
        let strays = {
            let mut strays = self.shared.strays.lock().unwrap_or_else(PoisonError::into_inner);
            mem::replace(&mut *strays, Strays::Empty)
        };
        drop(strays);
    }

    /// Drops the task's future if it is at rest.
    fn drop_parked(self: &Rc<Self>, token: Token) {
        if self.polled.get() == token {
            return;
        }
        let Some(mut parked) = self.parked.borrow_mut().remove(token) else { return };
        self.drops_on_stack.set(self.drops_on_stack.get() + 1);
        // SAFETY: the task is live and not being polled. It is not polled or dropped before this returns:
        // that takes a `Runnable`, and none is touched while `drops_on_stack` says so. It is not freed
        // either: `parked` owns a waker of it until below. Nobody drops it in place a second time, since it is
        // no longer in the table. This is its home's thread, since `Home` is `!Send`.
        unsafe { parked.drop_future() };
        self.drops_on_stack.set(self.drops_on_stack.get() - 1);
        // If that was the last waker, what is left of the task comes back through `route`, to be freed.
        drop(parked);
        self.close_if_asked();
    }

    /// Runs application code that may panic; a panic is counted and goes no further.
    #[inline]
    pub(super) fn contain(&self, code: impl FnOnce()) {
        if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(code)) {
            self.note_panic(&*payload);
            drop_payload(payload);
        }
    }

    /// Counts and reports a panic.
    #[cold]
    pub(super) fn note_panic(&self, payload: &(dyn Any + Send)) {
        self.panics.set(self.panics.get() + 1);
        let hook = self.panic_hook.borrow().clone();
        let report = || match hook {
            Some(hook) => hook(message_of(payload)),
            None => tracing::error!(panic = message_of(payload), "a task panicked"),
        };
        if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(report)) {
            drop_payload(payload);
        }
    }
}

/// Drops what a panic carried. Its destructor may panic again, and what that carries too: given up after a few.
#[cold]
pub(super) fn drop_payload(mut payload: Box<dyn Any + Send>) {
    for _ in 0..8 {
        match panic::catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            Ok(()) => return,
            Err(next) => payload = next,
        }
    }
    mem::forget(payload);
}

/// Catches the next task to become ready; what is caught is queued if `wake` panics.
struct Catching<'home> {
    home: &'home Home,
}

impl<'home> Catching<'home> {
    fn start(home: &'home Home) -> Self {
        home.catch.set(Catch::Next);
        Catching { home }
    }

    fn stop(self) -> Option<TaskRunnable> {
        let home = self.home;
        mem::forget(self);
        home.catch.set(Catch::Off);
        home.caught.take()
    }
}

impl Drop for Catching<'_> {
    fn drop(&mut self) {
        self.home.catch.set(Catch::Off);
        if let Some(runnable) = self.home.caught.take() {
            self.home.ready.borrow_mut().push_back(runnable);
        }
    }
}

/// The schedule function of all tasks: into the queue at home, through [`Remote`] anywhere else.
fn route(runnable: TaskRunnable, info: ScheduleInfo) {
    // SAFETY: `CURRENT` is null or owns a count of its home, and is not changed before the last use of `home`:
    // `enqueue` runs nobody's code.
    let home = unsafe { CURRENT.get().as_ref() };
    if let Some(home) = home
        && home.owns(&runnable)
    {
        // Given back when the home has closed: nothing is left in the task.
        let shell = home.enqueue(runnable, info);
        drop(shell);
    } else {
        route_abroad(runnable);
    }
}

#[cold]
fn route_abroad(runnable: TaskRunnable) {
    // An own reference: once sent, the task may finish and be freed before `send_home` returns.
    let shared = shared_of(&runnable);
    shared.remote.send_home(RemoteTask { runnable: ManuallyDrop::new(runnable) });
}

/// A count of its own, for those abroad.
fn shared_of(runnable: &TaskRunnable) -> Arc<Shared> {
    let shared = runnable.metadata().0.as_ptr();
    // SAFETY: the pointer is that of an `Arc`. Somebody holds a count while the `Runnable` exists: it owns a
    // task that can be scheduled, or was just now (see `SharedRef`).
    unsafe {
        Arc::increment_strong_count(shared);
        Arc::from_raw(shared)
    }
}

fn set_current(home: Option<Rc<Home>>) -> Option<Rc<Home>> {
    let home = home.map_or(ptr::null(), Rc::into_raw);
    let previous = CURRENT.replace(home);
    // SAFETY: what is not null in `CURRENT` came from `Rc::into_raw` above, on this thread, and each is taken
    // out once.
    (!previous.is_null()).then(|| unsafe { Rc::from_raw(previous) })
}

thread_local! {
    /// Null, or an `Rc` turned raw, which this owns. Has no destructor, so that wakes find it even while the
    /// thread's other locals are being destroyed, and so that looking costs two instructions.
    static CURRENT: Cell<*const Home> = const { Cell::new(ptr::null()) };
}

/// Names no task, ever.
const NO_TASK: Token = Token::NOBODY;
/// Stands for a task that is not parked, in place of its token.
pub(super) const UNPARKED: Token = Token::from_bits(NO_TASK.to_bits() - 1);

const POLLS_PER_STOP_CHECK: usize = 8;
