//! Which rule answers a request.

use adit::config::{Hostname, PathPattern};
use adit::ingress::{Pattern, Table};
use proptest::prelude::*;

fn row(hostname: &str, path: &str) -> Pattern {
    Pattern { hostname: Hostname::parse(hostname).unwrap(), path: PathPattern::parse(path).unwrap() }
}

fn small(rows: &[(&str, &str)]) -> Table<()> {
    Table::new(rows.iter().map(|(hostname, path)| (row(hostname, path), ()))).unwrap()
}

#[test]
fn the_first_match_wins_whatever_kind_of_name_it_has() {
    let table = small(&[("*.example.com", "^/a"), ("x.example.com", ""), ("*.com", ""), ("", "")]);
    assert_eq!(table.find("x.example.com", "/a").0, 0);
    assert_eq!(table.find("x.example.com", "/b").0, 1);
    assert_eq!(table.find("y.example.com", "/b").0, 2);
    assert_eq!(table.find("example.org", "/a").0, 3);
}

#[test]
fn a_port_and_brackets_do_not_hide_an_ipv6_host() {
    for rule in ["::1", "[::1]", "0:0:0:0:0:0:0:1"] {
        let table = small(&[(rule, ""), ("", "")]);
        for host in ["[::1]:80", "[::1]", "::1", "[0:0::1]:443"] {
            assert_eq!(table.find(host, "/").0, 0, "{rule} {host}");
        }
        assert_eq!(table.find("[::2]:80", "/").0, 1);
    }
}

#[test]
fn an_international_wildcard_matches_what_the_edge_sends() {
    let table = small(&[("*.bücher.example", ""), ("", "")]);
    assert_eq!(table.find("a.xn--bcher-kva.example", "/").0, 0);
    assert_eq!(table.find("A.B.XN--BCHER-KVA.example.:443", "/").0, 0);
    assert_eq!(table.find("xn--bcher-kva.example", "/").0, 1);
}

#[test]
fn the_path_is_matched_decoded_and_without_its_query() {
    let table = small(&[("", "^/a/b$"), ("", "")]);
    assert_eq!(table.find("h", "/a%2Fb").0, 0);
    assert_eq!(table.find("h", "/a%2fb?c=d").0, 0);
    assert_eq!(table.find("h", "/a/b?^/x").0, 0);
    assert_eq!(table.find("h", "/x?/a/b").0, 1);
}

#[test]
fn broken_escapes_and_broken_utf8_are_matched_as_they_are() {
    let table = small(&[("", "^/%zz$"), ("", "^/x[^/]y$"), ("", "")]);
    assert_eq!(table.find("h", "/%zz").0, 0);
    assert_eq!(table.find("h", "/x%ffy").0, 1);
    assert_eq!(table.find("h", "/x%ff%fey").0, 2);
    assert_eq!(table.find("h", "/x%fy").0, 2);
    assert_eq!(table.find("h", "%").0, 2);
}

#[test]
fn without_a_match_the_last_row_answers() {
    let table = small(&[("a.com", ""), ("b.com", "")]);
    assert_eq!(table.find("c.com", "/").0, 1);
}

#[test]
fn a_table_is_never_empty() {
    assert!(Table::<()>::new([]).is_none());
}

#[test]
fn go_and_rust_patterns_mean_the_same() {
    let matches = |pattern: &str, path: &str| PathPattern::parse(pattern).unwrap().unwrap().is_match(path.as_bytes());
    // Go's classes are ASCII.
    assert!(matches(r"^/\d+$", "/12"));
    assert!(!matches(r"^/\d+$", "/١٢"));
    assert!(!matches(r"^/\w$", "/é"));
    assert!(matches(r"^/[\w-]+$", "/a-b_c"));
    assert!(matches(r"^/[\w-z]$", "/-"));
    assert!(!matches(r"^/[\w-z]$", "/`"));
    assert!(matches(r"^/[^\d\s]$", "/a"));
    assert!(matches(r"^/\W$", "/-"));
    assert!(matches(r"^/a\b", "/a-"));
    // Quoting, and braces that count nothing.
    assert!(matches(r"^/\Qa.b\E$", "/a.b"));
    assert!(!matches(r"^/\Qa.b\E$", "/axb"));
    assert!(matches("^/api/{id}$", "/api/{id}"));
    assert!(matches("^/a{2,}$", "/aaa"));
    // Brackets and ampersands inside a class are themselves.
    assert!(matches("^/[[&&]+$", "/[&"));
    assert!(matches("^/[]a]$", "/]"));
    assert!(matches("^/[^]]$", "/a"));
    assert!(matches("^/[[:alpha:]_]+$", "/a_"));
    assert!(matches("(?i)^/API", "/api"));
    assert!(matches("^/(?P<v>v1|v2)/", "/v2/"));
}

#[test]
fn a_pattern_costs_bounded_memory() {
    for pattern in [r"(?i)\pL{900}".to_owned(), "((a{100}){100}){100}".to_owned(), "a".repeat(5000)] {
        assert!(PathPattern::parse(&pattern).is_err(), "{}", &pattern[..20]);
    }
    assert!(PathPattern::parse(&"(".repeat(4000)).is_err());
}

fn naive(rows: &[(Pattern, usize)], host: &str, path: &str) -> usize {
    let mut host = host.to_lowercase();
    if let Some((name, _)) = host.clone().split_once(':') {
        host = name.to_owned();
    }
    let host = host.strip_suffix('.').unwrap_or(&host).to_owned();
    let matches = |pattern: &Pattern| {
        let name = match &pattern.hostname {
            None => true,
            Some(name) => match name.as_str().to_lowercase().strip_prefix('*') {
                Some(rest) => host.ends_with(rest) && host.len() > rest.len(),
                None => host == name.as_str().to_lowercase(),
            },
        };
        name && pattern.path.as_ref().is_none_or(|path_pattern| path.contains(path_pattern.as_str()))
    };
    rows.iter().position(|(pattern, _)| matches(pattern)).unwrap_or(rows.len() - 1)
}

fn some_name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ab]{1}\\.[ab]{1}",
        "[AaBb]{1}\\.[ab]{1}\\.[ab]{1}",
        "\\*\\.[ab]{1}\\.[ab]{1}",
        "\\*\\.[aB]{1}",
        Just(String::new()),
    ]
}

proptest! {
    #[test]
    fn the_table_agrees_with_a_list_walked_from_the_top(
        rows in proptest::collection::vec((some_name(), "(/[ab]{1,2})?"), 1..12),
        host in "[abAB]{1}(\\.[abAB]{1}){0,3}\\.?(:80)?",
        path in "(/[ab]{1,2}){1,3}",
    ) {
        let rows: Vec<_> =
            rows.iter().enumerate().map(|(at, (name, path))| (row(name, path), at)).collect();
        let table = Table::new(rows.clone()).unwrap();
        prop_assert_eq!(*table.find(&host, &path).1, naive(&rows, &host, &path));
    }

    #[test]
    fn no_request_makes_the_table_panic(host in "\\PC{0,40}", path in "[%0-9a-fA-Fé/?]{0,40}") {
        let table = small(&[("*.example.com", "^/a"), ("example.com", "[^b]{2}"), ("", "")]);
        prop_assert!(table.find(&host, &path).0 < 3);
    }

    #[test]
    fn no_pattern_makes_the_translation_panic(
        pattern in "[\\\\\\[\\]{}()*+?|^$.:,QEdDwWsSbBxpPLU0-9a&~é-]{0,30}",
    ) {
        let _ = PathPattern::parse(&pattern);
    }
}
