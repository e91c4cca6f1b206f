//! The tunnel's token, read once; the channel is the seam for watching it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;
use zeroize::Zeroizing;

use super::read::{ReadError, read as read_secret};
use crate::{
    config::{SecretRef, SecretSource},
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
    /// It cannot be read, and waiting cannot help.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file is no text.
    #[error("{0} is no text")]
    NoText(String),
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
        SecretSource::TokenFile(path) => {
            parse(&awaited(SecretRef::File(path.clone())).await?, path.display().to_string())
        }
        SecretSource::Credential(name) => {
            parse(&awaited(SecretRef::Credential(name.clone())).await?, format!("the credential {name}"))
        }
        SecretSource::Env(name) => parse(&awaited(SecretRef::Env(name.clone())).await?, name.clone()),
        SecretSource::FileKey { file, key } => {
            let value = awaited(SecretRef::FileKey { file: file.clone(), key: key.clone() }).await?;
            parse(&value, format!("{}, key {key}", file.display()))
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

async fn contents(path: &Path) -> Result<Zeroizing<String>, Error> {
    awaited(SecretRef::File(path.to_owned())).await
}

/// Waits for a file that is missing or empty, and says once that it does.
async fn awaited(reference: SecretRef) -> Result<Zeroizing<String>, Error> {
    let mut told = false;
    loop {
        match read_secret(&reference) {
            Ok(bytes) => {
                let text = std::str::from_utf8(&bytes).map_err(|_| Error::NoText(reference.to_string()))?;
                return Ok(Zeroizing::new(text.to_owned()));
            }
            Err(error) if error.may_come() => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(path = %reference, "waiting for this file to appear");
                }
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
