//! Three visitors and what must become of them.

use std::{net::SocketAddr, path::Path};

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use rustls::pki_types::ServerName;

use super::{
    LIMIT,
    laboratory::{CONNECTOR, FORGED, Laboratory, SERVICE, SERVICE_NAME, VISITOR},
    service::{Arrived, SharedSeen, lock},
    visitor::Visitor,
};
use crate::code::{ADIT_ERROR, Code};

/// Where the visitor's certificate is told to the service.
const CALLER: HeaderName = HeaderName::from_static("x-client-cert-spiffe-id");
const VERIFIED: HeaderName = HeaderName::from_static("x-client-cert-chain-verified");

/// What is asked, and of whom.
pub(super) struct Scene<'a> {
    pub(super) edge: SocketAddr,
    /// The authority of the edge's own certificates.
    pub(super) edge_ca: &'a Path,
    pub(super) socket: &'a Path,
    pub(super) laboratory: &'a Laboratory,
    pub(super) seen: &'a SharedSeen,
    /// The connector's id.
    pub(super) connector: &'a str,
}

impl Scene<'_> {
    /// Asks as everybody, and checks every hop.
    ///
    /// # Errors
    ///
    /// When the visitor with a certificate gets no answer.
    pub(super) async fn prove(&self, say: fn(&str)) -> anyhow::Result<bool> {
        let nonce = uuid::Uuid::new_v4().to_string();
        let path = format!("/proof/{nonce}");
        let edge_name = ServerName::try_from("localhost")?;
        let visitor = Visitor::new(self.edge_ca, Some(&self.laboratory.visitor), edge_name.clone())?;
        let forged = HeaderMap::from_iter([
            (CALLER, HeaderValue::from_static(FORGED)),
            (HeaderName::from_static("client-cert"), HeaderValue::from_static(":Zm9yZ2Vk:")),
            (HeaderName::from_static("cf-warp-tag-id"), HeaderValue::from_static("forged")),
        ]);
        let answer = in_time(visitor.get(self.edge, &path, forged)).await?;
        let arrived = self.arrived(&path);
        let text = |name: &HeaderName| one(arrived.as_ref(), name);
        let ray = text(&HeaderName::from_static("cf-ray"));
        let peer = arrived.as_ref().map(|arrived| arrived.peer.clone()).unwrap_or_default();
        let pretended = arrived.as_ref().is_some_and(|arrived| {
            arrived
                .headers
                .values()
                .any(|value| [&b"forged"[..], FORGED.as_bytes(), b":Zm9yZ2Vk:"].contains(&value.as_bytes()))
        });

        let nobody = Visitor::new(self.edge_ca, None, edge_name)?;
        let path_of_nobody = format!("/nobody/{nonce}");
        let turned_away = in_time(nobody.get(self.edge, &path_of_nobody, HeaderMap::new())).await?;
        let missing = turned_away.status() == Code::CallerMissing.status()
            && turned_away.headers().get(ADIT_ERROR).is_some_and(|code| code == Code::CallerMissing.as_str());
        let unseen = self.arrived(&path_of_nobody).is_none();

        let served = self.served_past_the_tunnel().await?;
        let status = answer.status();
        let body = answer.into_body();
        let checks = [
            (
                "hop 1, visitor to edge",
                status.is_success(),
                format!("{VISITOR} showed its certificate; GET {path} answered {status}"),
            ),
            ("hop 2, the tunnel", ray.ends_with("-ADIT"), format!("the edge's ray {ray} arrived")),
            (
                "hop 3, who asks",
                peer.id == CONNECTOR,
                format!("the service demanded a certificate and saw {}, {}", peer.subject, peer.id),
            ),
            ("hop 3, who answers", status.is_success(), format!("{SERVICE} is expected, and got the request")),
            (
                "the visitor's certificate",
                text(&CALLER) == VISITOR && text(&VERIFIED) == "true",
                format!("verified by the connector; {CALLER}: {}", text(&CALLER)),
            ),
            (
                "what the visitor forged",
                !pretended && text(&HeaderName::from_static("cf-warp-tag-id")) == self.connector,
                format!("{CALLER}: {FORGED} was sent and did not arrive, nor did others"),
            ),
            (
                "a visitor without a certificate",
                missing && unseen,
                format!("{} {}, and the service was not asked", turned_away.status(), Code::CallerMissing.as_str()),
            ),
            (
                "past the tunnel",
                served == [false, false, true],
                "the service's socket answers nobody without a certificate, nor the visitor; it answers a workload"
                    .to_owned(),
            ),
            (
                "the answer back",
                body.windows(nonce.len()).any(|window| window == nonce.as_bytes()),
                "it holds this request's nonce".to_owned(),
            ),
        ];
        for (what, ok, how) in &checks {
            say(&format!("{} {what}: {how}", if *ok { "ok  " } else { "FAIL" }));
        }
        Ok(checks.iter().all(|(_, ok, _)| *ok))
    }

    /// Whether the service's socket answers a stranger, the visitor, and, so that this proves something, a workload.
    async fn served_past_the_tunnel(&self) -> anyhow::Result<[bool; 3]> {
        let Laboratory { visitor, connector, workloads, .. } = self.laboratory;
        let mut served = [false; 3];
        for (served, bundle) in served.iter_mut().zip([None, Some(visitor.as_path()), Some(connector.as_path())]) {
            let somebody = Visitor::new(workloads, bundle, ServerName::try_from(SERVICE_NAME)?)?;
            *served = tokio::time::timeout(LIMIT, somebody.intrude(self.socket)).await.context("no end")?.is_ok();
        }
        Ok(served)
    }

    fn arrived(&self, path: &str) -> Option<Arrived> {
        lock(self.seen).arrived.iter().find(|arrived| arrived.path == path).cloned()
    }
}

/// The value of a header that is there once.
fn one(arrived: Option<&Arrived>, name: &HeaderName) -> String {
    let values: Vec<_> = arrived.iter().flat_map(|arrived| arrived.headers.get_all(name)).collect();
    match values[..] {
        [only] => only.to_str().unwrap_or("?").to_owned(),
        _ => format!("({} times)", values.len()),
    }
}

async fn in_time(asking: impl Future<Output = anyhow::Result<Response<Bytes>>>) -> anyhow::Result<Response<Bytes>> {
    tokio::time::timeout(LIMIT, asking).await.context("no answer")?
}
