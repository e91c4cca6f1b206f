//! Reading `innerHop`: the section at the top, its entries, and what stands inline on a rule.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::callers::{references, unreadable};
use super::{CallersPatch, Hop, HopEntry, IdentitySource, InnerHop, MutualTls, NamedIdentity};
use crate::config::allowlist::ServicePattern;
use crate::config::hostname::Hostname;
use crate::config::mistakes::{Place, Report, nearest};
use crate::config::reader::{Reader, join};
use crate::config::rules::NOT_YET;
use crate::config::service::Service;
use crate::config::tree::{Node, Value};
use crate::config::{Callers, SecretRef};
use crate::identity::Expect;

/// Keys with which a hop is described, wherever that is.
const HOP: [&str; 5] = ["callers", "expect", "mutualTls", "originTrust", "present"];
/// The section at the top has these, too.
const TOP: [&str; 8] =
    ["callers", "expect", "mutualTls", "originTrust", "present", "identities", "privateNetwork", "rules"];
/// And an entry of `rules` these.
const ENTRY: [&str; 7] = ["callers", "expect", "mutualTls", "originTrust", "present", "hostname", "service"];

const MODES: [(&str, MutualTls); 4] = [
    ("always", MutualTls::Always),
    ("optional", MutualTls::Optional),
    ("passthrough", MutualTls::Passthrough),
    ("remote", MutualTls::Remote),
];

/// What one `innerHop` says; what is absent is inherited.
#[derive(Clone, Debug, Default)]
pub(crate) struct HopPatch {
    mutual_tls: Option<(Place, MutualTls)>,
    present: Option<(Place, String)>,
    expect: Option<(Place, Vec<Expect>)>,
    origin_trust: Option<(Place, Vec<SecretRef>)>,
    callers: Option<CallersPatch>,
}

/// An inline `innerHop` of a rule, and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Inline {
    pub(crate) place: Place,
    pub(crate) path: String,
    pub(crate) patch: HopPatch,
}

/// The section at the top, read.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) inner_hop: InnerHop,
    /// Where each identity stands.
    places: BTreeMap<String, Place>,
    /// The identities that something presents.
    used: BTreeSet<String>,
}

impl HopPatch {
    /// Reads the keys of a hop; other ones of `known` are left to the caller. Nothing in here is ever lenient.
    fn read_with<'n>(
        reader: &mut Reader<'_>,
        (node, place): (&'n Node, Place),
        path: &str,
        known: &[&'static str],
        mut other: impl FnMut(&mut Reader<'_>, &'static str, &'n Node),
    ) -> Self {
        let mut patch = Self::default();
        let lenient = std::mem::replace(&mut reader.lenient, false);
        let entries = if reader.filled(node, place, path) { reader.map(node, path) } else { None };
        for entry in entries.unwrap_or_default() {
            let Some(key) = reader.known(entry, path, known) else { continue };
            let (path, node) = (&join(path, key), &entry.node);
            if !reader.filled(node, entry.place, path) {
                continue;
            }
            match key {
                "callers" => patch.callers = Some(CallersPatch::read(reader, node, path, false)),
                "expect" => patch.expect = Some((entry.place, expect(reader, node, path))),
                "mutualTls" => {
                    // A word that cannot be read demands nothing here, so that it is the only mistake it makes.
                    let mode = reader.word(node, path, &MODES, "always, remote or optional (inline: or passthrough)");
                    patch.mutual_tls = Some((node.place, mode.unwrap_or(MutualTls::Optional)));
                }
                "originTrust" => {
                    let trust = references(reader, node, path);
                    if matches!(&node.value, Value::List(items) if items.is_empty()) {
                        reader.report.mistake(node.place, path, "an empty list trusts nobody; leave the key out");
                    }
                    patch.origin_trust = Some((entry.place, trust));
                }
                "present" => patch.present = reader.text(node, path).map(|name| (node.place, name)),
                key => other(reader, key, node),
            }
        }
        reader.lenient = lenient;
        patch
    }

    /// Key by key over what is inherited. An identity that nobody knows is reported.
    fn over(
        &self,
        inherited: &Hop,
        known: &BTreeMap<String, IdentitySource>,
        reader: &mut Reader<'_>,
        path: &str,
    ) -> Hop {
        let present = self.present.as_ref().map(|(place, name)| {
            let source = known.get(name).cloned().unwrap_or_else(|| {
                let path = join(path, "present");
                let message = "is no name among `innerHop.identities`";
                reader.report.mistake_near(*place, &path, message, nearest(name, known.keys().map(String::as_str)));
                IdentitySource { certificate: unreadable(), key: None }
            });
            NamedIdentity { name: name.clone(), source }
        });
        let callers = match &self.callers {
            Some(patch) => {
                let nobody = Callers::default();
                Some(Arc::new(patch.over(inherited.callers.as_deref().unwrap_or(&nobody), reader)))
            }
            None => inherited.callers.clone(),
        };
        Hop {
            mode: self.mutual_tls.map_or(inherited.mode, |(_, mode)| mode),
            present: present.or_else(|| inherited.present.clone()),
            expect: self.expect.as_ref().map_or_else(|| inherited.expect.clone(), |(_, expect)| expect.clone()),
            origin_trust: match &self.origin_trust {
                Some((_, trust)) => Some(trust.clone()),
                None => inherited.origin_trust.clone(),
            },
            callers,
        }
    }

    /// Reports what does nothing on services of this kind.
    fn check_effect(&self, service: &Service, no_tls_verify: bool, report: &mut Report, path: &str) {
        let given = [
            ("expect", self.expect.as_ref().map(|(place, _)| *place)),
            ("originTrust", self.origin_trust.as_ref().map(|(place, _)| *place)),
            ("present", self.present.as_ref().map(|(place, _)| *place)),
        ];
        for (key, place) in given {
            let Some(place) = place else { continue };
            let path = join(path, key);
            if !service.has_tls() {
                report.mistake(place, &path, format!("has no effect on {service}, to which adit speaks no TLS"));
            } else if key == "originTrust" && no_tls_verify {
                report.mistake(place, &path, "has no effect beside `noTLSVerify`");
            }
        }
    }
}

impl Inline {
    pub(crate) fn read(reader: &mut Reader<'_>, node: &Node, place: Place, path: &str) -> Self {
        let patch = HopPatch::read_with(reader, (node, place), path, &HOP, |_, _, _| {});
        Self { place, path: path.to_owned(), patch }
    }

    /// What holds on the rule.
    pub(super) fn over(&self, inherited: &Hop, inner_hop: &InnerHop, reader: &mut Reader<'_>) -> Hop {
        self.patch.over(inherited, &inner_hop.identities, reader, &self.path)
    }

    pub(super) fn check_effect(&self, service: &Service, no_tls_verify: bool, report: &mut Report) {
        self.patch.check_effect(service, no_tls_verify, report, &self.path);
    }

    pub(super) fn presents(&self) -> Option<&str> {
        self.patch.present.as_ref().map(|(_, name)| name.as_str())
    }
}

impl Section {
    /// Of a file without the section.
    pub(crate) fn absent() -> Self {
        Self { inner_hop: InnerHop::default(), places: BTreeMap::new(), used: BTreeSet::new() }
    }

    pub(crate) fn read(reader: &mut Reader<'_>, node: &Node, place: Place) -> Self {
        let mut section = Self::absent();
        let (mut identities, mut private, mut rules) = (None, None, None);
        let path = "innerHop";
        let patch = HopPatch::read_with(reader, (node, place), path, &TOP, |_, key, node| match key {
            "identities" => identities = Some(node),
            "privateNetwork" => private = Some(node),
            _ => rules = Some(node),
        });
        let lenient = std::mem::replace(&mut reader.lenient, false);
        if let Some(node) = identities {
            section.read_identities(reader, node, &join(path, "identities"));
        }
        let inner_hop = &mut section.inner_hop;
        let floor = Hop {
            mode: MutualTls::Remote,
            present: inner_hop
                .identities
                .get_key_value("default")
                .map(|(name, source)| NamedIdentity { name: name.clone(), source: source.clone() }),
            ..Hop::default()
        };
        let mut top = patch.over(&floor, &inner_hop.identities, reader, path);
        section.used.extend(top.present.as_ref().map(|identity| identity.name.clone()));
        if let Some((place, MutualTls::Passthrough)) = patch.mutual_tls {
            let message = "`passthrough` is said of one service: inline on a rule, or in an entry with a `service`";
            reader.report.mistake(place, &join(path, "mutualTls"), message);
            top.mode = MutualTls::Optional;
        }
        if let Some(node) = private {
            let words = [("allow", true), ("refuse", false)];
            let path = join(path, "privateNetwork");
            let allowed = reader.word(node, &path, &words, "refuse or allow");
            inner_hop.private_network = allowed.unwrap_or(false);
            if allowed == Some(false) && top.mode == MutualTls::Optional {
                let message = "has no effect under `mutualTls: optional`: streams without a rule pass there";
                reader.report.warning(node.place, &path, message);
            }
        }
        inner_hop.strips = true;
        if let Some(node) = rules {
            let path = join(path, "rules");
            for (at, item) in reader.list(node, &path).unwrap_or_default().iter().enumerate() {
                let (entry, presents) = entry(reader, item, &format!("{path}[{at}]"), &top, inner_hop);
                inner_hop.entries.push(entry);
                section.used.extend(presents);
            }
        }
        inner_hop.top = Some(Arc::new(top));
        reader.lenient = lenient;
        section
    }

    fn read_identities(&mut self, reader: &mut Reader<'_>, node: &Node, path: &str) {
        for entry in reader.map(node, path).unwrap_or_default() {
            let path = &join(path, &entry.key);
            // The name goes to logs and labels.
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            if entry.key.is_empty() || entry.key.len() > 64 || !entry.key.bytes().all(plain) {
                let message = "the name of an identity has 1 to 64 letters, digits, `-`, `_` and `.`";
                reader.report.mistake(entry.place, path, message);
            }
            // One that cannot be read is known all the same, so that its name is not reported where it stands.
            let source = identity(reader, (&entry.node, entry.place), path, true);
            let source = source.unwrap_or_else(|| IdentitySource { certificate: unreadable(), key: None });
            self.inner_hop.identities.insert(entry.key.clone(), source);
            self.places.insert(entry.key.clone(), entry.place);
        }
    }

    /// Takes over what was found while the rules were read, and reports identities that nothing presents.
    pub(crate) fn complete(mut self, inline: Vec<HopEntry>, used: BTreeSet<String>, report: &mut Report) -> InnerHop {
        self.used.extend(used);
        for (name, place) in &self.places {
            if !self.used.contains(name) {
                let path = join("innerHop.identities", name);
                report.warning(*place, &path, "nothing presents this identity");
            }
        }
        self.inner_hop.strips |= !inline.is_empty();
        self.inner_hop.inline = inline;
        self.inner_hop
    }
}

/// `{ certificate, key }`; with `issued`, a certificate from Vault would have its place here, too.
pub(crate) fn identity(
    reader: &mut Reader<'_>,
    (node, place): (&Node, Place),
    path: &str,
    issued: bool,
) -> Option<IdentitySource> {
    const KEYS: [&str; 3] = ["certificate", "key", "vaultPki"];
    if !reader.filled(node, place, path) {
        return None;
    }
    let known = if issued { &KEYS[..] } else { &KEYS[..2] };
    let before = reader.report.mistakes.len();
    let (mut certificate, mut key) = (None, None);
    for entry in reader.map(node, path)? {
        let Some(name) = reader.known(entry, path, known) else { continue };
        let (path, node) = (&join(path, name), &entry.node);
        if !reader.filled(node, entry.place, path) {
            continue;
        }
        match name {
            "certificate" => certificate = SecretRef::read(reader, node, path),
            "key" => key = SecretRef::read(reader, node, path),
            _ => reader.report.mistake(entry.place, path, NOT_YET),
        }
    }
    if certificate.is_none() && reader.report.mistakes.len() == before {
        let message =
            "`certificate` is missing: a PEM file with leaf, chain and key, or without the key and `key` beside it";
        reader.report.mistake(node.place, path, message);
    }
    Some(IdentitySource { certificate: certificate?, key })
}

fn expect(reader: &mut Reader<'_>, node: &Node, path: &str) -> Vec<Expect> {
    let items = reader.list(node, path).unwrap_or_default().iter().enumerate();
    let expected = items.filter_map(|(at, item)| {
        let path = &format!("{path}[{at}]");
        reader.filled(item, item.place, path).then(|| reader.parsed(item, path)).flatten()
    });
    expected.collect()
}

/// An entry of `innerHop.rules`, and the name of what it presents by itself.
fn entry(
    reader: &mut Reader<'_>,
    node: &Node,
    path: &str,
    top: &Hop,
    inner_hop: &InnerHop,
) -> (HopEntry, Option<String>) {
    let (mut hostname, mut services, mut at) = (None, Vec::new(), None);
    let patch = HopPatch::read_with(reader, (node, node.place), path, &ENTRY, |reader, key, node| {
        let path = &join(path, key);
        let Some(text) = reader.text(node, path) else { return };
        let outcome = if key == "hostname" {
            Hostname::parse(&text).map(|parsed| hostname = parsed).map_err(|error| error.to_string())
        } else {
            at = Some(node.place);
            ServicePattern::parse(&text).map(|pattern| services.push(pattern)).map_err(|error| error.to_string())
        };
        if let Err(message) = outcome {
            reader.report.mistake(node.place, path, message);
        }
    });
    let hop = patch.over(top, &inner_hop.identities, reader, path);
    if let Some((place, pattern)) = at.zip(services.first()) {
        if !pattern.like().has_hop() {
            let message = format!("has no effect on {pattern}, which adit answers itself");
            reader.report.mistake(place, &join(path, "service"), message);
        }
        patch.check_effect(pattern.like(), false, reader.report, path);
    }
    if let Some((place, MutualTls::Passthrough)) = patch.mutual_tls
        && !services.iter().any(|pattern| matches!(pattern.like(), Service::Tcp { .. }))
    {
        let message = "`passthrough` is for tcp, ssh, rdp and smb; the entry needs a `service` of that kind";
        reader.report.mistake(place, &join(path, "mutualTls"), message);
    }
    let presents = patch.present.map(|(_, name)| name);
    (HopEntry { hostname, services, hop: Arc::new(hop) }, presents)
}
