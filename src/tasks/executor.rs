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
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use async_task::{Builder, Runnable, ScheduleInfo, Task, WithInfo};

use super::join::{JoinHandle, PanicPayload, message_of};
use super::output::Output;
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
            tasks: RefCell::new(Registry::new()),
            live: Cell::new(0),
            polled: Cell::new(NO_TASK),
            condemned: Cell::new(0),
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
        if home.phase.get() != Phase::Open {
            home.contain(|| drop(future));
            return JoinHandle::new(Rc::clone(home), NO_TASK);
        }
        let token = home.tasks.borrow_mut().insert(Entry::Finished(Outcome::Cancelled));
        let future = TaskFuture::new(Rc::clone(home), token, future);
        let builder = Builder::new().metadata(Arc::clone(&home.shared));
        // SAFETY: the schedule function is a function item: `Send`, `Sync` and `'static`; so is `F`, but for
        // `Send`. What is left is that a `Runnable` is used and dropped on this thread alone. A `Runnable`
        // exists in four places only:
        // - in `ready`, `yielded` or `caught` of `Home`, which is `!Send` and whose executor polls and drops
        //   there; `route` puts it there only if this home is the current one of the thread, and the
        //   current one is set by `Home::enter` on the home's own thread;
        // - in a `RemoteTask`, which does nothing but carry it until `accept` has checked that it came home;
        // - in `strays`, where it is not touched until `close` drops it at home;
        // - in the hands of `RemoteTask::drop` after `close`: dropped on any thread, but then `TaskFuture` is
        //   finished and has nothing left of `F` (see `Home::close_if_asked`; the mutex around `strays`
        //   orders the two).
        // The output is `()`.
        let (runnable, task) = unsafe { builder.spawn_unchecked(move |_| future, WithInfo(route)) };
        let live =
            Entry::Live(LiveTask { task, place: Place::Queued, joiner: None, flags: LiveFlags::default() });
        if let Some(entry) = home.tasks.borrow_mut().get_mut(token) {
            *entry = live;
        }
        home.live.set(home.live.get() + 1);
        home.ready.borrow_mut().push_back(runnable);
        JoinHandle::new(Rc::clone(home), token)
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
            if ready.is_empty() {
                mem::swap(&mut *ready, &mut *yielded);
            } else {
                ready.append(&mut yielded);
            }
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
        let shared = Arc::clone(runnable.metadata());
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
    /// The live tasks, and the results nobody has taken yet.
    tasks: RefCell<Registry<Entry>>,
    live: Cell<usize>,
    /// The task being polled, or `NO_TASK`. There is never more than one.
    polled: Cell<Token>,
    /// Futures being dropped in place. Meanwhile no `Runnable` is run or dropped: it might drop the same
    /// future.
    drops_on_stack: Cell<u32>,
    /// Live tasks that were cancelled, and one more when the executor closes. While it is not 0, each task is
    /// looked at before and after its poll.
    condemned: Cell<usize>,
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

pub(super) type Metadata = Arc<Shared>;
type TaskRunnable = Runnable<Metadata>;
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

/// A task, as its home sees it.
enum Entry {
    Live(LiveTask),
    /// Kept for the `JoinHandle`, which exists: a detached task leaves nothing.
    Finished(Outcome),
}

struct LiveTask {
    /// Keeps async-task's memory, and so a parked future, where it is.
    task: Task<(), Metadata>,
    place: Place,
    joiner: Option<Waker>,
    flags: LiveFlags,
}

#[derive(Clone, Copy, Default)]
struct LiveFlags {
    is_detached: bool,
    is_cancelled: bool,
}

/// Where a live task's future is.
enum Place {
    /// Not parked yet: its `Runnable` is in the queue and owns it, or it is being polled for the first time.
    Queued,
    /// Where it stays until it is dropped.
    Parked(Parked),
    /// Being dropped in place.
    Dropping,
}

/// What has become of a task.
pub(super) enum Outcome {
    Returned(Output),
    Panicked(PanicPayload),
    Cancelled,
}

/// What [`Home::join`] finds.
pub(super) enum Joined {
    /// The waker is kept.
    NotYet,
    Ended(Outcome),
}

impl Home {
    fn enter(self: &Rc<Self>) -> Entered {
        let is_current = CURRENT
            .with(|current| current.borrow().as_ref().is_some_and(|current| Rc::ptr_eq(current, self)));
        Entered { previous: (!is_current).then(|| set_current(Some(Rc::clone(self)))) }
    }

    #[inline]
    fn owns(&self, runnable: &TaskRunnable) -> bool {
        Arc::ptr_eq(&self.shared, runnable.metadata())
    }

    /// Whether application code of a task is running further down the stack.
    fn is_on_stack(&self) -> bool {
        self.polled.get() != NO_TASK || self.drops_on_stack.get() > 0
    }

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
            self.caught.set(Some(runnable));
        } else {
            self.ready.borrow_mut().push_back(runnable);
        }
        None
    }

    /// The task is about to be polled.
    #[inline]
    pub(super) fn begin_poll(&self, token: Token) {
        self.polled.set(token);
    }

    #[inline]
    pub(super) fn end_poll(&self) {
        self.polled.set(NO_TASK);
    }

    /// Whether the task's future is to be dropped instead of polled (again).
    #[inline]
    pub(super) fn is_condemned(&self, token: Token) -> bool {
        self.condemned.get() > 0 && (self.phase.get() != Phase::Open || self.is_cancelled(token))
    }

    #[cold]
    fn is_cancelled(&self, token: Token) -> bool {
        matches!(self.tasks.borrow().get(token), Some(Entry::Live(live)) if live.flags.is_cancelled)
    }

    /// The task's future has been polled for the first time, and rests at `parked` between polls.
    #[inline]
    pub(super) fn park(&self, token: Token, parked: Parked) {
        if let Some(Entry::Live(live)) = self.tasks.borrow_mut().get_mut(token) {
            live.place = Place::Parked(parked);
        }
    }

    /// The task has dropped its future.
    #[inline]
    pub(super) fn finish(&self, token: Token, outcome: Outcome) {
        let (live, unwanted) = {
            let mut tasks = self.tasks.borrow_mut();
            let entry = tasks.get_mut(token).expect("a task finishes once");
            let is_detached = matches!(entry, Entry::Live(live) if live.flags.is_detached);
            let (entry, unwanted) = if is_detached {
                (tasks.remove(token).expect("found above"), Some(outcome))
            } else {
                (mem::replace(entry, Entry::Finished(outcome)), None)
            };
            let Entry::Live(live) = entry else { unreachable!("a task finishes once") };
            (live, unwanted)
        };
        self.live.set(self.live.get() - 1);
        if live.flags.is_cancelled {
            self.condemned.set(self.condemned.get() - 1);
        }
        // Dropping the handle instead would cancel and thereby schedule the task.
        live.task.detach();
        if let Some(joiner) = live.joiner {
            self.contain(|| joiner.wake());
        }
        if let Some(Outcome::Returned(output)) = unwanted {
            self.contain(|| drop(output));
        }
    }

    /// Takes what has become of a task, or has `waker` woken when it is known.
    #[inline]
    pub(super) fn join(&self, token: Token, waker: &Waker) -> Joined {
        {
            let mut tasks = self.tasks.borrow_mut();
            match tasks.get(token) {
                None => return Joined::Ended(Outcome::Cancelled),
                Some(Entry::Finished(_)) => {
                    let Some(Entry::Finished(outcome)) = tasks.remove(token) else {
                        unreachable!("found above")
                    };
                    return Joined::Ended(outcome);
                }
                Some(Entry::Live(live)) => {
                    if live.joiner.as_ref().is_some_and(|joiner| joiner.will_wake(waker)) {
                        return Joined::NotYet;
                    }
                }
            }
        }
        // Cloning and dropping a waker may run anybody's code: neither under a borrow, and looked up again.
        let joiner = waker.clone();
        let unused = match self.tasks.borrow_mut().get_mut(token) {
            Some(Entry::Live(live)) => live.joiner.replace(joiner),
            _ => Some(joiner),
        };
        // The task may have finished during the clone: then poll again.
        if let Some(unused) = unused
            && !self.is_live(token)
        {
            unused.wake();
        }
        Joined::NotYet
    }

    pub(super) fn is_live(&self, token: Token) -> bool {
        matches!(self.tasks.borrow().get(token), Some(Entry::Live(_)))
    }

    /// Nobody waits for the task's result any more.
    pub(super) fn detach(&self, token: Token) {
        let joiner;
        let finished;
        {
            let mut tasks = self.tasks.borrow_mut();
            (joiner, finished) = match tasks.get_mut(token) {
                Some(Entry::Live(live)) => {
                    live.flags.is_detached = true;
                    (live.joiner.take(), None)
                }
                Some(Entry::Finished(_)) => (None, tasks.remove(token)),
                None => (None, None),
            };
        }
        drop(joiner);
        drop(finished);
    }

    /// Has the task's future dropped: at the beginning of the next run, in place of its next poll, or at the
    /// end of the present one.
    pub(super) fn cancel(&self, token: Token) {
        if let Some(Entry::Live(live)) = self.tasks.borrow_mut().get_mut(token)
            && !mem::replace(&mut live.flags.is_cancelled, true)
        {
            self.cancelled.borrow_mut().push(token);
            self.condemned.set(self.condemned.get() + 1);
        }
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
            self.condemned.set(self.condemned.get() + 1);
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
        let tokens = self.tasks.borrow().tokens();
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
        if token == self.polled.get() {
            return;
        }
        let place = match self.tasks.borrow_mut().get_mut(token) {
            Some(Entry::Live(live)) if matches!(live.place, Place::Parked(_)) => {
                mem::replace(&mut live.place, Place::Dropping)
            }
            _ => return,
        };
        if let Place::Parked(parked) = place {
            self.drops_on_stack.set(self.drops_on_stack.get() + 1);
            // SAFETY: the task is live and not being polled. It is not polled or dropped before this returns:
            // that takes a `Runnable`, and none is touched while `drops_on_stack` says so. It is not freed
            // either: its entry owns a `Task`, released by `finish`, which drops no future any more.
            // Nobody drops it in place a second time, since the place says so. This is its home's thread, since
            // `Home` is `!Send`.
            unsafe { parked.drop_future() };
            self.drops_on_stack.set(self.drops_on_stack.get() - 1);
            self.close_if_asked();
        }
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
        self.home.caught.take()
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
    let not_queued = CURRENT.with(|current| match &**current.borrow() {
        Some(home) if home.owns(&runnable) => home.enqueue(runnable, info).map(Stopped::AtHome),
        _ => Some(Stopped::Abroad(runnable)),
    });
    match not_queued {
        None => {}
        // The home has closed, and nothing is left in the task.
        Some(Stopped::AtHome(shell)) => drop(shell),
        Some(Stopped::Abroad(runnable)) => {
            // An own reference: once sent, the task may finish and be freed before `send_home` returns.
            let shared = Arc::clone(runnable.metadata());
            shared.remote.send_home(RemoteTask { runnable: ManuallyDrop::new(runnable) });
        }
    }
}

enum Stopped {
    AtHome(TaskRunnable),
    Abroad(TaskRunnable),
}

fn set_current(home: Option<Rc<Home>>) -> Option<Rc<Home>> {
    CURRENT.with(|current| mem::replace(&mut **current.borrow_mut(), home))
}

thread_local! {
    /// Never dropped, so that wakes find it even while the thread's other locals are being destroyed.
    static CURRENT: RefCell<ManuallyDrop<Option<Rc<Home>>>> =
        const { RefCell::new(ManuallyDrop::new(None)) };
}

/// Names no task, ever.
pub(super) const NO_TASK: Token = Token::from_bits(u64::MAX);

const POLLS_PER_STOP_CHECK: usize = 8;
