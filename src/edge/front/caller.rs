//! A visitor's certificate: what the handshake showed, what a hostname demands of it, and how it is relayed (RFC 9440).

use std::{fmt::Write, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use rustls::pki_types::CertificateDer;

use super::{Visitor, head::Refusal};
use crate::{
    code::Code,
    edge::{
        Shared,
        certificates::{ClientAuth, Entry},
    },
    tls::{
        callers::Shown,
        possession::{LARGEST, size},
    },
};

const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
const CLIENT_CERT_CHAIN: HeaderName = HeaderName::from_static("client-cert-chain");

/// A byte sequence of no bytes: there was a certificate, and nothing about it is proven. No header at all would say that
/// there was none.
const UNUSABLE: HeaderValue = HeaderValue::from_static("::");

const WRONG_CONNECTION: Refusal = (StatusCode::MISDIRECTED_REQUEST, "wrong-connection");

/// What a visitor's TLS handshake came to, resumed ones included: a session keeps what its first handshake showed.
#[derive(Debug)]
pub(super) struct Handshake {
    /// What the server name was asked for; `None` without a name, or with one that no entry is for.
    asked: Option<Arc<Entry>>,
    presented: Presented,
}

/// A certificate whose key the visitor has.
#[derive(Debug)]
enum Presented {
    Nothing,
    /// One that is not relayed, since it is too large.
    TooLarge(Relay),
    Shown(Box<(Shown, Relay)>),
}

/// Headers for connectors; a value is a reference to bytes that were written once for the connection.
#[derive(Debug)]
pub(super) struct Relay {
    leaf: HeaderValue,
    chain: Option<HeaderValue>,
}

impl Relay {
    /// Never the chain without the leaf (RFC 9440 §2.3).
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        headers.insert(CLIENT_CERT, self.leaf.clone());
        if let Some(chain) = &self.chain {
            headers.insert(CLIENT_CERT_CHAIN, chain.clone());
        }
    }

    fn new(leaf: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> Option<Self> {
        let list = |certificates: &[CertificateDer<'_>]| {
            let mut text = String::with_capacity(certificates.iter().map(|der| der.len().div_ceil(3) * 4 + 4).sum());
            for (at, der) in certificates.iter().enumerate() {
                let comma = if at > 0 { ", " } else { "" };
                // Writing to a String cannot fail.
                let _ = write!(text, "{comma}:{}:", STANDARD.encode(der));
            }
            let mut value = HeaderValue::try_from(text).ok()?;
            // One visitor's certificate would drive other headers out of HPACK's table.
            value.set_sensitive(true);
            Some(value)
        };
        let leaf = list(std::slice::from_ref(leaf))?;
        Some(Self { leaf, chain: if chain.is_empty() { None } else { Some(list(chain)?) } })
    }
}

impl Handshake {
    pub(super) fn new(asked: Option<Arc<Entry>>, certificates: Option<&[CertificateDer<'static>]>) -> Self {
        let presented = match certificates {
            None | Some([]) => Presented::Nothing,
            Some([leaf, chain @ ..]) => {
                let fits = size(leaf, chain) <= LARGEST;
                match fits.then(|| Relay::new(leaf, chain)).flatten() {
                    Some(relay) => {
                        Presented::Shown(Box::new((Shown { leaf: leaf.clone(), chain: chain.into() }, relay)))
                    }
                    None => Presented::TooLarge(Relay { leaf: UNUSABLE, chain: None }),
                }
            }
        };
        Self { asked, presented }
    }
}

/// What a request for `name` carries of the certificate of its connection.
///
/// # Errors
///
/// When the hostname demands more: of the connection 421, of the certificate 403.
pub(super) fn certificate<'a>(shared: &Shared, visitor: &'a Visitor, name: &str) -> Result<Option<&'a Relay>, Refusal> {
    let demanded = shared.certificates.entry(name).filter(|entry| entry.client_auth() != ClientAuth::Off);
    // What was shown for another name is not this one's affair.
    let Some(entry) = demanded else { return Ok(None) };
    let refused = |code: Code| Err((code.status(), code.as_str()));
    let missing = || if entry.client_auth() == ClientAuth::Required { refused(Code::CallerMissing) } else { Ok(None) };
    // In clear there is no certificate, and no other connection would help.
    let Some(handshake) = &visitor.handshake else { return missing() };
    if !handshake.asked.as_ref().is_some_and(|asked| asked.covers(entry)) {
        return Err(WRONG_CONNECTION);
    }
    match (&handshake.presented, entry.trust()) {
        (Presented::Nothing, _) => missing(),
        (Presented::TooLarge(relay), None) if entry.client_auth() == ClientAuth::Optional => Ok(Some(relay)),
        (Presented::TooLarge(_), _) => {
            tracing::info!(host = name, "a visitor's certificates are larger than {LARGEST} bytes");
            refused(Code::CallerInvalid)
        }
        (Presented::Shown(shown), trust) => match trust.map_or(Ok(()), |trust| trust.check(&shown.0)) {
            Ok(()) => Ok(Some(&shown.1)),
            Err(error) => {
                tracing::info!(host = name, %error, "a visitor's certificate is not valid");
                refused(Code::CallerInvalid)
            }
        },
    }
}
