//! Every kind of key that is presented, in every form that holds it.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use rcgen::{KeyPair, RsaKeySize};
use rustls::version::{TLS12, TLS13};

use crate::harness::{
    Lab, Over,
    hop::{Hop, counted},
    over_both,
    tls::Leaf,
};

/// The key in the form that is older than PKCS#8: PKCS#1 of RSA, SEC1 of elliptic curves.
fn traditional(key: &str) -> String {
    let mut openssl = Command::new("openssl")
        .args(["pkey", "-traditional"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("openssl: {error}"));
    openssl.stdin.take().unwrap().write_all(key.as_bytes()).unwrap();
    String::from_utf8(openssl.wait_with_output().unwrap().stdout).unwrap()
}

async fn presented(over: Over) {
    for version in [&TLS12, &TLS13] {
        let hop = Hop::new();
        let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        let of = |algorithm| KeyPair::generate_for(algorithm).unwrap();
        let keys = [
            ("rsa", rsa, "RSA PRIVATE KEY"),
            ("p256", of(&rcgen::PKCS_ECDSA_P256_SHA256), "EC PRIVATE KEY"),
            ("p384", of(&rcgen::PKCS_ECDSA_P384_SHA384), "EC PRIVATE KEY"),
            ("ed25519", of(&rcgen::PKCS_ED25519), ""),
        ];
        let service = counted(hop.acceptor(&hop.ca.leaf(&["127.0.0.1"]), &[version], true), false).await;
        let (mut names, mut rules) = (Vec::new(), String::new());
        let mut add = |name: String, leaf: &Leaf| {
            hop.identity(&name, leaf);
            rules += &format!(
                "  - {{ hostname: {name}.web.test, service: 'https://127.0.0.1:{}', innerHop: {{ present: {name} }} }}\n",
                service.port
            );
            names.push(name);
        };
        for (kind, key, label) in &keys {
            let leaf = hop.ca.leaf_with(&[&format!("{kind}.adit.test")], key, |_| {});
            assert!(leaf.key.starts_with("-----BEGIN PRIVATE KEY-----"));
            add((*kind).to_owned(), &leaf);
            if !label.is_empty() {
                let key = traditional(&leaf.key);
                assert!(key.starts_with(&format!("-----BEGIN {label}-----")), "{kind}");
                add(format!("{kind}-old"), &Leaf { key, ..leaf });
            }
        }
        rules += "  - service: http_status:404\n";
        let shown: Vec<_> = names.iter().map(String::as_str).collect();
        let lab = Lab::start(over, &hop.config(&shown, "", &rules)).await;
        for name in &names {
            let answer = lab.raw(format!("GET / HTTP/1.1\r\nHost: {name}.web.test\r\nConnection: close\r\n\r\n")).await;
            assert_eq!(answer.status, 200, "{name}: {answer:?}");
        }
        lab.finish().await;
        let seen = service.seen();
        assert!(seen.len() == 7 && seen.iter().all(|seen| seen.peer.is_some()), "{seen:?}");
    }
}

over_both! {
    #[ignore = "needs openssl in the PATH; .ci/run installs and runs it"]
    keys_of_every_kind_in_the_forms_that_openssl_writes_are_presented => presented,
}
