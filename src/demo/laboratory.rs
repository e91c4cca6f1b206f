//! The demo's certificates: one authority for workloads, one for visitors, so that neither passes for the other.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::tls::issue::{Authority, Laboratory as Chain, Leaf, new_laboratory};

/// Who is who. A trust domain of its own: nothing out there can be meant.
pub(super) const CONNECTOR: &str = "spiffe://demo.adit/connector";
pub(super) const SERVICE: &str = "spiffe://demo.adit/service";
/// What the service is called in a handshake, and nowhere else.
pub(super) const SERVICE_NAME: &str = "service.demo";
pub(super) const VISITOR: &str = "spiffe://demo.adit/visitor";
/// Whom the visitor pretends to be.
pub(super) const FORGED: &str = "spiffe://demo.adit/admin";

/// Files, gone with the demo's folder.
#[derive(Debug)]
pub(super) struct Laboratory {
    /// The authority of connector and service.
    pub(super) workloads: PathBuf,
    /// The authority of visitors.
    pub(super) visitors: PathBuf,
    /// Bundles of leaf, chain and key.
    pub(super) connector: PathBuf,
    pub(super) service: PathBuf,
    pub(super) visitor: PathBuf,
}

impl Laboratory {
    pub(super) fn make(dir: &Path) -> anyhow::Result<Self> {
        let write = |name: &str, content: &str| {
            use std::{io::Write, os::unix::fs::OpenOptionsExt};
            let path = dir.join(name);
            let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            file.and_then(|mut file| file.write_all(content.as_bytes())).with_context(|| path.display().to_string())?;
            anyhow::Ok(path)
        };
        let leaf = |of: &Chain, name: &str, id: &str| {
            let issuer = Authority::from_pem(&of.intermediate.certificate_pem, &of.intermediate.key_pem)?;
            let lifetime = std::time::Duration::from_secs(90 * 86_400);
            let dns = if id == SERVICE { vec![SERVICE_NAME.to_owned()] } else { Vec::new() };
            let made = issuer.issue_leaf(&Leaf { name, dns: &dns, uris: &[id.parse()?], lifetime })?;
            let bundle = [&made.certificate_pem, &of.intermediate.certificate_pem, made.key_pem.as_str()].concat();
            write(&format!("{name}.pem"), &zeroize::Zeroizing::new(bundle))
        };
        let (workloads, visitors) = (new_laboratory("demo workloads")?, new_laboratory("demo visitors")?);
        Ok(Self {
            workloads: write("workloads.pem", &workloads.root.certificate_pem)?,
            visitors: write("visitors.pem", &visitors.root.certificate_pem)?,
            connector: leaf(&workloads, "connector", CONNECTOR)?,
            service: leaf(&workloads, "service", SERVICE)?,
            visitor: leaf(&visitors, "visitor", VISITOR)?,
        })
    }
}
