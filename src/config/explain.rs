//! Which rule answers a URL: `ingress rule URL`.

use super::hostname::normal_host;
use super::path::decoded_path;
use super::rules::Ingress;

/// Why a URL cannot be looked up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExplainError {
    /// A scheme and nothing behind it.
    #[error("the URL has no host; it looks like https://app.example.com/path")]
    NoHost,
    /// `app.example.com/path`, or `app.example.com:80/path` whose start is no scheme.
    #[error("the URL needs a scheme: https://{0}")]
    NoScheme(String),
}

/// The rule that a URL meets, for people: number counted from 0, host name, path, service.
///
/// # Errors
/// [`ExplainError`] for a text that is no URL with a scheme and a host.
pub fn explain(ingress: &Ingress, url: &str) -> Result<String, ExplainError> {
    let (scheme, rest) = url.split_once("://").ok_or_else(|| ExplainError::NoScheme(url.to_owned()))?;
    if scheme.is_empty() || !scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)) {
        return Err(ExplainError::NoScheme(rest.to_owned()));
    }
    let rest = rest.split('#').next().unwrap_or_default();
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(end);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.is_empty() {
        return Err(ExplainError::NoHost);
    }
    let (host, path) = (normal_host(host), decoded_path(target));
    let matching = ingress.rules.iter().find(|rule| rule.matches(&host, &path));
    // After checks the last rule matches everything.
    let Some(rule) = matching.or_else(|| ingress.rules.last()) else {
        return Err(ExplainError::NoHost);
    };
    let mut out = format!("Matched rule #{}\n", rule.position);
    if let Some(hostname) = &rule.hostname {
        out.push_str(&format!("\thostname: {hostname}\n"));
    }
    if let Some(path) = &rule.path {
        out.push_str(&format!("\tpath: {path}\n"));
    }
    for (_, spelling) in rule.services() {
        out.push_str(&format!("\tservice: {spelling}\n"));
    }
    Ok(out)
}
