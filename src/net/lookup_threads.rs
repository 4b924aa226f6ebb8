//! A few threads for lookups that block: started when there is work, ended when there is none, bounded in number and in
//! what may wait. Knows neither names nor whom the answers are for.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::log_contained;
use crate::sys::linux::CpuMask;

/// What a thread does.
pub(crate) trait Job: Send + 'static {
    /// Whether anybody still waits for it. What nobody wants does not run, and takes no room in the queue.
    fn is_wanted(&self) -> bool;

    fn run(self: Box<Self>);
}

/// The limits of the threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) threads_max: usize,
    pub(crate) queue_max: usize,
    pub(crate) idle: Duration,
}

/// Why a job was not taken.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// So many wait already.
    Full(usize),
    /// There is no thread, and none can be started.
    NoThread(io::Error),
}

/// Threads that run jobs. Dropping this forgets what waits, and ends the threads; one that is in the middle of a job ends
/// after it. Nobody waits for them: what blocks them may do so for long.
pub(crate) struct LookupThreads {
    pool: Arc<Pool>,
}

struct Pool {
    limits: Limits,
    /// Where threads may run: wherever the process might when this was made. A thread inherits the CPU of a shard that
    /// starts it, and would take that shard's time.
    cpus: Option<CpuMask>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    queue: VecDeque<Box<dyn Job>>,
    threads: usize,
    /// Threads that were started, and have not looked for work yet.
    starting: usize,
    /// Threads that wait for work, and have not been called for any yet.
    idle: usize,
    /// Names the threads.
    started: u64,
    closed: bool,
}

impl LookupThreads {
    pub(crate) fn new(limits: Limits) -> Self {
        let state =
            State { queue: VecDeque::new(), threads: 0, starting: 0, idle: 0, started: 0, closed: false };
        // Without a mask they run where they were started.
        let cpus = CpuMask::of_this_thread().ok();
        let pool = Pool { limits, cpus, state: Mutex::new(state), changed: Condvar::new() };
        LookupThreads { pool: Arc::new(pool) }
    }

    /// Has `job` run by a thread, in the order of these calls. Never blocks.
    ///
    /// # Errors
    /// [`Refusal`]; the job is dropped.
    pub(crate) fn submit(&self, job: Box<dyn Job>) -> Result<(), Refusal> {
        let mut state = self.pool.lock();
        let mut unwanted = VecDeque::new();
        let queue_max = self.pool.limits.queue_max + state.free(&self.pool.limits);
        if state.queue.len() >= queue_max {
            let (wanted, gone) = state.queue.drain(..).partition(|job| job.is_wanted());
            state.queue = wanted;
            unwanted = gone;
            if state.queue.len() >= queue_max {
                let waiting = state.queue.len();
                drop(state);
                return Err(Refusal::Full(waiting));
            }
        }
        let coming = state.idle + state.starting;
        let needs_thread = coming <= state.queue.len() && state.threads < self.pool.limits.threads_max;
        if needs_thread && let Err(error) = self.start_thread(&mut state)
            // Others will come to it.
            && state.threads == 0
        {
            drop(state);
            return Err(Refusal::NoThread(error));
        }
        state.queue.push_back(job);
        drop(state);
        self.pool.changed.notify_one();
        drop(unwanted);
        Ok(())
    }

    fn start_thread(&self, state: &mut State) -> io::Result<()> {
        let pool = Arc::clone(&self.pool);
        let name = format!("resolver-{}", state.started);
        std::thread::Builder::new().name(name).spawn(move || pool.work())?;
        state.started += 1;
        state.threads += 1;
        state.starting += 1;
        Ok(())
    }
}

impl State {
    /// Threads that will take a job at once: what is queued for them does not wait.
    fn free(&self, limits: &Limits) -> usize {
        self.idle + self.starting + limits.threads_max.saturating_sub(self.threads)
    }
}

impl Drop for LookupThreads {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        state.closed = true;
        let waiting = std::mem::take(&mut state.queue);
        drop(state);
        self.pool.changed.notify_all();
        drop(waiting);
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Jobs run outside the lock, so nothing that panics was half done under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body of a thread.
    fn work(&self) {
        if let Some(cpus) = &self.cpus {
            // Refused, it runs where it was started.
            let _ = cpus.apply_to_this_thread();
        }
        self.lock().starting -= 1;
        while let Some(job) = self.next_job() {
            // Dropping it may run foreign code, too.
            let run = || {
                if job.is_wanted() {
                    job.run()
                }
            };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(run)) {
                // It may panic again when it is dropped; it is leaked instead.
                std::mem::forget(payload);
                log_contained(|| tracing::error!("a lookup panicked"));
            }
        }
    }

    /// Waits for work. `None` ends the thread, which is no longer counted then.
    fn next_job(&self) -> Option<Box<dyn Job>> {
        let mut state = self.lock();
        let mut until = None;
        loop {
            if state.closed {
                state.threads -= 1;
                return None;
            }
            if let Some(job) = state.queue.pop_front() {
                return Some(job);
            }
            let now = Instant::now();
            // Beyond what a clock can tell means never.
            let until = *until.get_or_insert_with(|| now.checked_add(self.limits.idle));
            let left = until.map(|until| until.saturating_duration_since(now));
            if left == Some(Duration::ZERO) {
                state.threads -= 1;
                return None;
            }
            state.idle += 1;
            state = match left {
                Some(left) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.idle -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
    use std::sync::mpsc;

    /// Tells its number when it begins, then runs until it is let go.
    struct Held {
        number: usize,
        wanted: Arc<AtomicBool>,
        begun: mpsc::Sender<usize>,
        go: Arc<Mutex<mpsc::Receiver<()>>>,
        dropped: Arc<AtomicUsize>,
    }

    impl Job for Held {
        fn is_wanted(&self) -> bool {
            self.wanted.load(SeqCst)
        }

        fn run(self: Box<Self>) {
            self.begun.send(self.number).unwrap();
            // Closed by the end of the test.
            let _ = self.go.lock().unwrap().recv();
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            self.dropped.fetch_add(1, SeqCst);
        }
    }

    struct Bench {
        threads: LookupThreads,
        begun: mpsc::Receiver<usize>,
        begin: mpsc::Sender<usize>,
        let_go: mpsc::Sender<()>,
        go: Arc<Mutex<mpsc::Receiver<()>>>,
        dropped: Arc<AtomicUsize>,
    }

    impl Bench {
        fn new(threads_max: usize, queue_max: usize, idle: Duration) -> Bench {
            let (begin, begun) = mpsc::channel();
            let (let_go, go) = mpsc::channel();
            let threads = LookupThreads::new(Limits { threads_max, queue_max, idle });
            let dropped = Arc::default();
            Bench { threads, begun, begin, let_go, go: Arc::new(Mutex::new(go)), dropped }
        }

        fn submit(&self, number: usize) -> (Arc<AtomicBool>, Result<(), Refusal>) {
            let wanted = Arc::new(AtomicBool::new(true));
            let job = Held {
                number,
                wanted: Arc::clone(&wanted),
                begun: self.begin.clone(),
                go: Arc::clone(&self.go),
                dropped: Arc::clone(&self.dropped),
            };
            (wanted, self.threads.submit(Box::new(job)))
        }

        fn next_begun(&self) -> usize {
            self.begun.recv_timeout(PATIENCE).expect("a job begins")
        }

        fn threads(&self) -> usize {
            self.threads.pool.lock().threads
        }

        /// Waits until so many threads are left.
        fn until_threads(&self, count: usize) {
            let begun = Instant::now();
            while self.threads() != count {
                assert!(begun.elapsed() < PATIENCE, "{} threads", self.threads());
                std::thread::yield_now();
            }
        }
    }

    /// Longer than any step takes: a guard, not a measure.
    const PATIENCE: Duration = Duration::from_secs(20);
    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn jobs_begin_in_order_on_no_more_threads_than_allowed() {
        let bench = Bench::new(2, 100, HOUR);
        assert_eq!(bench.threads(), 0, "none is started before there is work");
        let wanted: Vec<_> = (0..5).map(|number| bench.submit(number).0).collect();
        let mut first = [bench.next_begun(), bench.next_begun()];
        first.sort();
        assert_eq!(first, [0, 1]);
        assert_eq!(bench.threads(), 2);
        for expected in 2..5 {
            bench.let_go.send(()).unwrap();
            assert_eq!(bench.next_begun(), expected);
        }
        assert_eq!((bench.threads(), wanted.len()), (2, 5));
    }

    #[test]
    fn an_idle_thread_takes_the_next_job() {
        let bench = Bench::new(8, 8, HOUR);
        for number in 0..20 {
            let _wanted = bench.submit(number);
            assert_eq!(bench.next_begun(), number);
            bench.let_go.send(()).unwrap();
            // It is idle again once it has let go of its job and looked for another.
            let begun = Instant::now();
            while bench.threads.pool.lock().idle != 1 {
                assert!(begun.elapsed() < PATIENCE);
                std::thread::yield_now();
            }
        }
        assert_eq!(bench.threads(), 1);
    }

    #[test]
    fn a_full_queue_refuses_until_somebody_no_longer_waits() {
        let bench = Bench::new(1, 2, HOUR);
        let _running = bench.submit(0);
        assert_eq!(bench.next_begun(), 0);
        let (first, taken) = bench.submit(1);
        taken.unwrap();
        let (_second, taken) = bench.submit(2);
        taken.unwrap();
        assert!(matches!(bench.submit(3).1, Err(Refusal::Full(2))));
        first.store(false, SeqCst);
        let (_fourth, taken) = bench.submit(4);
        taken.unwrap();
        assert_eq!(bench.dropped.load(SeqCst), 2, "the refused one, and the one nobody waits for");
        for expected in [2, 4] {
            bench.let_go.send(()).unwrap();
            assert_eq!(bench.next_begun(), expected);
        }
    }

    #[test]
    fn what_the_threads_take_at_once_takes_no_room_in_the_queue() {
        let bench = Bench::new(3, 2, HOUR);
        // In a row, before any thread has looked for work.
        let taken: Vec<_> = (0..5).map(|number| bench.submit(number)).collect();
        assert!(taken.iter().all(|(_, taken)| taken.is_ok()));
        let mut begun = [bench.next_begun(), bench.next_begun(), bench.next_begun()];
        begun.sort();
        assert_eq!(begun, [0, 1, 2]);
        assert!(matches!(bench.submit(5).1, Err(Refusal::Full(2))));
    }

    #[test]
    fn threads_that_are_never_to_end_take_job_after_job() {
        let bench = Bench::new(1, 8, Duration::MAX);
        for number in 0..3 {
            let _wanted = bench.submit(number);
            assert_eq!(bench.next_begun(), number);
            bench.let_go.send(()).unwrap();
        }
        assert_eq!(bench.threads(), 1);
    }

    #[test]
    fn what_nobody_wants_any_more_does_not_run() {
        let bench = Bench::new(1, 8, HOUR);
        let _running = bench.submit(0);
        assert_eq!(bench.next_begun(), 0);
        let (unwanted, _) = bench.submit(1);
        let _wanted = bench.submit(2);
        unwanted.store(false, SeqCst);
        bench.let_go.send(()).unwrap();
        assert_eq!(bench.next_begun(), 2);
    }

    #[test]
    fn threads_without_work_end() {
        let bench = Bench::new(2, 8, Duration::from_millis(1));
        let _wanted = (bench.submit(0), bench.submit(1));
        bench.next_begun();
        bench.next_begun();
        bench.let_go.send(()).unwrap();
        bench.let_go.send(()).unwrap();
        bench.until_threads(0);
        let _again = bench.submit(2);
        assert_eq!(bench.next_begun(), 2, "and start again");
    }

    #[test]
    fn dropping_the_threads_waits_for_nobody_and_forgets_what_waits() {
        let bench = Bench::new(1, 8, HOUR);
        let _stuck = bench.submit(0);
        assert_eq!(bench.next_begun(), 0);
        let _waiting = bench.submit(1);
        let Bench { threads, begun, let_go, dropped, begin, go } = bench;
        let pool = Arc::clone(&threads.pool);
        drop((begin, go));
        drop(threads);
        assert_eq!(dropped.load(SeqCst), 1, "what waited; the stuck one goes on");
        assert_eq!(pool.lock().threads, 1);
        let_go.send(()).unwrap();
        assert!(begun.recv_timeout(PATIENCE).is_err(), "nothing else begins, and the last thread ends");
    }

    #[test]
    fn a_job_that_panics_costs_no_thread_whatever_it_panics_with() {
        struct Payload;
        impl Drop for Payload {
            fn drop(&mut self) {
                panic!("once more");
            }
        }
        /// Panics when it runs, or when it is dropped without having run.
        struct Panics(bool);
        impl Job for Panics {
            fn is_wanted(&self) -> bool {
                self.0
            }
            fn run(mut self: Box<Self>) {
                self.0 = false;
                std::mem::forget(self);
                std::panic::panic_any(Payload);
            }
        }
        impl Drop for Panics {
            fn drop(&mut self) {
                std::panic::panic_any(Payload);
            }
        }
        let bench = Bench::new(1, 8, HOUR);
        bench.threads.submit(Box::new(Panics(true))).unwrap();
        bench.threads.submit(Box::new(Panics(false))).unwrap();
        let _wanted = bench.submit(1);
        assert_eq!(bench.next_begun(), 1);
        assert_eq!(bench.threads.pool.lock().started, 1);
    }
}
