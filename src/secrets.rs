//! Where secrets come from. Today the tunnel token, read once; the channel is the seam for watching it.
//!
//! The only reader of secret files.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    config::SecretSource,
    credentials::{Credentials, Token, TokenError, tunnel_id},
};

/// How often a file that is not there yet is looked for. Injected files appear once, so this is start-up time at most.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A source holds no usable token. The text never holds the source's content.
    #[error("{origin}: {source}")]
    Token {
        /// Which source.
        origin: String,
        /// Why.
        source: TokenError,
    },
    /// A file is there and cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A variable is not set.
    #[error("the environment variable {0} is not set")]
    NoVariable(String),
    /// `key` names nothing in the file.
    #[error("{path} has no key {key}")]
    NoKey {
        /// The file.
        path: String,
        /// The dotted path.
        key: String,
    },
    /// A credential without systemd's directory.
    #[error("the credential {0} is asked for but CREDENTIALS_DIRECTORY is not set")]
    NoCredentialsDirectory(String),
    /// No credentials file in the usual places.
    #[error("no credentials file {name} in {}", directories.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(", "))]
    NoCredentials {
        /// `TUNNEL-ID.json`.
        name: String,
        /// Where it was looked for.
        directories: Vec<PathBuf>,
    },
    /// Nothing was given at all.
    #[error(
        "no tunnel token. Give one with\n  --token-file FILE, token-file: in the configuration, or TUNNEL_TOKEN_FILE\n  \
         (a file that Vault, Kubernetes or systemd put there), or with\n  TUNNEL_TOKEN or --token (both are visible to others on this machine)"
    )]
    Missing,
    /// `tunnel:` names a tunnel by name, which only Cloudflare's API can resolve.
    #[error("the tunnel {0:?} is no UUID; give its credentials file with --credentials-file, or a token")]
    NameNeedsCredentials(String),
}

/// Reads the token. A file that is missing or empty is waited for, since an agent may be about to write it.
///
/// # Errors
///
/// [`Error`], when waiting cannot help.
pub async fn token(
    source: &SecretSource,
    tunnel: Option<&str>,
    search: &[PathBuf],
) -> Result<watch::Receiver<Arc<Token>>, Error> {
    let token = read(source, tunnel, search).await?;
    let (sender, receiver) = watch::channel(Arc::new(token));
    // The sender goes: nothing changes the token yet.
    drop(sender);
    Ok(receiver)
}

async fn read(source: &SecretSource, tunnel: Option<&str>, search: &[PathBuf]) -> Result<Token, Error> {
    let parse = |text: &str, origin: String| Token::from_source(text).map_err(|source| Error::Token { origin, source });
    match source {
        SecretSource::Token(secret) => {
            let origin = "the tunnel token".to_owned();
            match secret.expose_text() {
                Ok(text) => parse(text, origin),
                Err(source) => Err(Error::Token { origin, source }),
            }
        }
        SecretSource::TokenFile(path) => parse(&contents(path).await?, path.display().to_string()),
        SecretSource::Credential(name) => {
            let directory =
                std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| Error::NoCredentialsDirectory(name.clone()))?;
            let path = Path::new(&directory).join(name);
            parse(&contents(&path).await?, path.display().to_string())
        }
        SecretSource::Env(name) => {
            let text = std::env::var(name).map_err(|_| Error::NoVariable(name.clone()))?;
            parse(&zeroize::Zeroizing::new(text), name.clone())
        }
        SecretSource::FileKey { file, key } => {
            let text = contents(file).await?;
            let path = file.display().to_string();
            let value = key_of(&text, key).ok_or_else(|| Error::NoKey { path: path.clone(), key: key.clone() })?;
            parse(&value, format!("{path}, key {key}"))
        }
        SecretSource::CredentialsFile(path) => credentials(&contents(path).await?, path.display().to_string(), tunnel),
        SecretSource::CredentialsContents(secret) => {
            let origin = "the credentials".to_owned();
            match secret.expose_text() {
                Ok(text) => credentials(text, origin, tunnel),
                Err(source) => Err(Error::Token { origin, source }),
            }
        }
        SecretSource::SearchCredentials => {
            let tunnel = tunnel.ok_or(Error::Missing)?;
            let id = tunnel_id(tunnel).ok_or_else(|| Error::NameNeedsCredentials(tunnel.to_owned()))?;
            let name = format!("{id}.json");
            let found = search.iter().map(|directory| directory.join(&name)).find(|path| path.is_file());
            let Some(path) = found else {
                return Err(Error::NoCredentials { name, directories: search.to_vec() });
            };
            credentials(&contents(&path).await?, path.display().to_string(), Some(tunnel))
        }
        SecretSource::Missing => Err(Error::Missing),
    }
}

fn credentials(text: &str, origin: String, tunnel: Option<&str>) -> Result<Token, Error> {
    let id = tunnel.and_then(tunnel_id);
    Credentials::parse(text)
        .and_then(|credentials| credentials.into_token(id))
        .map_err(|source| Error::Token { origin, source })
}

/// Waits for a file that is missing or empty, and says once that it does.
async fn contents(path: &Path) -> Result<zeroize::Zeroizing<String>, Error> {
    let mut told = false;
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) if !text.trim().is_empty() => return Ok(zeroize::Zeroizing::new(text)),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Unreadable { path: path.display().to_string(), source }),
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(path = %path.display(), "waiting for this file to appear");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A dotted path in a JSON or YAML document.
fn key_of(text: &str, key: &str) -> Option<zeroize::Zeroizing<String>> {
    let documents = yaml_rust2::YamlLoader::load_from_str(text).ok()?;
    let mut node = documents.first()?;
    for piece in key.split('.') {
        node = &node[piece];
    }
    node.as_str().map(|text| zeroize::Zeroizing::new(text.to_owned()))
}
