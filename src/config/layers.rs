//! File below environment below flags. What enters the layers has been checked where its place was
//! still known, because the crate that stacks them turns texts into numbers and back.

use std::collections::BTreeMap;

use config::{Map, Source, Value, ValueKind};
use serde::Deserialize;

use super::flags::Flags;
use super::mistakes::{Place, Report};
use super::reader::Reader;
use super::settings::{Given, Kind, Role, SETTINGS, Setting, find};
use super::tree;

/// Checked values of one origin, by key.
pub(crate) type Layer = BTreeMap<&'static str, Given>;

/// Everything scalar after stacking. Durations are nanoseconds.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct Stacked {
    pub(crate) bastion: bool,
    pub(crate) cacert: Option<String>,
    pub(crate) credentials_file: Option<String>,
    pub(crate) edge: Vec<String>,
    pub(crate) edge_bind_address: Option<String>,
    pub(crate) edge_ip_version: Option<String>,
    pub(crate) features: Vec<String>,
    pub(crate) grace_period: Option<u64>,
    pub(crate) ha_connections: Option<u8>,
    pub(crate) hello_world: bool,
    pub(crate) http2_origin: Option<bool>,
    pub(crate) http_host_header: Option<String>,
    pub(crate) log_directory: Option<String>,
    pub(crate) logfile: Option<String>,
    pub(crate) loglevel: Option<String>,
    pub(crate) management_hostname: Option<String>,
    pub(crate) match_sni_to_host: Option<bool>,
    pub(crate) max_active_flows: Option<u64>,
    pub(crate) metrics: Option<String>,
    pub(crate) no_chunked_encoding: Option<bool>,
    pub(crate) no_tls_verify: Option<bool>,
    pub(crate) origin_ca_pool: Option<String>,
    pub(crate) origin_server_name: Option<String>,
    pub(crate) output: Option<String>,
    pub(crate) pidfile: Option<String>,
    pub(crate) post_quantum: bool,
    pub(crate) protocol: Option<String>,
    pub(crate) proxy_address: Option<String>,
    pub(crate) proxy_connect_timeout: Option<u64>,
    pub(crate) proxy_keepalive_connections: Option<usize>,
    pub(crate) proxy_keepalive_timeout: Option<u64>,
    pub(crate) proxy_no_happy_eyeballs: Option<bool>,
    pub(crate) proxy_port: Option<u16>,
    pub(crate) proxy_tcp_keepalive: Option<u64>,
    pub(crate) proxy_tls_timeout: Option<u64>,
    pub(crate) quic_connection_level_flow_control_limit: Option<u64>,
    pub(crate) quic_disable_pmtu_discovery: bool,
    pub(crate) quic_stream_level_flow_control_limit: Option<u64>,
    pub(crate) region: Option<String>,
    pub(crate) retries: Option<u8>,
    pub(crate) rpc_timeout: Option<u64>,
    pub(crate) socks5: bool,
    pub(crate) tag: Vec<String>,
    pub(crate) token_file: Option<String>,
    pub(crate) unix_socket: Option<String>,
    pub(crate) url: Option<String>,
}

/// One layer in the form that the stacking crate takes.
#[derive(Clone, Debug)]
struct Floor(Map<String, Value>);

impl Floor {
    fn new(layer: &Layer, origin: &str) -> Self {
        let origin = origin.to_owned();
        let value = |given: &Given| match given.clone() {
            Given::Bool(value) => ValueKind::from(value),
            Given::Int(value) => ValueKind::from(value),
            Given::Nanos(value) => ValueKind::from(value),
            Given::Text(value) => ValueKind::from(value),
            Given::Texts(values) => ValueKind::from(values),
        };
        let entry = |(key, given): (&&str, &Given)| ((*key).to_owned(), Value::new(Some(&origin), value(given)));
        Self(layer.iter().map(entry).collect())
    }
}

impl Source for Floor {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}

/// Stacks the layers, lowest first.
pub(crate) fn stack(layers: [(&Layer, &str); 3], report: &mut Report) -> Stacked {
    let builder = layers
        .into_iter()
        .fold(config::Config::builder(), |builder, (layer, origin)| builder.add_source(Floor::new(layer, origin)));
    let stacked = builder.build().and_then(config::Config::try_deserialize);
    stacked.unwrap_or_else(|error| {
        // Every value has been checked against the type it is read into.
        report.mistake(Place::default(), "", format!("the layers do not fit: {error}"));
        Stacked::default()
    })
}

/// What the command line says, secrets and commands aside.
pub(crate) fn from_flags(flags: &Flags, report: &mut Report) -> Layer {
    if let Some(lenient) = find("lenient") {
        lenient.given(flags.values("lenient"), report, "--lenient");
    }
    let given = |setting: &'static Setting, report: &mut Report| {
        let name = format!("--{}", setting.key);
        let texts = flags.values(setting.key);
        if setting.role == Role::NoEffect && !texts.is_empty() {
            report.warning(Place::default(), &name, "has no effect here");
        }
        setting.given(texts, report, &name)
    };
    layer(given, report)
}

/// What the environment says, secrets and commands aside.
pub(crate) fn from_env(env: &dyn Fn(&str) -> Option<String>, report: &mut Report) -> Layer {
    let given = |setting: &'static Setting, report: &mut Report| {
        let (name, text) = variable(setting, env)?;
        if setting.role == Role::NoEffect && !text.is_empty() {
            report.warning(Place::default(), name, "has no effect here");
        }
        setting.given(&[text], report, name)
    };
    layer(given, report)
}

/// The first variable of a setting that is set to something.
pub(crate) fn variable(
    setting: &'static Setting,
    env: &dyn Fn(&str) -> Option<String>,
) -> Option<(&'static str, String)> {
    let found = setting.env.iter().find_map(|name| Some((*name, env(name)?)));
    found.filter(|(_, text)| !text.is_empty())
}

fn layer(mut given: impl FnMut(&'static Setting, &mut Report) -> Option<Given>, report: &mut Report) -> Layer {
    let relevant = |setting: &&Setting| {
        setting.role != Role::Command && !matches!(setting.kind, Kind::Secret) || setting.role == Role::NoEffect
    };
    let values = SETTINGS.iter().filter(relevant).filter_map(|setting| {
        let value = given(setting, report)?;
        (setting.role != Role::NoEffect).then_some((setting.key, value))
    });
    values.collect()
}

/// A setting in the file.
pub(crate) fn from_file(reader: &mut Reader<'_>, setting: &'static Setting, node: &tree::Node) -> Option<Given> {
    let path = setting.key;
    match setting.kind {
        Kind::Bool => reader.boolean(node, path).map(Given::Bool),
        Kind::Duration => {
            let nanos = reader.duration(node, path)?.as_nanos();
            Some(Given::Nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
        }
        Kind::Int(low, high) => reader.integer(node, path, low..=high).map(Given::Int),
        Kind::List(check) => {
            let texts = match node.value {
                tree::Value::List(_) => reader.texts(node, path)?,
                _ => vec![reader.text(node, path)?],
            };
            checked(reader, node, path, texts.iter().try_for_each(|text| check(text)))?;
            Some(Given::Texts(texts))
        }
        Kind::Path | Kind::Secret => reader.text(node, path).map(Given::Text),
        Kind::Text(check) => {
            let text = reader.text(node, path)?;
            if text.is_empty() && setting.key != "url" {
                return None;
            }
            checked(reader, node, path, check(&text))?;
            Some(Given::Text(text))
        }
    }
}

fn checked(reader: &mut Reader<'_>, node: &tree::Node, path: &str, outcome: Result<(), String>) -> Option<()> {
    outcome.map_err(|message| reader.report.mistake(node.place, path, message)).ok()
}
