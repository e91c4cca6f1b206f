//! `pki`: certificates for laboratories. A folder holds the authority; everything else is written where it is asked for.
//!
//! ```text
//! DIR/root.pem            what is trusted          DIR/root.key            0600
//! DIR/intermediate.pem    what issues              DIR/intermediate.key    0600
//! DIR/crl.pem             what is revoked: the intermediate's list, then the root's
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject};
use zeroize::Zeroizing;

use super::{Outcome, complain, say};
use crate::{
    config::duration,
    identity::SpiffeId,
    tls::{
        self,
        issue::{Authority, Leaf, NewAuthority, NewLeaf, new_laboratory},
    },
};

/// Anybody may read a certificate, its owner alone a key.
const PUBLIC: u32 = 0o644;
const PRIVATE: u32 = 0o600;

#[derive(Debug, Subcommand)]
pub(super) enum PkiCommand {
    /// Make a root (20 years) and an intermediate authority (10 years)
    Init {
        /// The folder for them; created if need be
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// What their common names begin with
        #[arg(long, default_value = "adit laboratory", value_parser = common_name)]
        name: String,
    },
    /// Issue a leaf for servers and clients: one PEM file of leaf, intermediate and key
    Issue(IssueArgs),
    /// Put certificates on the list of revoked ones, DIR/crl.pem
    Revoke {
        /// The authority's folder
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// PEM files; the first certificate of each is revoked
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(super) struct IssueArgs {
    /// The authority's folder
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The common name, and the file's name if there is no --out: letters, digits, `.`, `-`, `_`
    #[arg(long, value_parser = file_name)]
    name: String,
    /// A DNS name or an address; may be repeated
    #[arg(long, value_name = "NAME", required_unless_present = "uri")]
    dns: Vec<String>,
    /// A SPIFFE ID; a certificate with several has none
    #[arg(long, value_name = "SPIFFE", value_parser = |text: &str| text.parse::<SpiffeId>())]
    uri: Vec<SpiffeId>,
    /// How long it is valid: 90d, 36h, 15m
    #[arg(long, default_value = "90d", value_parser = lifetime)]
    ttl: Duration,
    /// Where it goes; by default DIR/NAME.pem
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The key goes there, and not behind the certificates
    #[arg(long, value_name = "FILE")]
    key_out: Option<PathBuf>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0} is there already and is not overwritten")]
    Exists(String),
    #[error("{path}: {source}")]
    Io { path: String, source: io::Error },
    #[error("{0}: is no certificate that {1} issued")]
    NotOurs(String, String),
    #[error("{0}.new is there: another `adit pki revoke` runs, or one was stopped; remove the file then")]
    Revoking(String),
    #[error("{path}: {source}")]
    Tls { path: String, source: tls::Error },
}

pub(super) fn run(command: PkiCommand) -> Outcome {
    let result = match command {
        PkiCommand::Init { dir, name } => init(&Dir(dir), &name),
        PkiCommand::Issue(args) => issue(args),
        PkiCommand::Revoke { dir, files } => revoke(&Dir(dir), &files),
    };
    match result {
        Ok(()) => Outcome::Done,
        Err(error) => {
            complain(&format!("adit pki: {error}"));
            match error {
                Error::Io { .. } | Error::Revoking(_) => Outcome::Failed,
                Error::Exists(_) | Error::NotOurs(..) | Error::Tls { .. } => Outcome::Usage,
            }
        }
    }
}

/// The authority's folder.
struct Dir(PathBuf);

impl Dir {
    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// One of the two authorities, and its certificate as text.
    fn authority(&self, name: &str) -> Result<(Authority, String), Error> {
        let (certificate, key) = (self.file(&format!("{name}.pem")), self.file(&format!("{name}.key")));
        let certificate_pem = read(&certificate)?;
        let key_pem = Zeroizing::new(read(&key)?);
        let authority = Authority::from_pem(&certificate_pem, &key_pem).map_err(of(&certificate))?;
        Ok((authority, certificate_pem))
    }
}

fn init(dir: &Dir, name: &str) -> Result<(), Error> {
    let made = new_laboratory(name).map_err(of(&dir.0))?;
    let from = |made: &NewAuthority| Authority::from_pem(&made.certificate_pem, &made.key_pem);
    let list = |made: &NewAuthority| from(made).and_then(|authority| authority.revocation_list(None, &[]));
    let lists = [list(&made.intermediate), list(&made.root)].map(|list| list.map(|list| list.pem).map_err(of(&dir.0)));
    let [issued, root] = lists;
    let lists = issued? + &root?;
    fs::create_dir_all(&dir.0).map_err(io_error(&dir.0))?;
    let files = [
        ("root.key", made.root.key_pem.as_str(), PRIVATE),
        ("root.pem", made.root.certificate_pem.as_str(), PUBLIC),
        ("intermediate.key", made.intermediate.key_pem.as_str(), PRIVATE),
        ("intermediate.pem", made.intermediate.certificate_pem.as_str(), PUBLIC),
        ("crl.pem", lists.as_str(), PUBLIC),
    ];
    write_all(&files.map(|(name, content, mode)| (dir.file(name), content, mode)))?;
    say(&format!("trust    {}", dir.file("root.pem").display()));
    say(&format!("revoked  {}", dir.file("crl.pem").display()));
    say(&format!("next     adit pki issue --dir {} --name NAME --uri spiffe://example.org/NAME", dir.0.display()));
    Ok(())
}

fn issue(args: IssueArgs) -> Result<(), Error> {
    let dir = Dir(args.dir);
    let (authority, issuer_pem) = dir.authority("intermediate")?;
    let leaf = Leaf { name: &args.name, dns: &args.dns, uris: &args.uri, lifetime: args.ttl };
    let NewLeaf { certificate_pem, key_pem, not_after } =
        authority.issue_leaf(&leaf).map_err(of(&dir.file("intermediate.pem")))?;
    let out = args.out.unwrap_or_else(|| dir.file(&format!("{}.pem", args.name)));
    let chain = certificate_pem + &issuer_pem;
    match args.key_out {
        Some(key_out) => {
            write_all(&[(key_out.clone(), key_pem.as_str(), PRIVATE), (out.clone(), chain.as_str(), PUBLIC)])?;
            say(&format!("certificates  {}", out.display()));
            say(&format!("key           {}", key_out.display()));
        }
        None => {
            let bundle = Zeroizing::new(chain + &key_pem);
            write_all(&[(out.clone(), bundle.as_str(), PRIVATE)])?;
            say(&format!("bundle        {}", out.display()));
        }
    }
    say(&format!("valid until   {not_after}"));
    Ok(())
}

fn revoke(dir: &Dir, files: &[PathBuf]) -> Result<(), Error> {
    let (authority, issuer_pem) = dir.authority("intermediate")?;
    let mut revoked = Vec::new();
    for path in files {
        let shown = || path.display().to_string();
        let certificate = CertificateDer::from_pem_slice(read(path)?.as_bytes())
            .map_err(|_| Error::Tls { path: shown(), source: tls::Error::NoCertificate(shown()) })?;
        let own = CertificateDer::from_pem_slice(issuer_pem.as_bytes()).is_ok_and(|issuer| issuer == certificate);
        if own || !authority.names_issuer_of(&certificate) {
            return Err(Error::NotOurs(shown(), dir.file("intermediate.pem").display().to_string()));
        }
        revoked.push(certificate);
    }
    let crl = dir.file("crl.pem");
    // The new file is the lock: only one process can create it, and nobody ever reads half a list.
    let draft = dir.file("crl.pem.new");
    match create(&draft, PUBLIC) {
        Err(Error::Exists(_)) => return Err(Error::Revoking(crl.display().to_string())),
        created => drop(created?),
    }
    let written = relist(&authority, &crl, &revoked).and_then(|(text, count)| {
        fs::write(&draft, text).map_err(io_error(&draft))?;
        fs::rename(&draft, &crl).map_err(io_error(&crl))?;
        Ok(count)
    });
    let count = written.inspect_err(|_| {
        let _ = fs::remove_file(&draft);
    })?;
    say(&format!("revoked  {count} in {}", crl.display()));
    Ok(())
}

/// The lists of `crl`, the first one with these certificates too, and how many it has then.
fn relist(authority: &Authority, crl: &Path, revoked: &[CertificateDer<'_>]) -> Result<(String, usize), Error> {
    let before = read(crl)?;
    let first = CertificateRevocationListDer::from_pem_slice(before.as_bytes())
        .map_err(|_| of(crl)(tls::Error::NoRevocationList))?;
    let list = authority.revocation_list(Some(&first), revoked).map_err(of(crl))?;
    // What follows the first list are the root's words; they are kept as they are.
    let end = "-----END X509 CRL-----";
    let rest = before.split_once(end).map_or("", |(_, rest)| rest.trim_start());
    Ok((list.pem + rest, list.revoked))
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(io_error(path))
}

/// A file that was not there before: neither another's file nor a link is written through.
fn create(path: &Path, mode: u32) -> Result<fs::File, Error> {
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(|source| {
        if source.kind() == io::ErrorKind::AlreadyExists {
            Error::Exists(path.display().to_string())
        } else {
            io_error(path)(source)
        }
    })
}

/// Writes new files, all or none.
fn write_all(files: &[(PathBuf, &str, u32)]) -> Result<(), Error> {
    use std::io::Write;
    let mut made: Vec<(fs::File, &Path, &str)> = Vec::new();
    let written = files
        .iter()
        .try_for_each(|(path, content, mode)| {
            made.push((create(path, *mode)?, path, content));
            Ok(())
        })
        .and_then(|()| {
            made.iter().try_for_each(|(file, path, content)| {
                let mut file = file;
                file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(io_error(path))
            })
        });
    if written.is_err() {
        for (_, path, _) in &made {
            let _ = fs::remove_file(path);
        }
    }
    written
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    |source| Error::Io { path: path.display().to_string(), source }
}

fn of(path: &Path) -> impl Fn(tls::Error) -> Error + '_ {
    |source| Error::Tls { path: path.display().to_string(), source }
}

/// 64 characters are the most that a common name has (RFC 5280, appendix A.1); the authorities' names get a word more.
fn common_name(text: &str) -> Result<String, &'static str> {
    if text.is_empty() || text.chars().count() > 50 || text.chars().any(char::is_control) {
        return Err("a name has 1 to 50 characters");
    }
    Ok(text.to_owned())
}

/// A name that is a file's too, and stays in its folder.
fn file_name(text: &str) -> Result<String, &'static str> {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    if !plain || !text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric) || text.len() > 64 {
        return Err("a name has 1 to 64 letters, digits, `.`, `-` or `_`, and begins with a letter or a digit");
    }
    Ok(text.to_owned())
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = duration::parse_with_days(text).map_err(|error| error.to_string())?;
    if lifetime < Duration::from_secs(1) {
        return Err("a certificate is valid for at least 1s".to_owned());
    }
    Ok(lifetime)
}
