//! A thread that attends to partitions and to nothing else.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// Ends when dropped, from whatever thread.
pub(super) struct ControlThread(Option<Runtime>);

impl ControlThread {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("vmbus-control")
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    pub(super) fn handle(&self) -> Option<&Handle> {
        self.0.as_ref().map(Runtime::handle)
    }
}

impl Drop for ControlThread {
    fn drop(&mut self) {
        // The last partition to leave may drop the root on this very thread, which cannot wait for itself.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
