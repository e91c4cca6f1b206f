//! References to secrets: the forms in which a file says where something stands that it must not hold itself.

use std::path::PathBuf;

use super::mistakes::nearest;
use super::reader::{Reader, join};
use super::rules::NOT_YET;
use super::tree::{Node, Value};
use super::{SecretRef, SecretSource};

/// Every key of a reference.
const KEYS: [&str; 5] = ["credential", "env", "file", "key", "vault"];

impl SecretRef {
    /// Reads a path or one of the forms with keys. `None`: reported, or there is nothing.
    pub(crate) fn read(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<Self> {
        if matches!(node.value, Value::Map(_)) {
            return Self::keyed(reader, node, path);
        }
        let text = reader.text(node, path)?;
        // Whoever pastes a key here shows it to everybody who may read the file, and to the log.
        let message = if text.is_empty() {
            "is empty; it is the path of a file, or { file, key }, { credential } or { env }"
        } else if text.contains("-----BEGIN") || text.contains('\n') {
            "a secret or a certificate does not stand in the file itself; name the file that holds it"
        } else {
            return Some(Self::File(PathBuf::from(text)));
        };
        reader.report.mistake(node.place, path, message);
        None
    }

    /// Whether a mapping is a reference at all.
    pub(crate) fn is_keyed(node: &Node) -> bool {
        matches!(&node.value, Value::Map(entries) if entries.iter().any(|entry| KEYS[..3].contains(&&*entry.key)))
    }

    /// Reads the forms with keys.
    pub(crate) fn keyed(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<Self> {
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
                other => reader.report.unknown(entry.place, here, nearest(other, KEYS)),
            }
        }
        if reader.report.mistakes.len() > before {
            return None;
        }
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        let (file, key, env, credential) = (filled(file), filled(key), filled(env), filled(credential));
        match (file, key, env, credential) {
            (Some(file), Some(key), None, None) => Some(Self::FileKey { file: PathBuf::from(file), key }),
            (Some(file), None, None, None) => Some(Self::File(PathBuf::from(file))),
            (None, None, Some(name), None) => Some(Self::Env(name)),
            (None, None, None, Some(name)) if !name.contains('/') => Some(Self::Credential(name)),
            _ => {
                reader.report.mistake(node.place, path, FORMS);
                None
            }
        }
    }
}

impl From<SecretRef> for SecretSource {
    /// Of a token.
    fn from(reference: SecretRef) -> Self {
        match reference {
            SecretRef::Credential(name) => Self::Credential(name),
            SecretRef::Env(name) => Self::Env(name),
            SecretRef::File(path) => Self::TokenFile(path),
            SecretRef::FileKey { file, key } => Self::FileKey { file, key },
        }
    }
}
