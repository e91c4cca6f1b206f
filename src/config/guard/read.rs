//! Reading `guard`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use super::Guard;
use crate::config::inner_hop::{CallersPatch, InnerHop, MutualTls, identity};
use crate::config::mistakes::Place;
use crate::config::origin::{self, OriginOptions};
use crate::config::reader::{Reader, join};
use crate::config::service::Service;
use crate::config::tree::{Entry, Node, Value};
use crate::config::{Callers, Hop, IdentitySource, RelayedBy, SecretRef};
use crate::identity::SpiffePattern;

const KEYS: [&str; 5] = ["callers", "certificate", "listen", "originRequest", "service"];

/// Reads the list. A guard that cannot be read is reported and left out.
pub(crate) fn read(
    reader: &mut Reader<'_>,
    section: &Entry,
    defaults: &OriginOptions,
    inner_hop: &InnerHop,
) -> Vec<Guard> {
    let node = &section.node;
    let lenient = std::mem::replace(&mut reader.lenient, false);
    let items = if reader.filled(node, section.place, "guard") { reader.list(node, "guard") } else { None };
    let mut taken = BTreeSet::new();
    let mut guards = Vec::new();
    for (at, item) in items.unwrap_or_default().iter().enumerate() {
        let path = &format!("guard[{at}]");
        if !reader.filled(item, item.place, path) {
            continue;
        }
        let Some(raw) = Raw::read(reader, item, path, lenient) else { continue };
        // Port 0 is a free one each time.
        if let Some((place, listen)) = raw.listen.filter(|(_, listen)| listen.port() != 0)
            && !taken.insert(listen)
        {
            reader.report.mistake(place, &join(path, "listen"), "another guard listens there");
        }
        guards.extend(raw.settle(reader, path, defaults, inner_hop));
    }
    reader.lenient = lenient;
    guards
}

/// What a guard says, and where.
struct Raw {
    place: Place,
    listen: Option<(Place, SocketAddr)>,
    certificate: Option<IdentitySource>,
    service: Option<(Place, Service, String)>,
    origin: origin::OriginPatch,
    callers: CallersPatch,
    keep_headers_from: Option<(Place, Vec<SpiffePattern>)>,
    /// Something is missing or cannot be read, which was reported.
    broken: bool,
}

impl Raw {
    fn read(reader: &mut Reader<'_>, node: &Node, path: &str, lenient: bool) -> Option<Self> {
        let before = reader.report.mistakes.len();
        let mut raw = Self {
            place: node.place,
            listen: None,
            certificate: None,
            service: None,
            origin: origin::OriginPatch::default(),
            callers: CallersPatch::at(node.place, path),
            keep_headers_from: None,
            broken: false,
        };
        let mut missing = BTreeSet::from(["certificate", "listen", "service"]);
        for entry in reader.map(node, path)? {
            let Some(key) = reader.known(entry, path, &KEYS) else { continue };
            let (path, node) = (&join(path, key), &entry.node);
            missing.remove(key);
            if !reader.filled(node, entry.place, path) {
                continue;
            }
            match key {
                "callers" => {
                    raw.callers = CallersPatch::read(reader, node, path, true);
                    raw.keep_headers_from = keep_headers_from(reader, node, path);
                }
                "certificate" => raw.certificate = certificate(reader, node, path),
                "listen" => raw.listen = listen(reader, node, path).map(|listen| (node.place, listen)),
                "originRequest" => {
                    // Not one of adit's sections, wherever it stands.
                    reader.lenient = lenient;
                    raw.origin = origin::read(reader, node, path);
                    reader.lenient = false;
                }
                _ => raw.service = service(reader, node, path).map(|(service, text)| (node.place, service, text)),
            }
        }
        for key in missing {
            reader.report.mistake(node.place, path, format!("`{key}` is missing"));
        }
        raw.broken = reader.report.mistakes.len() > before;
        Some(raw)
    }

    fn settle(
        self,
        reader: &mut Reader<'_>,
        path: &str,
        defaults: &OriginOptions,
        inner_hop: &InnerHop,
    ) -> Option<Guard> {
        let inherited = inner_hop.top.as_deref().and_then(|top| top.callers.as_deref());
        // Nobody relays anything to a guard: whoever connects shows the certificate.
        let inherited = Callers { relayed_by: RelayedBy::default(), ..inherited.cloned().unwrap_or_default() };
        let callers = self.callers.over(&inherited, reader);
        if !callers.knows_somebody() && callers.allow.is_none() {
            let message = "a guard needs `callers` with `trustAnchors` or `allowlisted`, of its own or of `innerHop`: \
                           without them nobody is known";
            reader.report.mistake(self.place, path, message);
        }
        let (service_place, service, spelling) = self.service?;
        let origin = defaults.patched(&self.origin);
        let mut hop = inner_hop.top.as_deref().map(|top| Hop { callers: None, ..top.clone() }).unwrap_or_default();
        // The same pod, in every mode; that a name leads there is still seen when it is dialled.
        if hop.mode == MutualTls::Always && service.is_local() {
            hop.mode = MutualTls::Remote;
        }
        for reason in hop.unsatisfied(&service, &origin) {
            reader.report.mistake(service_place, &join(path, "service"), reason);
        }
        if let Service::Tcp { .. } = service {
            self.callers.check_bytes(reader, &service);
            if let Some((place, _)) = &self.keep_headers_from {
                let message = format!("has no effect on {service}, which has no headers");
                reader.report.mistake(*place, &format!("{path}.callers.keepHeadersFrom"), message);
            }
        }
        let (_, listen) = self.listen?;
        if self.broken {
            return None;
        }
        Some(Guard {
            listen,
            certificate: self.certificate?,
            service,
            spelling,
            origin,
            hop: Arc::new(hop),
            callers: Arc::new(callers),
            keep_headers_from: self.keep_headers_from.map(|(_, ids)| ids).unwrap_or_default(),
            prefixes: Arc::default(),
        })
    }
}

fn listen(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<SocketAddr> {
    let text = reader.text(node, path)?;
    // Without a host: all addresses, of both families where the system lets one socket do that.
    let full = if text.starts_with(':') { format!("[::]{text}") } else { text };
    let address = full.parse().ok();
    if address.is_none() {
        let message = "must be an address and a port, such as 0.0.0.0:8443 or [::]:8443";
        reader.report.mistake(node.place, path, message);
    }
    address
}

/// A reference to a PEM bundle, or certificate and key apart.
fn certificate(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<IdentitySource> {
    if matches!(node.value, Value::Map(_)) && !SecretRef::is_keyed(node) {
        return identity(reader, (node, node.place), path, false);
    }
    SecretRef::read(reader, node, path).map(|certificate| IdentitySource { certificate, key: None })
}

fn service(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<(Service, String)> {
    let text = reader.text(node, path)?;
    let message = match Service::spelled(&text) {
        Ok((Service::Bastion | Service::SocksProxy | Service::HelloWorld | Service::Status(_), spelling)) => {
            format!("a guard stands in front of one service that it dials, not of {spelling}")
        }
        Ok(spelled) => return Some(spelled),
        Err(error) => error.to_string(),
    };
    reader.report.mistake(node.place, path, message);
    None
}

/// The key of `callers` that only a guard has.
fn keep_headers_from(reader: &mut Reader<'_>, callers: &Node, path: &str) -> Option<(Place, Vec<SpiffePattern>)> {
    let Value::Map(entries) = &callers.value else { return None };
    let entry = entries.iter().find(|entry| entry.key == "keepHeadersFrom")?;
    let path = &join(path, "keepHeadersFrom");
    if !reader.filled(&entry.node, entry.place, path) {
        return None;
    }
    let items = reader.list(&entry.node, path)?.iter().enumerate();
    let ids = items.filter_map(|(at, item)| {
        let path = &format!("{path}[{at}]");
        reader.filled(item, item.place, path).then(|| reader.parsed(item, path)).flatten()
    });
    let ids: Vec<_> = ids.collect();
    (!ids.is_empty()).then_some((entry.place, ids))
}
