//! The process's one pool of compute threads.
//!
//! A lone text meets about thirty fork-joins, each some tens of microseconds of work, so handing over must cost
//! about one. A worker that runs out of work therefore looks for more for a moment ([`SPINS`]) before it sleeps;
//! the caller works too, and takes the tasks of workers that are late. Several callers share the workers.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, Thread};

use arc_swap::ArcSwapOption;

use crate::sync::{Condvar, Mutex};
use crate::{Error, Result};

/// Turns of the pause instruction (20 to 50 ns each) before a thread that waits goes to sleep: longer than the
/// gap between two operations of one text, shorter than anybody would notice as load.
const SPINS: u32 = 2000;

static GLOBAL: ArcSwapOption<Pool> = ArcSwapOption::const_empty();

/// A handle of the pool.
#[derive(Debug, Clone)]
pub struct Threads {
    pool: Arc<Pool>,
}

impl Threads {
    /// The process's pool: as many threads as [`Self::set_count`] said, else as the process may use cores
    /// (affinity and cgroup limits respected). After a fork the child builds its own on first use.
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

    /// Replaces the pool by one of `count` threads, callers included. Calls under way finish on the old one.
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
        let pool = Arc::new(Pool::new(count));
        GLOBAL.store(Some(Arc::clone(&pool)));
        Self { pool }
    }

    /// Threads that a call of [`Self::run`] can keep busy, the caller's included.
    pub fn count(&self) -> usize {
        self.pool.workers.len() + 1
    }

    /// Runs `task(0)` to `task(tasks - 1)` on the pool and on this thread; returns when all have finished.
    ///
    /// # Errors
    /// [`Error::Internal`] when a task panics: tasks not yet begun are skipped, the pool lives on.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<()> {
        if tasks == 0 {
            return Ok(());
        }
        // SAFETY: only the lifetime is erased. Workers reach `task` through the job alone, and `run` does not
        // return before the last of them has left the job.
        let task = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(
                task,
            )
        };
        let job = Job {
            task,
            tasks,
            next: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            caller: thread::current(),
            panic: Mutex::new(None),
        };
        let shared = (tasks > 1 && !self.pool.workers.is_empty()).then_some(&*self.pool.shared);
        if let Some(shared) = shared {
            shared.post(&job, tasks - 1);
        }
        job.work();
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
struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    process: u32,
}

impl Pool {
    fn new(count: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let workers = (1..count)
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                let thread = thread::Builder::new().name(format!("mm-compute-{index}"));
                // Fewer threads than asked for only cost speed.
                thread
                    .spawn(move || shared.serve())
                    .inspect_err(|error| log::warn!("compute thread: {error}"))
                    .ok()
            })
            .collect();
        Self { shared, workers, process: std::process::id() }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let workers = std::mem::take(&mut self.workers);
        if self.process != std::process::id() {
            // The threads stayed behind in the parent: there is nothing to join, or to detach.
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
            // A worker catches the panics of its tasks and has none of its own.
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

/// A job that lies on the stack of its caller, who takes it off the list before it goes.
#[derive(Debug)]
struct JobRef(*const Job);

// SAFETY: a Job is shared between threads through atomics and a lock; its task is Sync.
unsafe impl Send for JobRef {}

impl Shared {
    fn post(&self, job: &Job, helpers: usize) {
        let mut jobs = self.jobs.lock();
        jobs.push(JobRef(job));
        self.posted.fetch_add(1, Ordering::Release);
        let sleeping = self.sleeping.load(Ordering::Relaxed);
        drop(jobs);
        for _ in 0..helpers.min(sleeping) {
            self.wake.notify_one();
        }
    }

    /// A worker's life.
    fn serve(&self) {
        loop {
            let seen = self.posted.load(Ordering::Acquire);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            let job = enter(&self.jobs.lock());
            if let Some(job) = job {
                // SAFETY: `enter` counted this thread in, so the caller keeps the job until `leave`.
                unsafe { (*job).work() };
                // SAFETY: as above; the job is not touched afterwards.
                unsafe { Job::leave(job) };
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

/// The first job with tasks left, this thread counted in.
fn enter(jobs: &[JobRef]) -> Option<*const Job> {
    jobs.iter().map(|job| job.0).find(|&job| {
        // SAFETY: a job on the list lives: its caller removes it under the lock that our caller holds.
        let job = unsafe { &*job };
        let open = job.next.load(Ordering::Relaxed) < job.tasks;
        if open {
            job.inside.fetch_add(1, Ordering::Relaxed);
        }
        open
    })
}

struct Job {
    task: *const (dyn Fn(usize) + Sync),
    tasks: usize,
    next: AtomicUsize,
    inside: AtomicUsize,
    caller: Thread,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Job {
    fn work(&self) {
        // SAFETY: the closure outlives the job (see `Threads::run`).
        let task = unsafe { &*self.task };
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
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

    /// Counts a worker out.
    ///
    /// # Safety
    /// The worker was counted in by `enter`, and does not touch the job again.
    unsafe fn leave(job: *const Self) {
        // SAFETY: the caller waits until this worker is counted out.
        let (caller, last) = unsafe {
            let caller = (*job).caller.clone();
            (caller, (*job).inside.fetch_sub(1, Ordering::Release) == 1)
        };
        if last {
            caller.unpark();
        }
    }

    fn wait(&self) {
        let mut turns = 0;
        while self.inside.load(Ordering::Acquire) != 0 {
            turns += 1;
            if turns < SPINS {
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
            let threads = Threads { pool: Arc::new(Pool::new(count)) };
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
        let threads = Threads { pool: Arc::new(Pool::new(3)) };
        let seen = Mutex::new(HashSet::new());
        // Each task waits until three threads have come, so one thread cannot take them all.
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
        let threads = Threads { pool: Arc::new(Pool::new(3)) };
        let error = threads.run(100, &|i| assert!(i != 31, "task {i}")).unwrap_err();
        assert_eq!(error, Error::Internal { place: "compute".into(), reason: "task 31".into() });
        let total = AtomicUsize::new(0);
        threads.run(100, &|i| _ = total.fetch_add(i, Ordering::Relaxed)).unwrap();
        assert_eq!(total.into_inner(), 4950);
    }

    #[test]
    fn callers_share_the_pool_and_may_nest() {
        let threads = Threads { pool: Arc::new(Pool::new(3)) };
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
    fn sleeping_workers_wake_up() {
        let threads = Threads { pool: Arc::new(Pool::new(2)) };
        for _ in 0..3 {
            let barrier = std::sync::Barrier::new(2);
            threads.run(2, &|_| _ = barrier.wait()).unwrap();
            while threads.pool.shared.sleeping.load(Ordering::Relaxed) == 0 {
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
        // SAFETY: the child calls only this pool and `_exit`; glibc's allocator is usable after fork.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: a child that hangs is killed by the alarm, which the parent sees.
            unsafe { libc::alarm(20) };
            let threads = Threads::global();
            let total = AtomicUsize::new(0);
            let ran = threads.run(64, &|i| _ = total.fetch_add(i, Ordering::Relaxed)).is_ok();
            let good = ran && total.into_inner() == 2016 && threads.count() == before.count();
            // SAFETY: leaves without running the parent's destructors.
            unsafe { libc::_exit(i32::from(!good)) };
        }
        let mut status = 0;
        // SAFETY: `status` is valid to write.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "the child failed or hung");
    }
}
