//! What the edge pushes (protocol.md section 5.6).

use super::inner_hop::{InnerHop, Scope};
use super::json::{MAX_BYTES, parse_json};
use super::limits::Limits;
use super::mistakes::{Mistakes, Place, Warning};
use super::origin::{self, OriginOptions, WarpRouting};
use super::reader::{Dialect, Reader};
use super::remote_mode::RemoteConfigMode;
use super::rules::{self, Ingress};
use super::tree::{Node, Value};

/// A pushed configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteConfig {
    /// The rules; without any in the push a single one that answers 503.
    pub ingress: Ingress,
    /// Private-network settings, the local flow limit not yet applied
    /// ([`WarpRouting::limited`]).
    pub warp_routing: WarpRouting,
    /// Keys that nothing reads.
    pub ignored_keys: usize,
    /// What works but is probably not meant.
    pub warnings: Vec<Warning>,
}

/// Who pushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushedBy {
    /// An edge that said nothing: its rules are cloudflared's. A list of services is a mistake there, and adit's own
    /// keys are unknown ones.
    AnyEdge,
    /// An edge that confirmed adit's feature at registration: adit's own keys count.
    AditEdge,
}

/// Why a push is not in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Every reason.
    pub mistakes: Mistakes,
    /// Only what the file says of pushes holds it back, in `remoteConfig` or `innerHop`: another setting there would let
    /// it through, or let it be read at least.
    pub held: bool,
}

impl RemoteConfig {
    /// Reads the JSON of a push by [`PushedBy::AnyEdge`] that may name any service, to a connector without `innerHop`.
    ///
    /// # Errors
    /// As [`RemoteConfig::parse_from`].
    pub fn parse(json: &[u8]) -> Result<Self, Mistakes> {
        Self::parse_from(json, PushedBy::AnyEdge)
    }

    /// Reads the JSON of a push that may name any service, to a connector without `innerHop`.
    ///
    /// # Errors
    /// Every mistake at once.
    pub fn parse_from(json: &[u8], by: PushedBy) -> Result<Self, Mistakes> {
        Self::judge(json, by, &RemoteConfigMode::Accept, &InnerHop::default()).map_err(|refused| refused.mistakes)
    }

    /// Reads the JSON of a push under what the file's `remoteConfig` and `innerHop` say. Its rules are held to the
    /// file's hops as the file's own are; where there are entries, a rule that none of them is for refuses every
    /// request.
    ///
    /// # Errors
    /// Every reason at once: the push is refused whole, and the edge is told all of them.
    pub fn judge(json: &[u8], by: PushedBy, mode: &RemoteConfigMode, inner_hop: &InnerHop) -> Result<Self, Refused> {
        let mut report = super::mistakes::Report::new("pushed configuration");
        if *mode == RemoteConfigMode::Ignore {
            report.mistake(Place::default(), "", "this connector ignores what is pushed (remoteConfig: ignore)");
            return Err(Refused { mistakes: report.into_mistakes(), held: json.len() <= MAX_BYTES });
        }
        let root = parse_json(json, &mut report);
        let (allowed, own_keys) = (mode.allowlist(), by == PushedBy::AditEdge);
        let mut reader = Reader { report: &mut report, dialect: Dialect::Pushed, lenient: false, allowed, own_keys };
        let (ingress, warp_routing) = root.map(|root| top_level(&mut reader, &root, inner_hop)).unwrap_or_default();
        if !report.mistakes.is_empty() {
            return Err(Refused { held: report.mistakes.len() == report.disallowed, mistakes: report.into_mistakes() });
        }
        Ok(Self {
            ingress: ingress.unwrap_or_else(Ingress::unconfigured),
            warp_routing,
            ignored_keys: report.ignored,
            warnings: report.warnings,
        })
    }
}

fn top_level(reader: &mut Reader<'_>, root: &Node, inner_hop: &InnerHop) -> (Option<Ingress>, WarpRouting) {
    let known = ["ingress", "originRequest", "warp-routing", "limits"];
    let known = if reader.own_keys { &known[..] } else { &known[..3] };
    let mut nodes: [Option<&Node>; 4] = [None; 4];
    for entry in reader.map(root, "").unwrap_or_default() {
        if rules::local_only(reader, entry, "") {
            continue;
        }
        let Some(key) = reader.known(entry, "", known) else {
            continue;
        };
        if let Some(at) = known.iter().position(|name| *name == key) {
            // Of several spellings the last one counts, as in Go's decoder.
            nodes[at] = Some(&entry.node);
        }
    }
    let [rules, defaults, warp_routing, limits] = nodes;
    let patch = defaults.map(|node| origin::read(reader, node, "originRequest")).unwrap_or_default();
    let defaults = OriginOptions::default().patched(&patch);
    let warp_routing = match warp_routing {
        Some(node) => WarpRouting::read(reader, node, "warp-routing"),
        None => WarpRouting::default(),
    };
    let ingress = rules.and_then(|node| match &node.value {
        Value::List(items) if items.is_empty() => None,
        _ => rules::read(reader, node, &defaults, &mut Scope::new(inner_hop)),
    });
    let limits = limits.map(|node| Limits::read(reader, node, "limits")).unwrap_or_default();
    let ingress = ingress.map(|ingress| ingress.limited(limits));
    let unconfigured = || Ingress { defaults: defaults.clone(), ..Ingress::unconfigured() };
    (Some(ingress.unwrap_or_else(unconfigured)), warp_routing)
}
