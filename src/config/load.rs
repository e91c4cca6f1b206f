//! From flags, environment and file to a [`Config`]: everything is read, then all mistakes are
//! reported, then, if there are none, the values are put together.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::flags::Flags;
use super::guard;
use super::inner_hop::{Scope, Section, ServiceAt};
use super::layers::{self, Layer};
use super::limits::Limits;
use super::mistakes::{Mistakes, Place, Report, Warning, distance, folded, nearest};
use super::origin::{self, OriginOptions, WarpRouting};
use super::reader::{Dialect, Reader, join};
use super::rules::{self, Ingress, NOT_YET};
use super::secret_source::{self, FileSecrets, Sources};
use super::settings::{Role, SETTINGS, find};
use super::settle::Parts;
use super::tree::{self, Entry, Node, Value};
use super::{Config, Guard, InnerHop, RemoteConfigMode, remote_mode, single};

/// A configuration, what is odd about it, and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The checked settings.
    pub config: Config,
    /// What works but is probably not meant; to be shown once.
    pub warnings: Vec<Warning>,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// The single-origin flags or keys that the file's rules make ineffective. `ingress validate`
    /// calls that an error, as cloudflared does.
    pub ineffective_origin: Vec<&'static str>,
}

/// How a configuration was asked for, to read it again.
#[derive(Clone, Debug)]
pub struct Source {
    /// Flags, which win over everything.
    pub flags: Flags,
    /// Looks up a variable.
    pub env: fn(&str) -> Option<String>,
    /// Where a file is looked for when none is named.
    pub search: Vec<PathBuf>,
}

impl Source {
    /// Reads the configuration for the first time.
    ///
    /// # Errors
    /// Those of [`load`].
    pub fn load(&self) -> Result<Loaded, Mistakes> {
        load(&self.flags, self.env, &self.search)
    }

    /// Reads the same file again; without one, looks for one again. A file that is gone or empty is a mistake here:
    /// somebody is about to write it, and does not mean a connector without rules.
    ///
    /// # Errors
    /// Those of [`load`].
    pub fn reload(&self, file: Option<&Path>) -> Result<Loaded, Mistakes> {
        match file {
            Some(path) => from_file(path, &self.flags, self.env, true),
            None => self.load(),
        }
    }
}

/// Reads the file that `--config` names, else the first `config.yml` or `config.yaml` in `search`,
/// and puts environment and flags on top. `env` looks up a variable.
///
/// # Errors
/// Every mistake in flags, environment and file at once.
pub fn load(flags: &Flags, env: impl Fn(&str) -> Option<String>, search: &[PathBuf]) -> Result<Loaded, Mistakes> {
    let file = match flags.config_file() {
        Some(path) => Some(PathBuf::from(path)),
        None => search
            .iter()
            .flat_map(|directory| [directory.join("config.yml"), directory.join("config.yaml")])
            .find(|path| path.is_file()),
    };
    match file {
        Some(path) => from_file(&path, flags, env, false),
        None => parse_file("configuration", "", flags, env),
    }
}

fn from_file(
    path: &Path,
    flags: &Flags,
    env: impl Fn(&str) -> Option<String>,
    again: bool,
) -> Result<Loaded, Mistakes> {
    let name = path.display().to_string();
    let wrong = |message: String| {
        let mut report = Report::new(&*name);
        report.mistake(Place::default(), "", message);
        report.into_mistakes()
    };
    let text = read(path).map_err(wrong)?;
    if again && text.trim().is_empty() {
        return Err(wrong("is empty".to_owned()));
    }
    let mut loaded = parse_file(&name, &text, flags, env)?;
    loaded.file = Some(path.to_owned());
    Ok(loaded)
}

/// The same for a text that has been read already; `name` stands before each mistake in it.
///
/// # Errors
/// Every mistake in flags, environment and text at once.
pub fn parse_file(
    name: &str,
    text: &str,
    flags: &Flags,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Loaded, Mistakes> {
    let env: &dyn Fn(&str) -> Option<String> = &env;
    let mut report = Report::new(name);
    let file = match tree::parse_yaml(text, &mut report) {
        Some(root) => top_level(&root, flags.lenient(), &mut report),
        None => File::default(),
    };
    let mut command_line = Report::new("command line");
    let mut environment = Report::new("environment");
    let flag_layer = layers::from_flags(flags, &mut command_line);
    let env_layer = layers::from_env(env, &mut environment);
    let stacked =
        layers::stack([(&file.layer, name), (&env_layer, "environment"), (&flag_layer, "command line")], &mut report);
    let tunnel = flags.tunnel.clone().or_else(|| file.tunnel.clone()).filter(|tunnel| !tunnel.is_empty());
    let sources = Sources {
        flags,
        env,
        file: file.secrets,
        token_file: stacked.token_file.clone(),
        credentials_file: stacked.credentials_file.clone(),
        tunnel: tunnel.is_some(),
    };
    let secret = sources.settle(&mut command_line);
    let mut ineffective_origin = Vec::new();
    let ingress = match file.ingress {
        Some(ingress) => {
            let given = |key: &&str| [&file.layer, &env_layer, &flag_layer].iter().any(|layer| layer.contains_key(key));
            let origin = SETTINGS.iter().filter(|setting| setting.role == Role::Origin);
            ineffective_origin = origin.map(|setting| setting.key).filter(given).collect();
            for key in &ineffective_origin {
                let message = "has no effect because the file has ingress rules";
                report.warning(Place::default(), key, message);
            }
            Some(ingress)
        }
        None => {
            let single = single::origin(&stacked, &file.defaults, &mut command_line);
            single.map(|single| held(single, &file.inner_hop, &mut command_line))
        }
    };
    let reported = reported([&file.layer, &env_layer, &flag_layer], flags, env);
    let limits = file.limits;
    let ingress = ingress.map(|ingress| ingress.limited(limits));
    let (inner_hop, guards) = (file.inner_hop, file.guards);
    let parts = Parts { stacked, tunnel, secret, ingress, limits, inner_hop, guards, reported };
    let mut config = parts.settle(file.warp_routing, file.remote_config, &mut report);
    config.warp_routing = config.warp_routing.limited(config.max_active_flows);

    let warnings = [&command_line.warnings, &environment.warnings, &report.warnings];
    let warnings = warnings.into_iter().flatten().cloned().collect();
    let mut mistakes = command_line.into_mistakes();
    mistakes.0.extend(environment.into_mistakes().0);
    mistakes.0.extend(report.into_mistakes().0);
    if mistakes.0.is_empty() { Ok(Loaded { config, warnings, file: None, ineffective_origin }) } else { Err(mistakes) }
}

/// The one service of the flags, under the file's `innerHop`.
fn held(mut single: Ingress, inner_hop: &InnerHop, report: &mut Report) -> Ingress {
    let mut scope = Scope::new(inner_hop);
    let mut reader = Reader { report, dialect: Dialect::File, lenient: false, allowed: None, own_keys: true };
    for rule in &mut single.rules {
        let at = ServiceAt { place: Place::default(), path: "the service of the flags" };
        rule.hops = scope.hops(&mut reader, rule, at, None);
    }
    single
}

/// Directories in which cloudflared looks for its configuration and for credentials, in order.
pub fn search_directories(home: Option<&Path>) -> Vec<PathBuf> {
    let of_home = [".cloudflared", ".cloudflare-warp", "cloudflare-warp"];
    let of_home = home.into_iter().flat_map(|home| of_home.map(|name| home.join(name)));
    of_home.chain(["/etc/cloudflared", "/usr/local/etc/cloudflared"].map(PathBuf::from)).collect()
}

const MAX_BYTES: u64 = 4 << 20;

fn read(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| format!("cannot be opened: {error}"))?;
    let mut bytes = Vec::new();
    // A device or a pipe has no size to ask for, so the limit is on what is read.
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("larger than {MAX_BYTES} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}

/// What the file says.
#[derive(Default)]
struct File {
    layer: Layer,
    secrets: FileSecrets,
    tunnel: Option<String>,
    defaults: OriginOptions,
    ingress: Option<Ingress>,
    warp_routing: WarpRouting,
    remote_config: RemoteConfigMode,
    limits: Limits,
    inner_hop: InnerHop,
    guards: Vec<Guard>,
}

/// Sections that only adit has.
const OWN: [&str; 7] = ["egressProxy", "guard", "innerHop", "limits", "remoteConfig", "strictPermissions", "vault"];
/// Top-level keys beside the table of settings.
const STRUCTURE: [&str; 4] = ["ingress", "originRequest", "tunnel", "warp-routing"];

fn top_level(root: &Node, lenient: bool, report: &mut Report) -> File {
    let mut file = File::default();
    let mut reader = Reader { report, dialect: Dialect::File, lenient, allowed: None, own_keys: true };
    let Value::Map(entries) = &root.value else {
        if !matches!(root.value, Value::Null) {
            reader.report.mistake(root.place, "", "a configuration is a mapping of keys to values");
        }
        return file;
    };
    // The defaults come first, wherever in the file they stand.
    if let Some(entry) = entries.iter().find(|entry| entry.key == "originRequest") {
        let patch = origin::read(&mut reader, &entry.node, "originRequest");
        file.defaults = file.defaults.patched(&patch);
    }
    let section = entries.iter().find(|entry| entry.key == "innerHop");
    let section = section.map_or_else(Section::absent, |entry| Section::read(&mut reader, &entry.node, entry.place));
    let mut scope = Scope::new(&section.inner_hop);
    for entry in entries {
        let Entry { place, key, node } = entry;
        match &**key {
            "originRequest" | "innerHop" => {}
            "guard" => file.guards = guard::read(&mut reader, entry, &file.defaults, &section.inner_hop),
            "ingress" => file.ingress = rules::read(&mut reader, node, &file.defaults, &mut scope),
            "remoteConfig" => file.remote_config = remote_mode::read(&mut reader, node),
            "limits" => file.limits = Limits::read(&mut reader, node, key),
            "token" => file.secrets.token = secret_source::token(&mut reader, node),
            "token-file" => file.secrets.token_file = secret_source::token_file(&mut reader, node),
            "credentials-contents" => {
                let text = reader.text(node, key).filter(|text| !text.is_empty());
                file.secrets.credentials_contents = text.map(crate::credentials::Secret::new);
            }
            "tunnel" => file.tunnel = reader.text(node, key),
            "warp-routing" => file.warp_routing = WarpRouting::read(&mut reader, node, key),
            own if OWN.contains(&own) => reader.report.mistake(*place, own, NOT_YET),
            other => match find(other) {
                Some(setting) if setting.role == Role::NoEffect => {
                    reader.report.warning(*place, other, "has no effect here");
                }
                Some(setting) if setting.role != Role::Command => {
                    if let Some(given) = layers::from_file(&mut reader, setting, node) {
                        file.layer.insert(setting.key, given);
                    }
                }
                _ => unknown(&mut reader, entry),
            },
        }
    }
    let Scope { inline, used, .. } = scope;
    file.inner_hop = section.complete(inline, used, reader.report);
    file.inner_hop.strips |= !file.guards.is_empty();
    file.inner_hop.note_prefixes(file.guards.iter().map(|guard| &guard.callers));
    for guard in &mut file.guards {
        guard.prefixes = file.inner_hop.prefixes.clone();
    }
    file
}

/// An unknown top-level key is cloudflared's business, unless it is one of adit's sections
/// misspelt: those decide what is let through, so that a typing mistake must not switch one off.
fn unknown(reader: &mut Reader<'_>, entry: &Entry) {
    let word = folded(&entry.key);
    let length = word.chars().count();
    let near = |own: &&&str| own.len().abs_diff(length) <= 2 && distance(&word, &folded(own)) <= 2;
    let section = OWN.iter().find(near);
    if let Some(section) = section {
        reader.report.unknown(entry.place, &join("", &entry.key), Some((*section).to_owned()));
        return;
    }
    let settings = SETTINGS.iter().map(|setting| setting.key);
    let known = OWN.into_iter().chain(STRUCTURE).chain(settings);
    let nearest = if reader.report.full() { None } else { nearest(&entry.key, known) };
    reader.report.warning_near(entry.place, &join("", &entry.key), "unknown key, ignored", nearest);
}

/// Flags that cloudflared reports with its local rules (protocol.md section 5.5).
const REPORTED: [&str; 12] = [
    "autoupdate-freq",
    "edge-bind-address",
    "edge-ip-version",
    "loglevel",
    "max-active-flows",
    "metrics",
    "metrics-update-freq",
    "no-autoupdate",
    "origincert",
    "protocol",
    "retries",
    "transport-loglevel",
];

fn reported(layers: [&Layer; 3], flags: &Flags, env: &dyn Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let value = |key: &&str| {
        let layered = layers.iter().rev().find_map(|layer| layer.get(key)).map(|given| given.shown());
        // Those without effect are in no layer, and are reported as they were written.
        let written = || {
            let flag = flags.values(key).last().cloned();
            flag.or_else(|| Some(layers::variable(find(key)?, env)?.1))
        };
        let text = layered.or_else(written).filter(|text| !text.is_empty())?;
        Some(((*key).to_owned(), text))
    };
    REPORTED.iter().filter_map(value).collect()
}
