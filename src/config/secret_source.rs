//! Where the token or the credentials come from: the order of cloudflared, and adit's references.

use std::path::PathBuf;

use super::flags::Flags;
use super::layers::variable;
use super::mistakes::{Place, Report};
use super::reader::Reader;
use super::settings::find;
use super::tree::{Node, Value};
use super::{SecretRef, SecretSource};
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
        Value::Map(_) => SecretRef::keyed(reader, node, "token").map(Into::into),
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
        Value::Map(_) => SecretRef::keyed(reader, node, "token-file").map(Into::into),
        _ => {
            let text = reader.text(node, "token-file").filter(|text| !text.is_empty())?;
            Some(SecretSource::TokenFile(PathBuf::from(text)))
        }
    }
}
