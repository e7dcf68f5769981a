//! Work that goes on while a test's own thread waits for a command.

use std::thread::JoinHandle;

use tokio::sync::oneshot;

/// A thread with a runtime of its own. It ends, with all tasks that it has started, with the value.
#[derive(Debug)]
pub struct Background {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Starts it. `work` is called on the new thread, inside the runtime.
    ///
    /// # Panics
    /// When no thread can be started.
    pub fn spawn<F: Future<Output = ()>>(name: &str, work: impl FnOnce() -> F + Send + 'static) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    // The sender is dropped.
                    _ = stopped => {}
                    () = work() => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run).expect("a thread");
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was printed when it happened.
            let _ = thread.join();
        }
    }
}
