//! The runtime that openraft runs on: tokio, with one addition. What is spawned within a [`Scope`] belongs to it: it
//! ends with it, and draws its random numbers from it. A simulation gives each of its nodes one, so that a node can be
//! cut off between any two steps, and does the same again for the same seed. Without a scope all is as tokio has it.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use openraft::{AsyncRuntime, OptionalSend};
use openraft_rt_tokio::{TokioInstant, TokioMpsc, TokioMutex, TokioOneshot, TokioRuntime, TokioWatch};
use parking_lot::Mutex;
use rand::rngs::{SmallRng, ThreadRng};
use rand::{Rng as _, SeedableRng as _, TryRng};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

tokio::task_local! {
    static CURRENT: Scope;
}

/// A life and a source of randomness that tasks share. Clones are the same scope.
#[derive(Clone)]
pub struct Scope(Arc<Inner>);

struct Inner {
    /// Steps until it ends; the greatest number: it goes on.
    steps_left: AtomicU64,
    ended: Notify,
    random: Mutex<SmallRng>,
    is_paused: AtomicBool,
    /// Who would have been polled meanwhile.
    held: Mutex<Vec<Waker>>,
}

impl Scope {
    /// A scope whose random numbers follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Inner {
            steps_left: AtomicU64::new(u64::MAX),
            ended: Notify::new(),
            random: Mutex::new(SmallRng::seed_from_u64(seed)),
            is_paused: AtomicBool::new(false),
            held: Mutex::default(),
        }))
    }

    /// Ends it: nothing that runs within is polled any more.
    pub fn end(&self) {
        self.end_after(0);
    }

    /// Ends it after so many more steps (polls) of all that runs within.
    pub fn end_after(&self, steps: u64) {
        self.0.steps_left.store(steps, Ordering::Relaxed);
        if steps == 0 {
            self.0.ended.notify_waiters();
        }
    }

    /// Stops it for a while, as a signal stops a process: nothing that runs within is polled until [`Scope::resume`].
    pub fn pause(&self) {
        self.0.is_paused.store(true, Ordering::Relaxed);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.0.is_paused.store(false, Ordering::Relaxed);
        let held = std::mem::take(&mut *self.0.held.lock());
        held.into_iter().for_each(Waker::wake);
    }

    /// Whether it is stopped for a while; whoever asks is woken when it goes on.
    fn holds(&self, context: &Context<'_>) -> bool {
        let holds = self.0.is_paused.load(Ordering::Relaxed) && !self.has_ended();
        if holds {
            self.0.held.lock().push(context.waker().clone());
        }
        holds
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.0.steps_left.load(Ordering::Relaxed) == 0
    }

    /// Waits until it has ended.
    pub async fn ended(&self) {
        let ended = self.0.ended.notified();
        if !self.has_ended() {
            ended.await;
        }
    }

    /// Whether there is one more step.
    fn step(&self) -> bool {
        match self.0.steps_left.load(Ordering::Relaxed) {
            0 => false,
            u64::MAX => true,
            steps => {
                self.end_after(steps - 1);
                true
            }
        }
    }

    /// Runs a future within. Once the scope has ended it is dropped, and never ready.
    pub fn run<F: Future + Send + 'static>(&self, future: F) -> Scoped<F> {
        let within = CURRENT.scope(self.clone(), future);
        Scoped { scope: self.clone(), future: Some(Box::pin(within)) }
    }
}

/// See [`Scope::run`].
pub struct Scoped<F> {
    scope: Scope,
    future: Option<Pin<Box<tokio::task::futures::TaskLocalFuture<Scope, F>>>>,
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if self.scope.holds(context) {
            return Poll::Pending;
        }
        if !self.scope.step() {
            self.future = None;
        }
        match &mut self.future {
            Some(future) => future.as_mut().poll(context),
            None => Poll::Pending,
        }
    }
}

/// A future, within a scope or not.
pub enum Within<F> {
    /// In the scope that was the current one.
    Scope(Scoped<F>),
    /// In none.
    None(F),
}

impl<F: Future + Unpin> Future for Within<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        match &mut *self {
            Self::Scope(scoped) => Pin::new(scoped).poll(context),
            Self::None(future) => Pin::new(future).poll(context),
        }
    }
}

/// Puts a future that is about to be spawned into the scope of its spawner, if that is in one.
pub fn inherit<F: Future + Send + Unpin + 'static>(future: F) -> Within<F> {
    match CURRENT.try_with(Clone::clone) {
        Ok(scope) => Within::Scope(scope.run(future)),
        Err(_) => Within::None(future),
    }
}

/// As [`tokio::spawn`], in the spawner's scope.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match CURRENT.try_with(Clone::clone) {
        Ok(scope) => tokio::spawn(scope.run(future)),
        Err(_) => tokio::spawn(future),
    }
}

/// The current scope's random numbers, or the thread's.
pub enum Random {
    /// Of a scope.
    Scope(Scope),
    /// Of the thread.
    Thread(ThreadRng),
}

/// A source of random numbers: see [`Random`].
pub fn random() -> Random {
    CURRENT.try_with(Clone::clone).map_or_else(|_| Random::Thread(rand::rng()), Random::Scope)
}

impl TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(match self {
            Self::Scope(scope) => scope.0.random.lock().next_u32(),
            Self::Thread(thread) => thread.next_u32(),
        })
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(match self {
            Self::Scope(scope) => scope.0.random.lock().next_u64(),
            Self::Thread(thread) => thread.next_u64(),
        })
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        match self {
            Self::Scope(scope) => scope.0.random.lock().fill_bytes(bytes),
            Self::Thread(thread) => thread.fill_bytes(bytes),
        }
        Ok(())
    }
}

/// See the module's documentation.
pub struct Runtime(TokioRuntime);

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").finish()
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = TokioInstant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = Random;
    type Mpsc = TokioMpsc;
    type Watch = TokioWatch;
    type Oneshot = TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = TokioMutex<T>;

    fn spawn<T>(future: T) -> JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Random {
        random()
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_spawned_within_a_scope_ends_with_it() {
        let (scope, told) = (Scope::new(1), Arc::new(AtomicU64::new(0)));
        let counter = told.clone();
        let outer = async move {
            spawn(async move {
                loop {
                    counter.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            });
        };
        scope.run(outer).await;
        while told.load(Ordering::Relaxed) < 3 {
            tokio::task::yield_now().await;
        }
        scope.end_after(2);
        scope.ended().await;
        let then = told.load(Ordering::Relaxed);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(scope.has_ended());
        assert_eq!(told.load(Ordering::Relaxed), then);
    }

    #[tokio::test]
    async fn what_is_paused_goes_on_where_it_stopped() {
        let (scope, told) = (Scope::new(1), Arc::new(AtomicU64::new(0)));
        let counter = told.clone();
        let counts = scope.run(async move {
            loop {
                counter.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        let _counts = tokio::spawn(counts);
        let more_than = async |count| {
            while told.load(Ordering::Relaxed) <= count {
                tokio::task::yield_now().await;
            }
        };
        more_than(3).await;
        scope.pause();
        let then = told.load(Ordering::Relaxed);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(told.load(Ordering::Relaxed), then);
        scope.resume();
        more_than(then).await;
        scope.end();
    }

    #[tokio::test]
    async fn a_scope_draws_the_same_numbers_for_the_same_seed() {
        let draw =
            |seed| async move { Scope::new(seed).run(async { (random().next_u64(), random().next_u32()) }).await };
        assert_eq!(draw(7).await, draw(7).await);
        assert_ne!(draw(7).await, draw(8).await);
    }
}
