//! Where the token or the credentials come from: the order of cloudflared, and adit's references.

use std::path::PathBuf;

use super::SecretSource;
use super::flags::Flags;
use super::layers::variable;
use super::mistakes::{Place, Report, nearest};
use super::reader::{Reader, join};
use super::rules::NOT_YET;
use super::settings::find;
use super::tree::{Node, Value};
use crate::credentials::Secret;

/// What the file says about secrets.
#[derive(Debug, Default)]
pub(crate) struct FileSecrets {
    pub(crate) token: Option<SecretSource>,
    pub(crate) token_file: Option<SecretSource>,
    pub(crate) credentials_contents: Option<Secret>,
}

/// What flags, environment and file settle, the paths already stacked.
pub(crate) struct Sources<'a> {
    pub(crate) flags: &'a Flags,
    pub(crate) env: &'a dyn Fn(&str) -> Option<String>,
    pub(crate) file: FileSecrets,
    pub(crate) token_file: Option<String>,
    pub(crate) credentials_file: Option<String>,
    pub(crate) tunnel: bool,
}

impl Sources<'_> {
    /// Token, then token file, then credentials; within each flag, then environment, then file.
    pub(crate) fn settle(self, report: &mut Report) -> SecretSource {
        if self.flags.values("token").last().is_some_and(|token| !token.is_empty()) {
            let message = "every user of this machine can read the command line; use --token-file";
            report.warning(Place::default(), "--token", message);
        }
        let token = self.secret("token").map(SecretSource::Token).or_else(|| self.file.token.clone());
        let token_file = match self.token_file.clone().filter(|path| !path.is_empty()) {
            Some(path) => Some(SecretSource::TokenFile(PathBuf::from(path))),
            None => self.file.token_file.clone(),
        };
        let contents = self.secret("credentials-contents").or_else(|| self.file.credentials_contents.clone());
        let file = self.credentials_file.filter(|path| !path.is_empty());
        token
            .or(token_file)
            .or_else(|| contents.map(SecretSource::CredentialsContents))
            .or_else(|| file.map(|path| SecretSource::CredentialsFile(PathBuf::from(path))))
            .unwrap_or(if self.tunnel { SecretSource::SearchCredentials } else { SecretSource::Missing })
    }

    fn secret(&self, key: &str) -> Option<Secret> {
        let flag = self.flags.values(key).last().filter(|text| !text.is_empty()).cloned();
        let text = flag.or_else(|| Some(variable(find(key)?, self.env)?.1))?;
        Some(Secret::new(text))
    }
}

/// `token:` of the file: a token in clear, or a reference.
pub(crate) fn token(reader: &mut Reader<'_>, node: &Node) -> Option<SecretSource> {
    match &node.value {
        Value::Map(_) => reference(reader, node, "token"),
        _ => {
            let text = reader.text(node, "token").filter(|text| !text.is_empty())?;
            // A token is base64 of an object, so it starts with `e`: a slash makes a path.
            let path = text.starts_with('/') || text.starts_with("./") || text.starts_with("../");
            Some(if path {
                SecretSource::TokenFile(PathBuf::from(text))
            } else {
                SecretSource::Token(Secret::new(text))
            })
        }
    }
}

/// `token-file:` of the file: a path, or a reference.
pub(crate) fn token_file(reader: &mut Reader<'_>, node: &Node) -> Option<SecretSource> {
    match &node.value {
        Value::Map(_) => reference(reader, node, "token-file"),
        _ => {
            let text = reader.text(node, "token-file").filter(|text| !text.is_empty())?;
            Some(SecretSource::TokenFile(PathBuf::from(text)))
        }
    }
}

fn reference(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<SecretSource> {
    const FORMS: &str = "must be one of `file` (with or without `key`), `env` and `credential`";
    let before = reader.report.mistakes.len();
    let (mut file, mut key, mut env, mut credential) = (None, None, None, None);
    for entry in reader.map(node, path)? {
        let here = &join(path, &entry.key);
        match &*entry.key {
            "credential" => credential = reader.text(&entry.node, here),
            "env" => env = reader.text(&entry.node, here),
            "file" => file = reader.text(&entry.node, here),
            "key" => key = reader.text(&entry.node, here),
            "vault" => reader.report.mistake(entry.place, here, NOT_YET),
            // One of adit's own forms, so not even `--lenient` lets a misspelt key pass.
            other => {
                let nearest = nearest(other, ["credential", "env", "file", "key", "vault"]);
                reader.report.unknown(entry.place, here, nearest);
            }
        }
    }
    if reader.report.mistakes.len() > before {
        return None;
    }
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (file, key, env, credential) = (filled(file), filled(key), filled(env), filled(credential));
    match (file, key, env, credential) {
        (Some(file), Some(key), None, None) => Some(SecretSource::FileKey { file: PathBuf::from(file), key }),
        (Some(file), None, None, None) => Some(SecretSource::TokenFile(PathBuf::from(file))),
        (None, None, Some(name), None) => Some(SecretSource::Env(name)),
        (None, None, None, Some(name)) if !name.contains('/') => Some(SecretSource::Credential(name)),
        _ => {
            reader.report.mistake(node.place, path, FORMS);
            None
        }
    }
}
