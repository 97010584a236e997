//! A few threads for the calls that wait.
//!
//! Waking a thread costs more than most buffered writes, and a guest with a thousand requests in flight must not make
//! a thousand threads: jobs of one image share a bounded number of tokio's blocking threads, each of which goes on to
//! the next job without being woken for it.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

/// The most threads at a time; as many requests are with the host's disk.
const MOST: usize = 32;
/// Short jobs that wait for each thread that has no long one, before another is woken.
const SHORT_JOBS: usize = 4;

/// How long a job is likely to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// Less than waking a thread: worth standing in line for.
    Short,
    /// It waits for a disk.
    Long,
}

/// The result of a job that has been submitted.
#[derive(Debug)]
pub(super) struct Waiting<T>(oneshot::Receiver<io::Result<T>>);

type Job = Box<dyn FnOnce() + Send>;

/// Jobs and the threads that do them.
#[derive(Default)]
pub(super) struct Workers {
    crew: Mutex<Crew>,
}

#[derive(Default)]
struct Crew {
    jobs: VecDeque<(Length, Job)>,
    threads: usize,
    /// Short jobs that wait.
    short: usize,
    /// Long jobs that wait or run.
    long: usize,
}

impl Workers {
    /// Has `work` done by some thread. It is done even if nobody waits for the result any more.
    ///
    /// # Errors
    /// What `work` gives; or that it panicked, or that the runtime ends.
    pub(super) fn run<T: Send + 'static>(
        self: &Arc<Self>,
        length: Length,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Waiting<T> {
        let (done, result) = oneshot::channel();
        self.submit(
            length,
            Box::new(move || {
                let _ = done.send(work());
            }),
        );
        Waiting(result)
    }

    fn submit(self: &Arc<Self>, length: Length, job: Job) {
        let mut crew = self.crew();
        crew.jobs.push_back((length, job));
        let needed = match length {
            Length::Short => {
                crew.short += 1;
                crew.short > SHORT_JOBS * crew.threads.saturating_sub(crew.long)
            }
            Length::Long => {
                crew.long += 1;
                true
            }
        };
        if needed && crew.threads < MOST {
            crew.threads += 1;
            let workers = Arc::clone(self);
            drop(crew);
            spawn_blocking(move || workers.work());
        }
    }

    fn work(&self) {
        while let Some((length, job)) = self.next() {
            // Whoever waits for a job that panicked gets an error; the others get their turn.
            let _ = catch_unwind(AssertUnwindSafe(job));
            if length == Length::Long {
                self.crew().long -= 1;
            }
        }
    }

    /// The next job; a thread that gets none is none of the crew any more.
    fn next(&self) -> Option<(Length, Job)> {
        let mut crew = self.crew();
        let job = crew.jobs.pop_front();
        match job {
            Some((Length::Short, _)) => crew.short -= 1,
            Some((Length::Long, _)) => {}
            None => crew.threads -= 1,
        }
        job
    }

    fn crew(&self) -> MutexGuard<'_, Crew> {
        self.crew.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Future for Waiting<T> {
    type Output = io::Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|result| result.map_err(io::Error::other)?)
    }
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let crew = self.crew();
        formatter
            .debug_struct("Workers")
            .field("jobs", &crew.jobs.len())
            .field("threads", &crew.threads)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn long_jobs_run_beside_each_other_but_never_too_many() {
        let workers = Arc::new(Workers::default());
        let barrier = Arc::new(Barrier::new(MOST));
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let jobs: Vec<_> = (0..4 * MOST)
            .map(|_| {
                let (barrier, running, most) =
                    (Arc::clone(&barrier), Arc::clone(&running), Arc::clone(&most));
                workers.run(Length::Long, move || {
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    barrier.wait();
                    running.fetch_sub(1, Ordering::SeqCst);
                    Ok(())
                })
            })
            .collect();
        for job in jobs {
            tokio::time::timeout(Duration::from_secs(20), job).await.expect("enough threads").unwrap();
        }
        assert_eq!(most.load(Ordering::SeqCst), MOST);
    }

    #[tokio::test]
    async fn short_jobs_share_a_thread_in_order() {
        let workers = Arc::new(Workers::default());
        let done = Arc::new(Mutex::new(Vec::new()));
        let (gate, open) = std::sync::mpsc::channel::<()>();
        let first = workers.run(Length::Short, move || open.recv().map_err(io::Error::other));
        let jobs: Vec<_> = (0..SHORT_JOBS)
            .map(|number| {
                let done = Arc::clone(&done);
                workers.run(Length::Short, move || {
                    done.lock().unwrap().push(number);
                    Ok(())
                })
            })
            .collect();
        assert!(done.lock().unwrap().is_empty());
        gate.send(()).unwrap();
        first.await.unwrap();
        for job in jobs {
            job.await.unwrap();
        }
        assert!(done.lock().unwrap().is_sorted());
    }

    #[tokio::test]
    async fn a_short_job_does_not_stand_behind_a_long_one() {
        let workers = Arc::new(Workers::default());
        let (gate, open) = std::sync::mpsc::channel::<()>();
        let long = workers.run(Length::Long, move || open.recv().map_err(io::Error::other));
        let short = workers.run(Length::Short, || Ok(()));
        tokio::time::timeout(Duration::from_secs(20), short).await.expect("a thread of its own").unwrap();
        gate.send(()).unwrap();
        long.await.unwrap();
    }

    #[tokio::test]
    async fn a_job_that_panics_fails_alone() {
        let workers = Arc::new(Workers::default());
        let bad = workers.run(Length::Short, || -> io::Result<()> { panic!("as the test wants it") });
        let good = workers.run(Length::Short, || Ok(7));
        assert!(bad.await.is_err());
        assert_eq!(good.await.unwrap(), 7);
    }
}
