//! Making routes of the file's rules and of the edge's, and saying why not.

use super::{Local, Pushed};
use crate::{
    config::RemoteConfig,
    proxy::{Ground, Routes, Sources},
};

/// Longest answer to a push. A refusal quotes the document, which may be megabytes of mistakes.
pub(super) const MOST_REASONS: usize = 64 << 10;

/// Why a push is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    /// Only `remoteConfig` stands in the way.
    pub(super) held: bool,
    /// Every reason.
    pub(super) error: String,
}

/// Makes routes; the ground may change under the same rules.
#[derive(Clone, Debug)]
pub(super) struct Maker(pub(super) Ground);

impl Maker {
    /// `before`: what was in force, if these are the same rules.
    pub(super) fn of_file(&self, local: &Local, before: Option<&Routes>) -> Result<Routes, String> {
        let sources = Sources {
            ingress: local.ingress.clone(),
            warp: local.warp.clone(),
            inner_hop: local.inner_hop.clone(),
            version: -1,
        };
        self.routes(sources, before)
    }

    fn routes(&self, sources: Sources, before: Option<&Routes>) -> Result<Routes, String> {
        match before {
            Some(before) => Routes::again(sources, &self.0, before),
            None => Routes::new(sources, &self.0),
        }
    }

    /// With the number of keys that nothing reads.
    pub(super) fn of_edge(
        &self,
        local: &Local,
        pushed: &Pushed,
        before: Option<&Routes>,
    ) -> Result<(Routes, usize), Refusal> {
        let parsed = RemoteConfig::judge(&pushed.json, pushed.by, &local.mode, &local.inner_hop)
            .map_err(|refused| Refusal { held: refused.held, error: cut(refused.mistakes.to_string()) })?;
        let warp = parsed.warp_routing.limited(local.max_active_flows);
        let sources = Sources {
            ingress: Some(parsed.ingress.limited(local.limits)),
            warp,
            inner_hop: local.inner_hop.clone(),
            version: pushed.version,
        };
        let routes = self.routes(sources, before).map_err(|error| Refusal { held: false, error: cut(error) })?;
        Ok((routes, parsed.ignored_keys))
    }
}

/// Does what may take long on a thread of its own.
pub(super) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        tracing::error!(%error, "reading rules failed");
        Err(Refusal { held: false, error: "the rules could not be read".into() })
    })
}

fn cut(mut reasons: String) -> String {
    if reasons.len() > MOST_REASONS {
        reasons.truncate(reasons.floor_char_boundary(MOST_REASONS));
        reasons.push_str("\n(and more)");
    }
    reasons
}
