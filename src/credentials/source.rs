//! Finding the token in what a token source holds. Sources are written by people, by Vault's
//! injector, by operators of secret stores; each has its own idea of a wrapping.

use yaml_rust2::parser::{Event, Parser};
use yaml_rust2::scanner::TScalarStyle;
use zeroize::Zeroizing;

use super::TokenError;

// A rendered configuration with hundreds of rules stays far below; an endless file does not.
const LIMIT: usize = 1 << 20;

/// The text without byte order mark, surrounding white space and surrounding quotes.
pub(super) fn trimmed(text: &str) -> &str {
    let blank = |c: char| c.is_whitespace() || c == '\u{feff}';
    let text = text.trim_matches(blank);
    for quote in ['"', '\'', '`'] {
        let inner = text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
        if let Some(inner) = inner {
            return inner.trim_matches(blank);
        }
    }
    text
}

/// The bare token of a source, still encoded.
pub(super) fn token_text(content: &str) -> Result<Zeroizing<String>, TokenError> {
    if content.len() > LIMIT {
        return Err(TokenError::TooLarge { limit: LIMIT });
    }
    let text = trimmed(content);
    if text.is_empty() {
        return Err(TokenError::Empty);
    }
    if let Some(template) = injector_default(text) {
        return Err(TokenError::InjectorDefault { template });
    }
    // Base64 has neither a colon nor a brace, an object has at least one of them.
    if !text.contains([':', '{']) {
        return Ok(Zeroizing::new(text.to_owned()));
    }
    let entries = top_level_texts(text)?;
    let value = |name: &str| {
        let same = |(key, _): &&(String, Zeroizing<String>)| key.eq_ignore_ascii_case(name);
        entries.iter().find(same).map(|(_, value)| value)
    };
    match value("tunnel_token").or_else(|| value("token")) {
        Some(text) if trimmed(text).is_empty() => Err(TokenError::Empty),
        Some(text) => Ok(text.clone()),
        None if value("TunnelSecret").is_some() => Err(TokenError::CredentialsFile),
        None => Err(TokenError::KeyAbsent),
    }
}

/// Vault's injector without a template prints each field of the answer as Go prints a map, which
/// for KV v2 is `data: map[KEY:VALUE ...]`: readable by nobody, and met by everybody once.
fn injector_default(text: &str) -> Option<String> {
    let line = text.lines().map(str::trim).find(|line| line.starts_with("data: map["))?;
    let key = if line.contains("tunnel_token:") { "tunnel_token" } else { "token" };
    Some(format!("{{{{- with secret \"PATH\" -}}}}{{{{ .Data.data.{key} }}}}{{{{- end -}}}}"))
}

/// Keys and texts of the outermost mapping. JSON is read as the YAML it also is. The parser is
/// pulled event by event: its own loader recurses, and expands what it should not.
fn top_level_texts(text: &str) -> Result<Vec<(String, Zeroizing<String>)>, TokenError> {
    let mut parser = Parser::new_from_str(text);
    let mut depth = 0_usize;
    // What comes next at depth 1: a key, or the value of a key (whose name may be unusable).
    let mut awaited: Option<Option<String>> = None;
    let mut entries = Vec::new();
    loop {
        let (event, mark) = parser
            .next_token()
            .map_err(|error| TokenError::NotYaml { line: error.marker().line(), column: error.marker().col() + 1 })?;
        match event {
            Event::SequenceStart(..) if depth == 0 => return Err(TokenError::KeyAbsent),
            Event::MappingStart(..) | Event::SequenceStart(..) => depth += 1,
            Event::MappingEnd | Event::SequenceEnd => {
                depth -= 1;
                if depth == 1 {
                    awaited = if awaited.is_none() { Some(None) } else { None };
                }
            }
            Event::Alias(_) if depth == 1 => {
                awaited = if awaited.is_none() { Some(None) } else { None };
            }
            Event::Scalar(value, style, ..) if depth == 1 => match awaited.take() {
                None => awaited = Some(Some(value)),
                Some(None) => {}
                Some(Some(name)) => {
                    let null =
                        style == TScalarStyle::Plain && matches!(value.as_str(), "" | "~" | "null" | "Null" | "NULL");
                    if !null {
                        entries.push((name, Zeroizing::new(value)));
                    }
                }
            },
            Event::Scalar(..) if depth == 0 => {
                return Err(TokenError::NotYaml { line: mark.line(), column: mark.col() + 1 });
            }
            Event::DocumentEnd | Event::StreamEnd => return Ok(entries),
            _ => {}
        }
    }
}
