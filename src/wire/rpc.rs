//! Where Cap'n Proto RPC lives: one thread, since its objects cannot move between threads.
//!
//! A connection uses RPC a handful of times in its life, so one thread serves the whole process. A panic inside a
//! connection's RPC ends that connection's RPC only.

use std::fmt;

use capnp::message::ReaderOptions;
use capnp_rpc::{RpcSystem, rpc_twoparty_capnp::Side, twoparty::VatNetwork};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::{
    compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt},
    task::LocalPoolHandle,
};

/// Largest RPC message read: 1 Mi words, 8 MiB. Configurations are the largest content and measure kilobytes.
const MAX_MESSAGE_WORDS: usize = 1 << 20;

/// The thread. Clones share it; it ends with the last clone.
#[derive(Clone)]
pub struct RpcThread {
    pool: LocalPoolHandle,
}

impl fmt::Debug for RpcThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RpcThread")
    }
}

impl Default for RpcThread {
    fn default() -> Self {
        Self::new()
    }
}

impl RpcThread {
    /// Starts the thread.
    pub fn new() -> Self {
        Self { pool: LocalPoolHandle::new(1) }
    }

    /// Runs `task` there, and returns its output; `None` if it panicked.
    pub(super) async fn run<F, T>(&self, task: impl FnOnce() -> F + Send + 'static) -> Option<T>
    where
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        match self.pool.spawn_pinned(task).await {
            Ok(output) => Some(output),
            Err(error) => {
                tracing::error!(%error, "an RPC task died");
                None
            }
        }
    }

    /// Starts `task` there; its end is seen through the channels that it holds.
    pub(super) fn start<F>(&self, task: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        drop(self.pool.spawn_pinned(task));
    }
}

pub(super) fn system(
    recv: impl AsyncRead + Unpin + 'static,
    send: impl AsyncWrite + Unpin + 'static,
    side: Side,
    bootstrap: Option<capnp::capability::Client>,
) -> RpcSystem<Side> {
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(MAX_MESSAGE_WORDS));
    let network = VatNetwork::new(recv.compat(), send.compat_write(), side, options);
    RpcSystem::new(Box::new(network), bootstrap)
}
