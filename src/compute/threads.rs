//! The process's one pool of compute threads.
//!
//! A single text takes about thirty fork-joins of some tens of microseconds each, so a fork-join must take only about one
//! microsecond. So an idle worker spins for a moment ([`SPINS`]) before it sleeps. The caller works too, and takes the
//! tasks of late workers. Several callers share the workers.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, Thread};

use arc_swap::ArcSwapOption;

use crate::sync::{Condvar, Mutex};
use crate::{Error, Result};

/// Iterations of the pause instruction (20 to 50 ns each) before a waiting thread sleeps: longer than the gap between two
/// operations of one text, and too short to be noticeable as load.
const SPINS: u32 = 2000;

static GLOBAL: ArcSwapOption<ThreadPool> = ArcSwapOption::const_empty();

/// A handle to the pool.
#[derive(Debug, Clone)]
pub struct Threads {
    pool: Arc<ThreadPool>,
}

impl Threads {
    /// The process's pool. It has as many threads as [`Self::set_count`] set, by default one for each core that the process
    /// may use (affinity and cgroup limits respected). After a fork, the child creates its own pool on first use.
    pub fn global() -> Self {
        let current = GLOBAL.load_full();
        if let Some(pool) = current.as_ref().filter(|pool| pool.process == std::process::id()) {
            return Self { pool: Arc::clone(pool) };
        }
        let count = current.map_or_else(
            || thread::available_parallelism().map_or(1, usize::from),
            |parent| parent.workers.len() + 1,
        );
        Self::install(count)
    }

    /// Replaces the pool by one of `count` threads, including the caller. Running calls finish on the old pool.
    ///
    /// # Errors
    /// [`Error::Config`] unless `count` lies in 1..=1024.
    pub fn set_count(count: usize) -> Result<()> {
        if !(1..=1024).contains(&count) {
            return Err(Error::Config {
                setting: "threads".into(),
                value: count.to_string(),
                reason: "allowed are 1 to 1024".into(),
            });
        }
        Self::install(count);
        Ok(())
    }

    fn install(count: usize) -> Self {
        let pool = Arc::new(ThreadPool::new(count));
        GLOBAL.store(Some(Arc::clone(&pool)));
        Self { pool }
    }

    /// A pool of a test.
    #[cfg(test)]
    pub(crate) fn of(count: usize) -> Self {
        Self { pool: Arc::new(ThreadPool::new(count)) }
    }

    /// Threads that a call of [`Self::run`] can use, including the caller's.
    pub fn count(&self) -> usize {
        self.pool.workers.len() + 1
    }

    /// Runs `task(0)` to `task(tasks - 1)` on the pool and on this thread; returns when all have finished.
    ///
    /// # Errors
    /// [`Error::Internal`] if a task panics. Tasks that have not started are skipped, and the pool stays usable.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<()> {
        self.start(tasks, false, task)
    }

    /// [`Self::run`] for work that can wait: between two tasks, a worker turns to other jobs first.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_in_background(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<()> {
        self.start(tasks, true, task)
    }

    fn start(&self, tasks: usize, background: bool, task: &(dyn Fn(usize) + Sync)) -> Result<()> {
        if tasks == 0 {
            return Ok(());
        }
        // SAFETY: the transmutation only erases the lifetime of a pointer. Workers access `task` only through the job, and
        // `start` does not return before the last worker has left the job.
        let task = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(
                task,
            )
        };
        let job = ParallelJob {
            task,
            tasks,
            background,
            next: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            caller: thread::current(),
            panic: Mutex::new(None),
        };
        let shared = (tasks > 1 && !self.pool.workers.is_empty()).then_some(&*self.pool.shared);
        if let Some(shared) = shared {
            shared.post(&job, tasks - 1);
        }
        job.work(tasks);
        if let Some(shared) = shared {
            shared.jobs.lock().retain(|other| !std::ptr::eq(other.0, &raw const job));
            job.wait();
        }
        match job.panic.into_inner() {
            Some(payload) => Err(Error::panic("compute", payload.as_ref())),
            None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    process: u32,
}

impl ThreadPool {
    fn new(count: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let workers = (1..count)
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                let thread = thread::Builder::new().name(format!("mm-compute-{index}"));
                // Fewer threads than requested only reduce speed.
                thread
                    .spawn(move || shared.serve())
                    .inspect_err(|error| log::warn!("compute thread: {error}"))
                    .ok()
            })
            .collect();
        Self { shared, workers, process: std::process::id() }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        let workers = std::mem::take(&mut self.workers);
        if self.process != std::process::id() {
            // The threads exist only in the parent, so there is nothing to join or to detach.
            std::mem::forget(workers);
            return;
        }
        {
            let _jobs = self.shared.jobs.lock();
            self.shared.stop.store(true, Ordering::Release);
            self.shared.posted.fetch_add(1, Ordering::Release);
            self.shared.wake.notify_all();
        }
        for worker in workers {
            // A worker catches the panics of its tasks, and does not panic otherwise.
            let _ = worker.join();
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    jobs: Mutex<Vec<JobRef>>,
    wake: Condvar,
    sleeping: AtomicUsize,
    /// Counts posts, so that a spinning worker sees a new job without the lock.
    posted: AtomicU32,
    stop: AtomicBool,
}

/// A job on the stack of its caller, which removes it from the list before it returns.
#[derive(Debug)]
struct JobRef(*const ParallelJob);

// SAFETY: other threads access a `ParallelJob` only by shared reference. Its atomics, its lock, its thread handle and its
// task are `Sync`.
unsafe impl Send for JobRef {}

impl Shared {
    fn post(&self, job: &ParallelJob, helpers: usize) {
        let mut jobs = self.jobs.lock();
        jobs.push(JobRef(job));
        self.posted.fetch_add(1, Ordering::Release);
        let sleeping = self.sleeping.load(Ordering::Relaxed);
        drop(jobs);
        for _ in 0..helpers.min(sleeping) {
            self.wake.notify_one();
        }
    }

    /// The loop of a worker.
    fn serve(&self) {
        loop {
            let seen = self.posted.load(Ordering::Acquire);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            let job = enter(&self.jobs.lock());
            if let Some(job) = job {
                // SAFETY: `enter` counted this thread in, so the caller keeps the job alive until `leave`.
                let job_ref = unsafe { &*job };
                job_ref.work(if job_ref.background { 1 } else { job_ref.tasks });
                // SAFETY: `enter` counted this thread in, and it does not access the job afterwards.
                unsafe { ParallelJob::leave(job) };
                continue;
            }
            if (0..SPINS).any(|_| {
                std::hint::spin_loop();
                self.posted.load(Ordering::Relaxed) != seen
            }) {
                continue;
            }
            let mut jobs = self.jobs.lock();
            self.sleeping.fetch_add(1, Ordering::Relaxed);
            while self.posted.load(Ordering::Acquire) == seen {
                jobs = self.wake.wait(jobs);
            }
            self.sleeping.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The first job with tasks left, one in the background only if there is no other; this thread counted in.
fn enter(jobs: &[JobRef]) -> Option<*const ParallelJob> {
    let open = |background: bool| {
        jobs.iter().map(|job| job.0).find(|&job| {
            // SAFETY: a job on the list is alive, because its caller removes it under the lock before it returns, and `jobs`
            // borrows from a guard of that lock.
            let job = unsafe { &*job };
            let open = job.background == background && job.next.load(Ordering::Relaxed) < job.tasks;
            if open {
                job.inside.fetch_add(1, Ordering::Relaxed);
            }
            open
        })
    };
    open(false).or_else(|| open(true))
}

struct ParallelJob {
    task: *const (dyn Fn(usize) + Sync),
    tasks: usize,
    /// Workers turn to other jobs between two of its tasks.
    background: bool,
    next: AtomicUsize,
    inside: AtomicUsize,
    caller: Thread,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl ParallelJob {
    /// Runs tasks until none is left, at most `most` of them.
    fn work(&self, most: usize) {
        // SAFETY: `Threads::start` borrows the closure, and does not return before all threads have left the job.
        let task = unsafe { &*self.task };
        let result = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..most {
                let index = self.next.fetch_add(1, Ordering::Relaxed);
                if index >= self.tasks {
                    break;
                }
                task(index);
            }
        }));
        if let Err(payload) = result {
            self.next.store(self.tasks, Ordering::Relaxed);
            self.panic.lock().get_or_insert(payload);
        }
    }

    /// Counts a worker out, and wakes the caller if it was the last one.
    ///
    /// # Safety
    ///
    /// - `enter` counted the worker in.
    /// - The worker does not access the job again.
    unsafe fn leave(job: *const Self) {
        // SAFETY: the caller of the job keeps it alive until `fetch_sub` counts this worker out, which is the last access.
        let (caller, last) = unsafe {
            let caller = (*job).caller.clone();
            (caller, (*job).inside.fetch_sub(1, Ordering::Release) == 1)
        };
        if last {
            caller.unpark();
        }
    }

    fn wait(&self) {
        let mut spins = 0;
        while self.inside.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                thread::park();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_number_of_threads() {
        for count in [1, 2, 5] {
            let threads = Threads::of(count);
            for tasks in [0, 1, 2, 7, 1000] {
                let runs: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                threads.run(tasks, &|i| _ = runs[i].fetch_add(1, Ordering::Relaxed)).unwrap();
                assert!(
                    runs.iter().all(|n| n.load(Ordering::Relaxed) == 1),
                    "{count} threads, {tasks} tasks"
                );
            }
        }
    }

    #[test]
    fn work_reaches_other_threads() {
        let threads = Threads::of(3);
        let seen = Mutex::new(HashSet::new());
        // Each task waits for three threads, so one thread cannot run them all.
        let barrier = std::sync::Barrier::new(3);
        threads
            .run(3, &|_| {
                barrier.wait();
                seen.lock().insert(thread::current().id());
            })
            .unwrap();
        assert_eq!(seen.into_inner().len(), 3);
    }

    #[test]
    fn a_panic_fails_its_call_only() {
        let threads = Threads::of(3);
        let error = threads.run(100, &|i| assert!(i != 31, "task {i}")).unwrap_err();
        assert_eq!(error, Error::internal("compute", "task 31"));
        let total = AtomicUsize::new(0);
        threads.run(100, &|i| _ = total.fetch_add(i, Ordering::Relaxed)).unwrap();
        assert_eq!(total.into_inner(), 4950);
    }

    #[test]
    fn callers_share_the_pool_and_may_nest() {
        let threads = Threads::of(3);
        let total = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        threads
                            .run(4, &|_| {
                                threads.run(3, &|i| _ = total.fetch_add(i, Ordering::Relaxed)).unwrap();
                            })
                            .unwrap();
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 8 * 200 * 4 * 3);
    }

    #[test]
    fn a_worker_leaves_a_background_job_for_another_one() {
        let threads = Threads::of(2);
        // The background job has three tasks for two threads. Its first two wait until the other job is posted.
        let (both, posted, finish) =
            (std::sync::Barrier::new(3), std::sync::Barrier::new(2), std::sync::Barrier::new(2));
        let (third, early) = (AtomicBool::new(false), AtomicBool::new(false));
        let caller = thread::current().id();
        thread::scope(|scope| {
            let other = scope.spawn(|| {
                both.wait();
                let meeting = std::sync::Barrier::new(2);
                threads
                    .run(2, &|_| {
                        if thread::current().name() != Some("mm-compute-1") {
                            posted.wait(); // the worker goes on, and comes here
                        }
                        // Before they meet: afterwards the worker may take the third task at any moment.
                        early.fetch_or(third.load(Ordering::Relaxed), Ordering::Relaxed);
                        meeting.wait();
                    })
                    .unwrap();
                finish.wait();
            });
            threads
                .run_in_background(3, &|task| {
                    if task == 2 {
                        third.store(true, Ordering::Relaxed);
                        return;
                    }
                    both.wait();
                    if thread::current().id() == caller {
                        finish.wait()
                    } else {
                        posted.wait()
                    };
                })
                .unwrap();
            other.join().unwrap();
        });
        assert!(third.into_inner() && !early.into_inner(), "the background job went first");
    }

    #[test]
    fn sleeping_workers_wake_up() {
        let threads = Threads::of(2);
        for _ in 0..3 {
            let barrier = std::sync::Barrier::new(2);
            threads.run(2, &|_| _ = barrier.wait()).unwrap();
            let patience = std::time::Instant::now() + Duration::from_secs(60);
            while threads.pool.shared.sleeping.load(Ordering::Relaxed) == 0 {
                assert!(std::time::Instant::now() < patience, "no worker sleeps");
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    #[test]
    fn the_count_is_checked() {
        assert!(Threads::set_count(0).is_err() && Threads::set_count(100_000).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_forked_child_builds_its_own_pool() {
        let before = Threads::global();
        // SAFETY: the child uses only a new pool and `_exit`, and glibc's allocator is usable after fork.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: `alarm` takes a number. It kills a child that hangs, and the parent sees the signal.
            unsafe { libc::alarm(20) };
            let threads = Threads::global();
            let total = AtomicUsize::new(0);
            let ran = threads.run(64, &|i| _ = total.fetch_add(i, Ordering::Relaxed)).is_ok();
            let good = ran && total.into_inner() == 2016 && threads.count() == before.count();
            // SAFETY: `_exit` takes a number, and ends the child without running destructors.
            unsafe { libc::_exit(i32::from(!good)) };
        }
        let mut status = 0;
        // SAFETY: `status` is writable.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "the child failed or hung");
    }
}
