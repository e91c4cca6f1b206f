//! The edge's file: visitors' certificates. Everything else in it belongs to later versions and is refused.

use std::path::{Path, PathBuf};

use yaml_rust2::{Yaml, YamlLoader};

use crate::edge::certificates::FileCertificate;

/// Reads the file; every mistake at once.
pub(super) fn read(path: &Path) -> Result<Vec<FileCertificate>, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("{shown}: {error}"))?;
    parse(&text).map_err(|mistakes| format!("{shown}: {}", mistakes.join("; ")))
}

fn parse(text: &str) -> Result<Vec<FileCertificate>, Vec<String>> {
    let documents = YamlLoader::load_from_str(text).map_err(|error| vec![error.to_string()])?;
    let root = match documents.first() {
        None | Some(Yaml::Null) => return Ok(Vec::new()),
        Some(Yaml::Hash(root)) => root,
        Some(_) => return Err(vec!["not a mapping".into()]),
    };
    let mut mistakes = Vec::new();
    let mut found = Vec::new();
    for (key, value) in root {
        match (key.as_str(), value) {
            (Some("certificates"), Yaml::Array(entries)) => {
                for (at, entry) in entries.iter().enumerate() {
                    match certificate(entry) {
                        Ok(certificate) => found.push(certificate),
                        Err(why) => mistakes.push(format!("certificates[{at}]: {why}")),
                    }
                }
            }
            (Some("certificates"), _) => mistakes.push("certificates is not a list".into()),
            (Some("limits"), _) => mistakes.push("limits is not supported by this version".into()),
            (key, _) => mistakes.push(format!("unknown key {}", key.unwrap_or("?"))),
        }
    }
    if mistakes.is_empty() { Ok(found) } else { Err(mistakes) }
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
        let found = parse("certificates:\n  - { hostnames: [A.example], certificate: /c, key: /k }\n").unwrap();
        assert_eq!((found[0].hostnames[0].as_str(), found[0].key.to_str()), ("a.example", Some("/k")));
        let mistakes = parse("certificates: [ { hostnames: [] } ]\nlimits: {}\nother: 1\n").unwrap_err();
        assert_eq!(mistakes.len(), 3, "{mistakes:?}");
    }

    #[test]
    fn demanding_client_certificates_is_refused_and_not_ignored() {
        let text = "certificates: [ { hostnames: [a], certificate: c, key: k, clientAuth: required } ]";
        assert!(parse(text).unwrap_err()[0].contains("clientAuth"));
    }
}
