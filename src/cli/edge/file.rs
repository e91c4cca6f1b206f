//! The edge's file: visitors' certificates, limits, and how it stops.

mod limits;

use std::{collections::HashMap, path::Path, time::Duration};

use yaml_rust2::{Yaml, YamlLoader};

use crate::{
    config::{IdentitySource, SecretRef, duration},
    edge::{
        certificates::{ClientAuth, FileCertificate},
        limits::Limits,
    },
};

/// What an edge's file says.
#[derive(Debug)]
pub(super) struct EdgeFile {
    pub(super) certificates: Vec<FileCertificate>,
    pub(super) limits: Limits,
    pub(super) retry: bool,
    pub(super) grace_period: Option<Duration>,
}

impl Default for EdgeFile {
    fn default() -> Self {
        Self { certificates: Vec::new(), limits: Limits::default(), retry: true, grace_period: None }
    }
}

/// Reads the file; every mistake at once.
pub(super) fn read(path: &Path) -> Result<EdgeFile, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("{shown}: {error}"))?;
    parse(&text).map_err(|mistakes| format!("{shown}: {}", mistakes.join("; ")))
}

fn parse(text: &str) -> Result<EdgeFile, Vec<String>> {
    let documents = YamlLoader::load_from_str(text).map_err(|error| vec![error.to_string()])?;
    let mut file = EdgeFile::default();
    let root = match documents.first() {
        None | Some(Yaml::Null) => return Ok(file),
        Some(Yaml::Hash(root)) => root,
        Some(_) => return Err(vec!["not a mapping".into()]),
    };
    let mut mistakes = Vec::new();
    for (key, value) in root {
        match (key.as_str(), value) {
            (Some("certificates"), Yaml::Array(entries)) => {
                let mut seen = HashMap::new();
                for (at, entry) in entries.iter().enumerate() {
                    match certificate(entry) {
                        Ok(certificate) => {
                            repeated(at, &certificate, &mut seen, &mut mistakes);
                            file.certificates.push(certificate);
                        }
                        Err(why) => mistakes.push(format!("certificates[{at}]: {why}")),
                    }
                }
            }
            (Some("certificates"), _) => mistakes.push("certificates is not a list".into()),
            (Some("limits"), value) => limits::read(value, &mut file.limits, &mut mistakes),
            (Some("retry"), Yaml::Boolean(retry)) => file.retry = *retry,
            (Some("retry"), _) => mistakes.push("retry is neither true nor false".into()),
            (Some("gracePeriod"), value) => match time(value) {
                Ok(grace) => file.grace_period = Some(grace),
                Err(why) => mistakes.push(format!("gracePeriod: {why}")),
            },
            (key, _) => mistakes.push(format!("unknown key {}", key.unwrap_or("?"))),
        }
    }
    if mistakes.is_empty() { Ok(file) } else { Err(mistakes) }
}

/// A hostname that stood in an entry before would silently be that one's.
fn repeated(at: usize, entry: &FileCertificate, seen: &mut HashMap<String, usize>, mistakes: &mut Vec<String>) {
    for name in &entry.hostnames {
        if let Some(before) = seen.insert(name.clone(), at) {
            mistakes.push(format!("certificates[{at}]: {name} stands in certificates[{before}], too"));
        }
    }
}

/// A duration with its unit, `30s`.
fn time(value: &Yaml) -> Result<Duration, String> {
    let text = value.as_str().ok_or("a duration needs a unit: 30s, 1m30s, 250ms")?;
    duration::parse(text).map_err(|error| error.to_string())
}

fn certificate(entry: &Yaml) -> Result<FileCertificate, String> {
    let Yaml::Hash(map) = entry else { return Err("not a mapping".into()) };
    let mut file = FileCertificate::default();
    let (mut certificate, mut key) = (None, None);
    for (name, value) in map {
        match name.as_str() {
            Some("hostnames") => file.hostnames = hostnames(value).ok_or("hostnames is no list of names")?,
            Some("certificate") => certificate = Some(reference(value).map_err(|why| format!("certificate: {why}"))?),
            Some("key") => key = Some(reference(value).map_err(|why| format!("key: {why}"))?),
            Some("clientAuth") => {
                file.client_auth = match value {
                    Yaml::String(text) if text == "off" => ClientAuth::Off,
                    Yaml::String(text) if text == "optional" => ClientAuth::Optional,
                    Yaml::String(text) if text == "required" => ClientAuth::Required,
                    // YAML 1.1 reads a bare `off` so, and somebody's tools may write it.
                    Yaml::Boolean(false) => ClientAuth::Off,
                    _ => return Err("clientAuth is none of off, optional, required".into()),
                }
            }
            Some("trust") => {
                let listed = value.as_vec().map(Vec::as_slice).unwrap_or_else(|| std::slice::from_ref(value));
                file.trust =
                    listed.iter().map(reference).collect::<Result<_, _>>().map_err(|why| format!("trust: {why}"))?;
                if file.trust.is_empty() {
                    return Err("trust is empty, so nobody could be trusted; leave it out to accept any certificate \
                                whose key the visitor has"
                        .into());
                }
            }
            name => return Err(format!("unknown key {}", name.unwrap_or("?"))),
        }
    }
    file.material = match (certificate, key) {
        (Some(certificate), key) => Some(IdentitySource { certificate, key }),
        (None, Some(_)) => return Err("key without certificate".into()),
        (None, None) => None,
    };
    if file.hostnames.is_empty() {
        return Err("hostnames is no list of names".into());
    }
    if file.client_auth == ClientAuth::Off && !file.trust.is_empty() {
        return Err("trust has no effect without clientAuth: optional or required".into());
    }
    if file.client_auth == ClientAuth::Off && file.material.is_none() {
        return Err("has no effect: neither certificate nor clientAuth".into());
    }
    Ok(file)
}

/// A secret reference: a path, `{ file, key }`, `{ credential }` or `{ env }`.
fn reference(value: &Yaml) -> Result<SecretRef, String> {
    let text = |value: &Yaml| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    if let Some(path) = text(value) {
        return Ok(SecretRef::File(path.into()));
    }
    let said = |key: &str| text(&value[key]);
    let found = match (value.as_hash().map_or(0, |map| map.len()), said("file"), said("key")) {
        (2, Some(file), Some(key)) => Some(SecretRef::FileKey { file: file.into(), key }),
        (1, Some(file), None) => Some(SecretRef::File(file.into())),
        (1, None, None) => said("credential").map(SecretRef::Credential).or_else(|| said("env").map(SecretRef::Env)),
        _ => None,
    };
    found.ok_or_else(|| "neither a path nor one of { file, key }, { credential }, { env }".into())
}

/// In the form that visitors' names have when they are compared.
fn hostnames(value: &Yaml) -> Option<Vec<String>> {
    let names = value.as_vec()?.iter().map(|name| {
        let name = name.as_str()?.trim_end_matches('.').to_lowercase();
        let labels = name.strip_prefix("*.").unwrap_or(&name);
        (!labels.is_empty() && !labels.contains(['*', ':', '/', ' '])).then_some(name)
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_read_and_every_mistake_is_told() {
        let found = parse(
            "retry: false\ngracePeriod: 1m\ncertificates:\n  - { hostnames: [A.example], certificate: /c, key: /k }\n",
        )
        .unwrap();
        assert_eq!((found.retry, found.grace_period), (false, Some(Duration::from_secs(60))));
        let found = &found.certificates[0];
        assert_eq!(found.hostnames, ["a.example"]);
        let source = found.material.as_ref().unwrap();
        assert_eq!(source.certificate, SecretRef::File("/c".into()));
        assert_eq!(source.key, Some(SecretRef::File("/k".into())));
        assert_eq!((found.client_auth, found.trust.len()), (ClientAuth::Off, 0));
        let wrong = "certificates: [ { hostnames: [] } ]\nlimits: 3\nother: 1\nretry: maybe\ngracePeriod: 30\n";
        let mistakes = parse(wrong).unwrap_err();
        assert_eq!(mistakes.len(), 5, "{mistakes:?}");
    }

    fn entry(text: &str) -> Result<FileCertificate, String> {
        let file = parse(&format!("certificates: [ {{ {text} }} ]")).map_err(|mistakes| mistakes.join("; "))?;
        Ok(file.certificates.into_iter().next().unwrap())
    }

    #[test]
    fn what_visitors_are_asked_for_is_read() {
        let read = entry("hostnames: ['*.A.example.'], clientAuth: required, trust: [/t1, /t2]").unwrap();
        assert_eq!((read.client_auth, read.material), (ClientAuth::Required, None));
        assert_eq!((read.hostnames, read.trust.len()), (vec!["*.a.example".to_owned()], 2));
        let read = entry("hostnames: [a], certificate: /bundle, clientAuth: optional").unwrap();
        assert_eq!(read.material.unwrap().key, None);
        assert_eq!((read.client_auth, read.trust.len()), (ClientAuth::Optional, 0));
        assert_eq!(entry("hostnames: [a], certificate: /b, clientAuth: off").unwrap().client_auth, ClientAuth::Off);
    }

    #[test]
    fn what_is_read_from_elsewhere_is_referred_to_as_everywhere() {
        let text = "hostnames: [a], certificate: { file: /all.json, key: tls.crt }, key: { credential: tls }, \
                    clientAuth: optional, trust: [{ env: CA }, { file: /ca.pem }]";
        let read = entry(text).unwrap();
        let source = read.material.unwrap();
        assert_eq!(source.certificate, SecretRef::FileKey { file: "/all.json".into(), key: "tls.crt".into() });
        assert_eq!(source.key, Some(SecretRef::Credential("tls".into())));
        assert_eq!(read.trust, [SecretRef::Env("CA".into()), SecretRef::File("/ca.pem".into())]);
        for wrong in ["{ env: A, key: b }", "{ fil: /a }", "3", "''", "{ file: /a, key: b, env: c }", "[]"] {
            assert!(entry(&format!("hostnames: [a], certificate: {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_demand_that_could_not_be_met_or_would_not_count_is_refused() {
        for (text, why) in [
            ("hostnames: [a], clientAuth: require", "clientAuth"),
            ("hostnames: [a], clientAuth: true", "clientAuth"),
            ("hostnames: [a], certificate: /c, trust: [/t]", "trust has no effect"),
            ("hostnames: [a], clientAuth: required, trust: []", "trust is empty"),
            ("hostnames: [a], clientAuth: required, trust: [1]", "neither a path"),
            ("hostnames: [a], clientauth: required", "unknown key clientauth"),
            ("hostnames: [a]", "no effect"),
            ("hostnames: [a], key: /k", "key without"),
            ("hostnames: [a, 1], clientAuth: required", "hostnames"),
            ("hostnames: ['a.*.b'], clientAuth: required", "hostnames"),
            ("clientAuth: required", "hostnames"),
        ] {
            let mistake = entry(text).unwrap_err();
            assert!(mistake.contains(why), "{text}: {mistake}");
        }
    }

    #[test]
    fn a_hostname_stands_in_one_entry() {
        let entries = "{ hostnames: [a, b], clientAuth: required }, { hostnames: [B], certificate: /c }";
        let mistakes = parse(&format!("certificates: [ {entries} ]")).unwrap_err();
        assert!(mistakes[0].contains("certificates[1]: b stands in certificates[0]"), "{mistakes:?}");
    }

    #[test]
    fn the_example_is_read_and_says_the_defaults() {
        let file = parse(include_str!("../../../config/edge.yml")).unwrap();
        assert_eq!((file.limits, file.retry), (Limits::default(), true));
        assert_eq!(file.grace_period, Some(super::super::GRACE));
        assert_eq!(file.certificates.len(), 1);
    }
}
