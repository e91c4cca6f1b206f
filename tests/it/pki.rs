//! `adit pki`: what it writes, read by OpenSSL, and what it leaves alone.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tokio::process::Command;

use crate::harness::process::run;

/// An authority's folder.
struct Pki(tempfile::TempDir);

impl Pki {
    async fn init() -> Self {
        let pki = Self(tempfile::tempdir().unwrap());
        let (status, out, error) = run(&["pki", "init", &pki.text(""), "--name", "test"]).await;
        assert_eq!(status, 0, "{out}{error}");
        pki
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("pki").join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    async fn issue(&self, args: &[&str]) -> (i32, String, String) {
        run(&[&["pki", "issue", "--dir", &self.text("")], args].concat()).await
    }

    async fn issued(&self, args: &[&str]) {
        let (status, out, error) = self.issue(args).await;
        assert_eq!(status, 0, "{args:?}: {out}{error}");
    }

    async fn revoke(&self, file: &str) -> (i32, String, String) {
        run(&["pki", "revoke", "--dir", &self.text(""), &self.text(file)]).await
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.path(""))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

async fn openssl(args: &[&str]) -> (bool, String) {
    let output = Command::new("openssl").args(args).output().await.expect("openssl");
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// Whether OpenSSL takes a leaf for this purpose, its intermediate taken from the file itself.
async fn verifies(pki: &Pki, leaf: &str, purpose: &str, more: &[&str]) -> (bool, String) {
    let (root, file) = (pki.text("root.pem"), pki.text(leaf));
    let args = [
        &["verify", "-x509_strict", "-purpose", purpose, "-CAfile", &root, "-untrusted", &file],
        more,
        &[file.as_str()],
    ]
    .concat();
    openssl(&args).await
}

async fn seconds_until(pki: &Pki, file: &str, days: u32) -> (bool, bool) {
    let valid = async |seconds: u64| {
        openssl(&["x509", "-noout", "-in", &pki.text(file), "-checkend", &seconds.to_string()]).await.0
    };
    let end = u64::from(days) * 86_400;
    (valid(end - 3_600).await, valid(end + 3_600).await)
}

#[tokio::test]
#[ignore = "needs openssl"]
async fn openssl_takes_a_leaf_for_both_directions_and_reads_what_it_says() {
    let pki = Pki::init().await;
    let id = "spiffe://example.org/ns/a/sa/adit";
    pki.issued(&["--name", "adit", "--dns", "adit.a.svc", "--dns", "127.0.0.1", "--uri", id]).await;
    for purpose in ["sslserver", "sslclient"] {
        let (taken, said) = verifies(&pki, "adit.pem", purpose, &[]).await;
        assert!(taken, "{said}");
    }
    let (_, text) = openssl(&["x509", "-noout", "-text", "-in", &pki.text("adit.pem")]).await;
    for part in [
        "Issuer: CN = test intermediate",
        "Subject: CN = adit",
        "DNS:adit.a.svc",
        "IP Address:127.0.0.1",
        "URI:spiffe://example.org/ns/a/sa/adit",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "Digital Signature",
        "id-ecPublicKey",
    ] {
        // Versions of OpenSSL differ in the spaces around `=`.
        assert!(text.replace(' ', "").contains(&part.replace(' ', "")), "no {part} in {text}");
    }
    assert!(!text.contains("CA:TRUE"), "{text}");
    // The whole bundle is a key pair: the key is the leaf's.
    let (_, of_leaf) = openssl(&["x509", "-noout", "-pubkey", "-in", &pki.text("adit.pem")]).await;
    let (_, of_key) = openssl(&["pkey", "-pubout", "-in", &pki.text("adit.pem")]).await;
    assert_eq!(of_leaf, of_key);
    for (file, days) in [("root.pem", 20 * 365), ("intermediate.pem", 10 * 365), ("adit.pem", 90)] {
        assert_eq!(seconds_until(&pki, file, days).await, (true, false), "{file}");
    }
    let (_, root) = openssl(&["x509", "-noout", "-text", "-in", &pki.text("root.pem")]).await;
    assert!(root.contains("CA:TRUE, pathlen:1") && root.contains("Certificate Sign, CRL Sign"), "{root}");
}

#[tokio::test]
#[ignore = "needs openssl"]
async fn openssl_refuses_a_leaf_once_it_is_revoked_and_no_other() {
    let pki = Pki::init().await;
    for name in ["reader", "writer", "third"] {
        pki.issued(&["--name", name, "--dns", name]).await;
    }
    let lists = pki.text("crl.pem");
    let check = ["-CRLfile", lists.as_str(), "-crl_check_all"];
    assert!(verifies(&pki, "reader.pem", "sslclient", &check).await.0);
    for (file, count) in [("writer.pem", 1), ("third.pem", 2), ("third.pem", 2)] {
        let (status, out, error) = pki.revoke(file).await;
        assert_eq!(status, 0, "{error}");
        assert!(out.contains(&format!("revoked  {count} in")), "{out}");
    }
    for (file, passes) in [("reader.pem", true), ("writer.pem", false), ("third.pem", false)] {
        let (taken, said) = verifies(&pki, file, "sslclient", &check).await;
        assert_eq!(taken, passes, "{file}: {said}");
        assert_eq!(said.contains("certificate revoked"), !passes, "{said}");
    }
    let (_, list) = openssl(&["crl", "-noout", "-text", "-in", &lists]).await;
    assert!(list.split_whitespace().collect::<String>().contains("X509v3CRLNumber:4"), "{list}");
}

#[tokio::test]
async fn keys_are_their_owners_alone_and_certificates_everybodys() {
    let pki = Pki::init().await;
    pki.issued(&["--name", "both", "--dns", "a.test"]).await;
    let (out, key) = (pki.text("apart.crt"), pki.text("apart.key"));
    pki.issued(&["--name", "apart", "--dns", "a.test", "--out", &out, "--key-out", &key]).await;
    for private in ["root.key", "intermediate.key", "both.pem", "apart.key"] {
        assert_eq!(mode(&pki.path(private)), 0o600, "{private}");
    }
    for public in ["root.pem", "intermediate.pem", "crl.pem", "apart.crt"] {
        assert_eq!(mode(&pki.path(public)), 0o644, "{public}");
        assert!(!std::fs::read_to_string(pki.path(public)).unwrap().contains("PRIVATE"), "{public}");
    }
    let bundle = std::fs::read_to_string(pki.path("both.pem")).unwrap();
    let kinds: Vec<_> = bundle.lines().filter(|line| line.starts_with("-----BEGIN")).collect();
    let certificate = "-----BEGIN CERTIFICATE-----";
    assert_eq!(kinds, [certificate, certificate, "-----BEGIN PRIVATE KEY-----"]);
}

#[tokio::test]
async fn nothing_that_is_there_is_written_over() {
    let pki = Pki::init().await;
    pki.issued(&["--name", "leaf", "--dns", "a.test"]).await;
    let content = || -> Vec<_> { pki.files().iter().map(|name| std::fs::read(pki.path(name)).unwrap()).collect() };
    let (names, before) = (pki.files(), content());
    let (status, _, error) = run(&["pki", "init", &pki.text("")]).await;
    assert!(status == 2 && error.contains("root.key is there already"), "{error}");
    let taken = pki.text("leaf.pem");
    let free = pki.text("free.pem");
    for args in [
        &["--name", "leaf", "--dns", "a.test"][..],
        &["--name", "root", "--dns", "a.test"],
        &["--name", "crl", "--dns", "a.test"],
        &["--name", "x", "--dns", "a.test", "--out", &taken],
        // Neither half of a pair stays behind.
        &["--name", "x", "--dns", "a.test", "--out", &free, "--key-out", &taken],
        &["--name", "x", "--dns", "a.test", "--out", &taken, "--key-out", &free],
    ] {
        let (status, _, error) = pki.issue(args).await;
        assert!(status == 2 && error.contains("is there already"), "{args:?}: {error}");
    }
    // A link is not written through, whether or not it leads somewhere.
    let elsewhere = pki.0.path().join("elsewhere");
    std::os::unix::fs::symlink(&elsewhere, pki.path("link.pem")).unwrap();
    assert_eq!(pki.issue(&["--name", "link", "--dns", "a.test"]).await.0, 2);
    assert!(!elsewhere.exists());
    std::fs::remove_file(pki.path("link.pem")).unwrap();
    assert_eq!((pki.files(), content()), (names, before));
}

#[tokio::test]
async fn an_authority_that_is_half_there_is_left_as_it_is() {
    let pki = Pki(tempfile::tempdir().unwrap());
    std::fs::create_dir(pki.path("")).unwrap();
    std::fs::write(pki.path("intermediate.pem"), "another's").unwrap();
    let (status, _, error) = run(&["pki", "init", &pki.text("")]).await;
    assert!(status == 2 && error.contains("intermediate.pem is there already"), "{error}");
    assert_eq!(pki.files(), ["intermediate.pem"]);
}

#[tokio::test]
async fn a_name_cannot_leave_its_folder_and_a_certificate_not_outlive_its_issuer() {
    let pki = Pki::init().await;
    let before = pki.files();
    for args in [
        &["--name", "../up", "--dns", "a.test"][..],
        &["--name", "a/b", "--dns", "a.test"],
        &["--name", ".hidden", "--dns", "a.test"],
        &["--name", "", "--dns", "a.test"],
        &["--name", "-x", "--dns", "a.test"],
        &["--name", "bell\u{7}", "--dns", "a.test"],
        &["--name", "nobody"],
        &["--name", "x", "--uri", "https://example.org/x"],
        &["--name", "x", "--uri", "spiffe://Example.org/x"],
        &["--name", "x", "--dns", "ä.test"],
        &["--name", "x", "--dns", "a.test", "--ttl", "90"],
        &["--name", "x", "--dns", "a.test", "--ttl", "0"],
        &["--name", "x", "--dns", "a.test", "--ttl", "3651d"],
    ] {
        let (status, out, error) = pki.issue(args).await;
        assert_eq!(status, 2, "{args:?}: {out}{error}");
    }
    assert_eq!(pki.files(), before);
    let (status, _, error) = run(&["pki", "issue", "--dir", "/nonexistent", "--name", "x", "--dns", "x"]).await;
    assert!(status == 1 && error.contains("/nonexistent/intermediate.pem"), "{error}");
}

#[tokio::test]
async fn only_what_an_authority_issued_is_revoked_and_by_one_at_a_time() {
    let (pki, other) = (Pki::init().await, Pki::init().await);
    other.issued(&["--name", "theirs", "--dns", "a.test"]).await;
    pki.issued(&["--name", "ours", "--dns", "a.test"]).await;
    let before = std::fs::read(pki.path("crl.pem")).unwrap();
    std::fs::copy(other.path("theirs.pem"), pki.path("theirs.pem")).unwrap();
    // The authorities have the same names; their keys differ.
    for foreign in ["theirs.pem", "root.pem", "intermediate.pem", "crl.pem"] {
        let (status, _, error) = pki.revoke(foreign).await;
        assert_eq!(status, 2, "{foreign}: {error}");
    }
    std::fs::write(pki.path("crl.pem.new"), "").unwrap();
    let (status, _, error) = pki.revoke("ours.pem").await;
    assert!(status == 1 && error.contains("crl.pem.new"), "{error}");
    assert_eq!(std::fs::read(pki.path("crl.pem")).unwrap(), before);
    std::fs::remove_file(pki.path("crl.pem.new")).unwrap();
    assert_eq!(pki.revoke("ours.pem").await.0, 0);
    assert!(!pki.path("crl.pem.new").exists());
}
