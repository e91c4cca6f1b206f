//! The edge's file: visitors' certificates, limits, and how it stops.

mod limits;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use yaml_rust2::{Yaml, YamlLoader};

use crate::{
    config::duration,
    edge::{certificates::FileCertificate, limits::Limits},
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
                for (at, entry) in entries.iter().enumerate() {
                    match certificate(entry) {
                        Ok(certificate) => file.certificates.push(certificate),
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

/// A duration with its unit, `30s`.
fn time(value: &Yaml) -> Result<Duration, String> {
    let text = value.as_str().ok_or("a duration needs a unit: 30s, 1m30s, 250ms")?;
    duration::parse(text).map_err(|error| error.to_string())
}

fn certificate(entry: &Yaml) -> Result<FileCertificate, String> {
    let Yaml::Hash(map) = entry else { return Err("not a mapping".into()) };
    for key in map.keys() {
        match key.as_str() {
            Some("hostnames" | "certificate" | "key") => {}
            // Fail closed: a file that demands client certificates must not be served without.
            Some(key @ ("clientAuth" | "trust")) => return Err(format!("{key} is not supported by this version")),
            key => return Err(format!("unknown key {}", key.unwrap_or("?"))),
        }
    }
    let path = |key: &str| entry[key].as_str().map(PathBuf::from).ok_or_else(|| format!("{key} is no path"));
    let hostnames: Option<Vec<String>> =
        entry["hostnames"].as_vec().map(|names| names.iter().filter_map(Yaml::as_str).map(str::to_lowercase).collect());
    match hostnames.filter(|names| !names.is_empty()) {
        Some(hostnames) => Ok(FileCertificate { hostnames, certificate: path("certificate")?, key: path("key")? }),
        None => Err("hostnames is no list of names".into()),
    }
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
        assert_eq!((found.hostnames[0].as_str(), found.key.to_str()), ("a.example", Some("/k")));
        let wrong = "certificates: [ { hostnames: [] } ]\nlimits: 3\nother: 1\nretry: maybe\ngracePeriod: 30\n";
        let mistakes = parse(wrong).unwrap_err();
        assert_eq!(mistakes.len(), 5, "{mistakes:?}");
    }

    #[test]
    fn demanding_client_certificates_is_refused_and_not_ignored() {
        let text = "certificates: [ { hostnames: [a], certificate: c, key: k, clientAuth: required } ]";
        assert!(parse(text).unwrap_err()[0].contains("clientAuth"));
    }

    #[test]
    fn the_example_is_read_and_says_the_defaults() {
        let file = parse(include_str!("../../../config/edge.yml")).unwrap();
        assert_eq!((file.limits, file.retry), (Limits::default(), true));
        assert_eq!(file.grace_period, Some(super::super::GRACE));
        assert_eq!(file.certificates.len(), 1);
    }
}
