//! Sessions that visitors may resume, of one entry: what a visitor was asked for does not change within them.

use std::sync::Arc;

use rustls::server::{ServerSessionMemoryCache, StoresServerSessions};

/// Sessions kept per entry; the oldest go.
const KEPT: usize = 256;
/// A session holds the chain that the visitor showed, which rustls takes up to 64 KiB of. What is too large to be relayed
/// is not worth keeping either, so strangers fill 5 MiB per entry at most.
const LARGEST: usize = 20 << 10;

/// In memory, so they end with the process, and with the entry.
#[derive(Debug)]
pub(super) struct Sessions(Arc<ServerSessionMemoryCache>);

impl Sessions {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(ServerSessionMemoryCache::new(KEPT)))
    }
}

impl StoresServerSessions for Sessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        value.len() <= LARGEST && self.0.put(key, value)
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.get(key)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.take(key)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_with_a_chain_that_is_too_large_is_not_kept() {
        let sessions = Sessions::new();
        assert!(sessions.put(vec![1], vec![0; LARGEST]) && sessions.get(&[1]).is_some());
        assert!(!sessions.put(vec![2], vec![0; LARGEST + 1]) && sessions.get(&[2]).is_none());
    }
}
