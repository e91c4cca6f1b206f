//! Who this connector is to the edge: the tunnel token, the older credentials file, and the secret
//! inside both.
//!
//! Nothing here reads a file or knows where the text came from. No error text repeats what was
//! read: a malformed secret is still a secret.

mod source;

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use subtle::ConstantTimeEq as _;
use uuid::Uuid;
use zeroize::Zeroizing;

/// Bytes that must not be printed: wiped when dropped, compared in constant time, shown by `Debug`
/// as `[redacted]`, and without `Display` or `Serialize` on purpose.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes ownership of the bytes, so that no second copy stays behind.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// The bytes themselves. Every call is a place to look at when secrets are audited.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text, when they are text: a token in base64, credentials in JSON.
    ///
    /// # Errors
    /// [`TokenError::NotText`] when the bytes are not UTF-8.
    pub fn expose_text(&self) -> Result<&str, TokenError> {
        std::str::from_utf8(&self.0).map_err(|_| TokenError::NotText)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

/// What a tunnel token says (protocol.md section 2.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Account tag; opaque text, 32 hexadecimal digits in practice.
    pub account: String,
    /// The tunnel. Its 16 bytes go to the edge in network order (RFC 9562).
    pub tunnel: Uuid,
    /// The tunnel secret, decoded. Its length is the edge's business.
    pub secret: Secret,
    /// Edge region the token was issued for. Never an empty text.
    pub endpoint: Option<String>,
}

impl Token {
    /// Decodes one bare token: base64 of a JSON object with the keys `a`, `s`, `t` and perhaps `e`.
    ///
    /// White space, a byte order mark, quotes, missing padding and the URL-safe alphabet are
    /// forgiven, because tokens travel through shells, templates and secret stores that add or
    /// remove them. Nothing else is.
    ///
    /// # Errors
    /// [`TokenError`], with the missing key named where one is missing.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = source::trimmed(text);
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        let json = decode(text).ok_or(TokenError::NotBase64)?;
        let [account, secret, tunnel, endpoint] = object(&json, ["a", "s", "t", "e"])?;
        let missing = [(&account, "a"), (&secret, "s"), (&tunnel, "t")];
        let missing: Vec<_> = missing.into_iter().filter(|(value, _)| value.is_none()).map(|(_, key)| key).collect();
        let (Some(account), Some(secret), Some(tunnel)) = (account, secret, tunnel) else {
            return Err(TokenError::Missing { what: "the token", keys: missing });
        };
        Ok(Self {
            account: account.to_string(),
            tunnel: tunnel_id(&tunnel).ok_or(TokenError::BadTunnelId { key: "t" })?,
            secret: secret_bytes(&secret, "s")?,
            endpoint: endpoint.map(|text| text.to_string()),
        })
    }

    /// Finds and decodes the token in whatever a token source holds: a bare token, a JSON or YAML
    /// object with `tunnel_token` or `token`, or a whole rendered configuration with `token:`.
    ///
    /// # Errors
    /// [`TokenError`]; the Vault injector's default rendering of a KV v2 secret is answered with
    /// the template that would have been right.
    pub fn from_source(content: &str) -> Result<Self, TokenError> {
        Self::parse(&source::token_text(content)?)
    }

    /// The token as cloudflared writes it: compact JSON with the keys in the order `a`, `s`, `t`,
    /// `e`, in padded standard base64. The text is wiped when dropped.
    pub fn encode(&self) -> Zeroizing<String> {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let secret = Zeroizing::new(BASE64.encode(self.secret.expose()));
        let mut json =
            Zeroizing::new(format!(r#"{{"a":{},"s":"{}","t":"{}""#, quoted(&self.account), *secret, self.tunnel));
        if let Some(endpoint) = &self.endpoint {
            json.push_str(&format!(r#","e":{}"#, quoted(endpoint)));
        }
        json.push('}');
        Zeroizing::new(BASE64.encode(json.as_bytes()))
    }
}

/// The older form of the same facts: the JSON file `TUNNEL-ID.json` (protocol.md section 2.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Account tag (`AccountTag`).
    pub account: String,
    /// Tunnel secret, decoded (`TunnelSecret`).
    pub secret: Secret,
    /// Tunnel (`TunnelID`); files written by old releases lack it.
    pub tunnel: Option<Uuid>,
    /// Edge region (`Endpoint`). Never an empty text.
    pub endpoint: Option<String>,
}

impl Credentials {
    /// Reads the JSON text of a credentials file. Keys match in any letter case, unknown ones are
    /// ignored.
    ///
    /// # Errors
    /// [`TokenError`], naming every missing key.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        let names = ["AccountTag", "TunnelSecret", "TunnelID", "Endpoint"];
        let [account, secret, tunnel, endpoint] = object(text.as_bytes(), names)?;
        let missing = [(&account, "AccountTag"), (&secret, "TunnelSecret")];
        let missing: Vec<_> = missing.into_iter().filter(|(value, _)| value.is_none()).map(|(_, key)| key).collect();
        let (Some(account), Some(secret)) = (account, secret) else {
            return Err(TokenError::Missing { what: "the credentials file", keys: missing });
        };
        let tunnel = match tunnel {
            None => None,
            Some(text) => Some(tunnel_id(&text).ok_or(TokenError::BadTunnelId { key: "TunnelID" })?),
        };
        Ok(Self {
            account: account.to_string(),
            secret: secret_bytes(&secret, "TunnelSecret")?,
            tunnel,
            endpoint: endpoint.map(|text| text.to_string()),
        })
    }

    /// The same facts as a token. An id from the command line or from `tunnel:` wins over the
    /// file's, as with cloudflared.
    ///
    /// # Errors
    /// [`TokenError::Missing`] when neither the argument nor the file names a tunnel.
    pub fn into_token(self, tunnel: Option<Uuid>) -> Result<Token, TokenError> {
        let missing = || TokenError::Missing { what: "the credentials file", keys: vec!["TunnelID"] };
        Ok(Token {
            account: self.account,
            tunnel: tunnel.or(self.tunnel).ok_or_else(missing)?,
            secret: self.secret,
            endpoint: self.endpoint,
        })
    }
}

/// Why a token or a credentials file was refused. No variant carries any part of the input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The tunnel id is no UUID.
    #[error("`{key}` is not a UUID")]
    BadTunnelId {
        /// The JSON key.
        key: &'static str,
    },
    /// The tunnel secret is no base64.
    #[error("`{key}` is not base64")]
    BadSecret {
        /// The JSON key.
        key: &'static str,
    },
    /// A credentials file stands where a token belongs.
    #[error("this is a tunnel credentials file, not a token; name it with `credentials-file`")]
    CredentialsFile,
    /// Nothing but white space.
    #[error("it is empty")]
    Empty,
    /// The Vault injector's default rendering of a KV v2 secret.
    #[error(
        "this is the injector's default rendering of a KV v2 secret (`data: map[...]`); annotate the pod with \
         a template instead: {template}"
    )]
    InjectorDefault {
        /// The template to use.
        template: String,
    },
    /// A JSON or YAML object without a token in it.
    #[error("the object has neither `tunnel_token` nor `token` with a text in it")]
    KeyAbsent,
    /// Required keys are absent or empty.
    #[error("{what} lacks {}", listed(.keys))]
    Missing {
        /// Token or credentials file.
        what: &'static str,
        /// The absent keys.
        keys: Vec<&'static str>,
    },
    /// Not base64 in either alphabet.
    #[error("it is not base64; a token is one long word that starts with eyJ")]
    NotBase64,
    /// Base64, but no JSON object within.
    #[error("it is not a JSON object (line {line}, column {column})")]
    NotJson {
        /// Line, counted from 1.
        line: usize,
        /// Column, counted from 1; 0 when the line is empty.
        column: usize,
    },
    /// Not UTF-8.
    #[error("it is not UTF-8 text")]
    NotText,
    /// Looks like YAML but is not.
    #[error("it is neither a token nor readable YAML (line {line}, column {column})")]
    NotYaml {
        /// Line, counted from 1.
        line: usize,
        /// Column, counted from 1.
        column: usize,
    },
    /// More than a token source can reasonably hold.
    #[error("it is larger than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// A known key holds something other than text.
    #[error("`{key}` is not a text")]
    WrongType {
        /// The JSON key.
        key: &'static str,
    },
}

/// A tunnel id in one of the forms cloudflared's UUID library takes: with dashes, 32 digits, in
/// braces, as a URN; any letter case.
pub fn tunnel_id(text: &str) -> Option<Uuid> {
    const URN: &str = "urn:uuid:";
    let text = match text.get(..URN.len()) {
        Some(prefix) if prefix.eq_ignore_ascii_case(URN) => &text[URN.len()..],
        _ => text,
    };
    let text = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(text);
    // What is left must be one of the two plain forms; the library would take nested braces.
    if !matches!(text.len(), 32 | 36) {
        return None;
    }
    Uuid::try_parse(text).ok()
}

// Padding may be missing, and the unused bits of the last character may be set: both occur in
// tokens that cloudflared's decoder reads without complaint.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let plain: Zeroizing<Vec<u8>> = Zeroizing::new(
        text.bytes()
            .filter(|byte| !byte.is_ascii_whitespace())
            .map(|byte| match byte {
                b'-' => b'+',
                b'_' => b'/',
                other => other,
            })
            .collect(),
    );
    BASE64.decode(&*plain).ok().map(Zeroizing::new)
}

fn secret_bytes(text: &str, key: &'static str) -> Result<Secret, TokenError> {
    let bytes = decode(text).ok_or(TokenError::BadSecret { key })?;
    Ok(Secret(bytes))
}

/// The texts of the named keys, `None` for what is absent, null or empty. Keys match in any letter
/// case, as in Go's decoder; of several spellings the last one that is written counts.
fn object<const N: usize>(json: &[u8], names: [&'static str; N]) -> Result<[Option<Zeroizing<String>>; N], TokenError> {
    let value: serde_json::Value = serde_json::from_slice(json)
        .map_err(|error| TokenError::NotJson { line: error.line(), column: error.column() })?;
    let entries = match value {
        serde_json::Value::Object(entries) => entries,
        serde_json::Value::Null => serde_json::Map::new(),
        _ => return Err(TokenError::NotJson { line: 1, column: 1 }),
    };
    let mut found = [const { None }; N];
    for (key, value) in entries {
        let Some(at) = names.iter().position(|name| name.eq_ignore_ascii_case(&key)) else {
            continue;
        };
        found[at] = match value {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) if text.is_empty() => None,
            serde_json::Value::String(text) => Some(Zeroizing::new(text)),
            _ => return Err(TokenError::WrongType { key: names[at] }),
        };
    }
    Ok(found)
}

fn listed(keys: &[&str]) -> String {
    let keys: Vec<_> = keys.iter().map(|key| format!("`{key}`")).collect();
    keys.join(", ")
}
