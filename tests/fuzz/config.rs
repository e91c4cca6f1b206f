//! What people and edges write: tokens, files, rules.

use std::cell::RefCell;

use adit::{
    config::{
        Flags, Hostname, Mistakes, PathPattern, RemoteConfig, Service, decoded_path, explain, local_push, normal_host,
        parse_file,
    },
    credentials::{Credentials, Token},
    edge::state::StateDir,
};

use super::engine::{about, gist, seen};

pub(super) const JSON: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b"null",
    b"true",
    b"1e400",
    b"-0",
    b"\"ingress\":",
    b"\"service\":",
    b"\"hostname\":",
    b"\"path\":",
    b"\"originRequest\":",
    b"\"warp-routing\":",
    b"\"access\":",
    b"\"http_status:404\"",
    b"\"connectTimeout\":",
    b"\"a\":",
    b"\"s\":",
    b"\"t\":",
    b"\"e\":",
    b"tunnel_token",
    b"AccountTag",
    b"TunnelSecret",
    b"TunnelID",
    b"[[[[[[[[",
    b"{\"a\":{\"a\":",
];
pub(super) const YAML: &[&[u8]] = &[
    b"\n",
    b"  ",
    b"- ",
    b": ",
    b"? ",
    b"&a ",
    b"*a",
    b"[*a, *a, *a, *a, *a, *a, *a, *a]",
    b"<<: ",
    b"!!binary ",
    b"|\n",
    b">-\n",
    b"---\n",
    b"...\n",
    b"# ",
    b"{a: ",
    b"[[[[",
    b"\"\\x00\"",
    b"'",
    b"ingress:",
    b"service: ",
    b"hostname: ",
    b"path: ",
    b"originRequest:",
    b"http_status:404",
    b"connectTimeout: 3s",
    b"grace-period: ",
    b"secretSha256:",
    b"hostnames: ",
    b"id: ",
    b"name: ",
];
pub(super) const RULES: &[&[u8]] = &[
    b"http://",
    b"https://",
    b"unix:",
    b"unix+tls:",
    b"tcp://",
    b"http_status:",
    b"*.",
    b"xn--",
    b"[::1]",
    b"[::ffff:1.2.3.4]",
    b":65535",
    b":0",
    b"%25",
    b"@",
    b"\xc3\xbc",
    b"\xe2\x80\x8d",
    b"\xf0\x9f\xa6\x80",
    b"..",
];
pub(super) const PATTERNS: &[&[u8]] = &[
    b"\\d",
    b"\\pL",
    b"[[:alpha:]]",
    b"[^",
    b"]",
    b"(?i)",
    b"(?P<a>",
    b"(?:",
    b"(?s:.)",
    b")",
    b"*",
    b"+?",
    b"{1000}",
    b"{2,1000}",
    b"{0}",
    b"\\Q",
    b"\\E",
    b"\\x{10ffff}",
    b"\\b",
    b"^",
    b"$",
    b"|",
    b"\\C",
    b"\\z",
    b"((((",
    b".*",
];

fn text(input: &[u8]) -> String {
    String::from_utf8_lossy(input).into_owned()
}

/// What was refused says why, at no greater length than what was refused deserves.
fn told(mistakes: &Mistakes, input: &str) -> u64 {
    assert!(!mistakes.0.is_empty());
    let mut kinds = Vec::new();
    for mistake in &mistakes.0 {
        assert!(!mistake.message.is_empty());
        let said = mistake.to_string();
        assert!(said.len() <= 8 * input.len() + 2_000, "{} bytes about {}", said.len(), input.len());
        if mistake.place.line > 0 {
            // YAML ends lines with a carriage return as well.
            assert!(mistake.place.line <= input.split(['\n', '\r']).count() + 1, "{said}");
        }
        kinds.push(gist(mistake.message.split('`').next().unwrap_or_default()));
    }
    kinds.sort();
    kinds.dedup();
    kinds.truncate(3);
    seen(kinds)
}

/// A token that was understood is the same after being written and read again, and never shows its secret.
pub(super) fn token(input: &[u8]) -> u64 {
    let text = text(input);
    let bare = Token::parse(&text);
    let found = match Token::from_source(&text) {
        Ok(token) => token,
        Err(error) => {
            let said = error.to_string();
            assert!(!said.is_empty() && said.len() < 2_000, "{said}");
            return seen((gist(&said), bare.is_ok()));
        }
    };
    if let Ok(bare) = bare {
        assert_eq!(bare, found);
    }
    assert_eq!(Token::parse(&found.encode()).unwrap(), found);
    let shown = format!("{found:?}");
    if let Ok(secret) = found.secret.expose_text()
        && secret.len() > 8
        && !found.account.contains(secret)
    {
        assert!(!shown.contains(secret));
    }
    seen((found.endpoint.is_some(), about(found.secret.expose().len()), about(found.account.len())))
}

/// A credentials file gives the same token as the token with the same facts.
pub(super) fn credentials_file(input: &[u8]) -> u64 {
    match Credentials::parse(&text(input)) {
        Err(error) => seen(gist(&error.to_string())),
        Ok(credentials) => {
            let tunnel = credentials.tunnel;
            match credentials.into_token(None) {
                Ok(token) => assert_eq!(Token::parse(&token.encode()).unwrap(), token),
                Err(_) => assert_eq!(tunnel, None),
            }
            seen(tunnel.is_some())
        }
    }
}

/// A file is read or refused with reasons; rules that were read can be exported, pushed and looked up.
pub(super) fn configuration(input: &[u8]) -> u64 {
    let text = text(input);
    match parse_file("config.yml", &text, &Flags::default(), |_| None) {
        Err(mistakes) => told(&mistakes, &text),
        Ok(loaded) => {
            let config = loaded.config;
            let Some(ingress) = &config.ingress else { return 1 };
            let found = explain(ingress, "https://app.example.com/a%2fb?c").unwrap();
            assert!(found.starts_with("Matched rule #"));
            let pushed = local_push(Some(ingress), &config.warp_routing, &[]);
            assert!(serde_json::from_str::<serde_json::Value>(&pushed).is_ok(), "{pushed}");
            seen((about(ingress.rules.len()), loaded.warnings.len().min(3)))
        }
    }
}

/// A push is taken or refused whole, with reasons; what it makes of its rules is what it makes of them again.
pub(super) fn pushed(input: &[u8]) -> u64 {
    match RemoteConfig::parse(input) {
        Err(mistakes) => told(&mistakes, &String::from_utf8_lossy(input)),
        Ok(config) => {
            assert!(config.ingress.rules.last().unwrap().is_catch_all());
            let again = local_push(Some(&config.ingress), &config.warp_routing, &[]);
            let again = RemoteConfig::parse(again.as_bytes()).unwrap_or_else(|mistakes| panic!("{again}: {mistakes}"));
            assert_eq!(again.ingress.rules.len(), config.ingress.rules.len());
            for (rule, before) in again.ingress.rules.iter().zip(&config.ingress.rules) {
                assert_eq!((&rule.hostname, &rule.path), (&before.hostname, &before.path));
            }
            seen((about(config.ingress.rules.len()), config.ignored_keys.min(2), config.warnings.len().min(2)))
        }
    }
}

thread_local! {
    static STATE: RefCell<Option<(tempfile::TempDir, StateDir)>> = const { RefCell::new(None) };
}

/// An edge's list of tunnels is read or refused; what was read is still there after a tunnel was added.
pub(super) fn tunnels_file(input: &[u8]) -> u64 {
    STATE.with_borrow_mut(|state| {
        let (dir, state) = state.get_or_insert_with(|| {
            let dir = tempfile::tempdir().unwrap();
            let state = StateDir::new(dir.path());
            state.open().unwrap();
            (dir, state)
        });
        let file = dir.path().join("tunnels.yml");
        std::fs::write(&file, input).unwrap();
        let before = match state.tunnels() {
            Ok(tunnels) => tunnels,
            Err(error) => {
                let said = error.to_string();
                assert!(!said.is_empty() && said.len() < 64 * input.len() + 2_000, "{} bytes", said.len());
                return seen(gist(said.rsplit(": ").next().unwrap_or_default()));
            }
        };
        state.new_token(&["new.example.com".into()], None).unwrap();
        let after = state.tunnels().unwrap();
        assert_eq!(after.iter().count(), before.iter().count() + 1);
        for (old, same) in before.iter().zip(after.iter()) {
            assert_eq!(old, same);
        }
        seen(about(before.iter().count()))
    })
}

/// A service that was understood is the same when its own spelling is read.
pub(super) fn service(input: &[u8]) -> u64 {
    match Service::parse(&text(input)) {
        Err(error) => {
            assert!(!error.to_string().is_empty());
            seen(std::mem::discriminant(&error))
        }
        Ok(service) => {
            let spelled = service.to_string();
            assert_eq!(Service::parse(&spelled).as_ref(), Ok(&service), "{spelled:?}");
            seen(spelled.split(':').next())
        }
    }
}

/// A name has one normal form, and a rule with that name matches it.
pub(super) fn hostname(input: &[u8]) -> u64 {
    let text = text(input);
    let normal = normal_host(&text).into_owned();
    assert!(normal.len() <= 8 * text.len() + 64);
    match Hostname::parse(&text) {
        Err(error) => seen(std::mem::discriminant(&error)),
        Ok(None) => 1,
        Ok(Some(name)) => {
            let again = Hostname::parse(name.as_str()).unwrap().unwrap();
            assert_eq!(again, name);
            match name.exact() {
                Some(exact) => {
                    assert_eq!(normal_host(exact), exact, "one normal form");
                    assert!(name.matches(&normal_host(exact)));
                }
                None => {
                    let inside = format!("a.{}", &text[2..]);
                    assert!(name.matches(&normal_host(&inside)), "{inside}");
                    assert!(!name.matches(&normal_host(&text[2..])));
                }
            }
            seen((name.exact().is_some(), text.is_ascii(), text.contains(':')))
        }
    }
}

/// A pattern compiles or is refused on one line; matching is linear, whatever the pattern.
pub(super) fn path_pattern(input: &[u8]) -> u64 {
    let text = text(input);
    match PathPattern::parse(&text) {
        Err(said) => {
            assert!(!said.is_empty() && !said.contains('\n'), "{said:?}");
            seen(gist(&said))
        }
        Ok(None) => 1,
        Ok(Some(pattern)) => {
            let hits = ["/", "/a/b.c", &format!("/{}", "a".repeat(2_000)), &text]
                .map(|path| pattern.is_match(&decoded_path(path)));
            seen((hits, about(text.len())))
        }
    }
}
