//! What cloudflared was seen to do, case by case: `tests/data/feature_cases.json`.
//!
//! Every group of the file has a runner, and every runner gets every case of its group. Where adit does better, or the
//! contract says otherwise, `tests/improvements.toml` and `tests/deviations.toml` amend what is expected, and the
//! amended case is what must hold; the case as recorded must then fail, so no entry outlives its reason.

mod contract;
mod files;
mod flags;
mod matrix;
mod process;
mod roundtrip;
mod roundtrip_lab;
mod signals;
mod state;
mod streams;
mod wire;

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

use futures_util::{FutureExt, future::join_all};
use serde_json::Value;

use crate::harness::in_time;
use contract::{Amendment, amendments};

/// How one case went: `Err` says what differs.
pub(crate) type Verdict = Result<(), String>;

/// The cases of a run by id, in any order.
pub(crate) type Verdicts = Vec<(String, Verdict)>;

/// The file's groups in its order, each with its cases.
pub(crate) fn groups() -> Vec<(String, Vec<Value>)> {
    let file: Value = serde_json::from_str(include_str!("../data/feature_cases.json")).unwrap();
    let groups = file.as_object().unwrap().iter();
    groups.map(|(name, cases)| (name.clone(), cases.as_array().unwrap().clone())).collect()
}

/// A text of a case.
pub(crate) fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key].as_str().unwrap_or_else(|| panic!("no `{key}` in {case}"))
}

/// A list of a case.
pub(crate) fn list<'a>(case: &'a Value, key: &str) -> &'a [Value] {
    case[key].as_array().unwrap_or_else(|| panic!("no list `{key}` in {case}"))
}

/// Says what differs, if anything does.
pub(crate) fn same(seen: &Value, wanted: &Value) -> Verdict {
    let mut found = Vec::new();
    differences("", seen, wanted, &mut found);
    if found.is_empty() { Ok(()) } else { Err(found.join("; ")) }
}

fn differences(at: &str, seen: &Value, wanted: &Value, found: &mut Vec<String>) {
    match (seen.as_object(), wanted.as_object()) {
        (Some(left), Some(right)) => {
            for key in left.keys().chain(right.keys().filter(|key| !left.contains_key(*key))) {
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                match (left.get(key), right.get(key)) {
                    (Some(seen), Some(wanted)) => differences(&at, seen, wanted, found),
                    (Some(seen), None) => found.push(format!("{at}: {seen}, but should not be there")),
                    (_, wanted) => found.push(format!("{at}: missing, should be {}", wanted.unwrap_or(&Value::Null))),
                }
            }
        }
        _ if seen == wanted => {}
        _ => found.push(format!("{at}: {seen}, should be {wanted}")),
    }
}

/// What a case's assertion said when it failed.
fn said(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_default()
}

/// Runs cases that need no runtime; an assertion that fails is a verdict.
fn each(cases: &[Value], run: fn(&Value)) -> Verdicts {
    let verdict = |case: &Value| catch_unwind(AssertUnwindSafe(|| run(case))).map_err(said);
    cases.iter().map(|case| (text(case, "id").to_owned(), verdict(case))).collect()
}

/// Runs a case; an assertion that fails is a verdict here, too.
pub(crate) async fn judged(case: &Value, run: impl Future<Output = Verdict>) -> (String, Verdict) {
    let verdict = AssertUnwindSafe(run).catch_unwind().await;
    (text(case, "id").to_owned(), verdict.unwrap_or_else(|panic| Err(said(panic))))
}

/// Runs cases that share nothing, all at once.
pub(crate) async fn together(cases: &[Value], run: impl AsyncFn(Value) -> Verdict) -> Verdicts {
    join_all(cases.iter().map(|case| judged(case, run(case.clone())))).await
}

/// RFC 7396: objects merge, `null` removes, everything else replaces.
fn merge(value: &mut Value, patch: &Value) {
    let Some(entries) = patch.as_object() else { return *value = patch.clone() };
    if !value.is_object() {
        *value = Value::Object(Default::default());
    }
    let object = value.as_object_mut().unwrap();
    for (key, change) in entries {
        if change.is_null() {
            object.remove(key);
        } else {
            merge(object.entry(key.clone()).or_insert(Value::Null), change);
        }
    }
}

/// A case as adit has to pass it.
fn amended(group: &str, case: &Value, amendments: &[Amendment]) -> Value {
    let mut case = case.clone();
    let id = text(&case, "id").to_owned();
    for amendment in amendments.iter().filter(|amendment| amendment.names(group, &id)) {
        merge(&mut case, &amendment.expect);
    }
    case
}

/// Whether what was recorded cannot hold beside what is wanted; a mere addition lets it.
fn contradicted(was: &Value, is: &Value) -> bool {
    match (was.as_object(), is.as_object()) {
        (Some(was), Some(is)) => was.iter().any(|(key, was)| is.get(key).is_none_or(|is| contradicted(was, is))),
        _ => was != is,
    }
}

async fn check<F: Future<Output = Verdicts>>(group: &str, run: impl Fn(Vec<Value>) -> F) {
    let recorded = groups().into_iter().find(|(name, _)| name == group).expect("a group of the file").1;
    let amendments = amendments();
    let wanted: Vec<_> = recorded.iter().map(|case| amended(group, case, &amendments)).collect();
    let changed: Vec<_> =
        recorded.iter().zip(&wanted).filter(|(was, is)| contradicted(was, is)).map(|(was, _)| was.clone()).collect();

    let verdicts = run(wanted).await;
    let ids = |cases: &[Value]| cases.iter().map(|case| text(case, "id").to_owned()).collect::<Vec<_>>();
    let ran = |verdicts: &Verdicts| {
        let mut ran: Vec<_> = verdicts.iter().map(|(id, _)| id.clone()).collect();
        ran.sort_unstable();
        ran
    };
    let sorted = |mut ids: Vec<String>| {
        ids.sort_unstable();
        ids
    };
    assert_eq!(ran(&verdicts), sorted(ids(&recorded)), "every case of {group} has to be run, once");
    let failed: Vec<_> =
        verdicts.iter().filter_map(|(id, verdict)| Some(format!("{id}: {}", verdict.as_ref().err()?))).collect();
    assert!(failed.is_empty(), "{group}, {} of {}:\n{}", failed.len(), verdicts.len(), failed.join("\n"));

    // What an amendment says must be the only truth: as recorded these cases fail.
    let verdicts = run(changed.clone()).await;
    assert_eq!(ran(&verdicts), sorted(ids(&changed)), "every amended case of {group} has to be run as recorded, too");
    let stale: Vec<_> = verdicts.iter().filter(|(_, verdict)| verdict.is_ok()).map(|(id, _)| id.as_str()).collect();
    assert!(stale.is_empty(), "{group}: adit does what was recorded, so nothing needs amending: {stale:?}");
}

/// The table of runners: a test for each group, and the list that `contract` holds against the file.
macro_rules! runners {
    (pure { $($pure:ident => $one:path),+ $(,)? } running { $($running:ident => $all:path),+ $(,)? }) => {
        /// Every group that has a runner.
        pub(crate) const RUNNERS: &[&str] = &[$(stringify!($pure)),+, $(stringify!($running)),+];

        mod every_case_of {
            use super::*;

            $(#[tokio::test]
            async fn $pure() {
                check(stringify!($pure), |cases| std::future::ready(each(&cases, $one))).await;
            })+

            $(#[tokio::test]
            async fn $running() {
                in_time(check(stringify!($running), $all)).await;
            })+
        }
    };
}

runners! {
    pure {
        ingress_match => files::ingress_match,
        ingress_validate => files::ingress_validate,
        origin_request_merge => files::origin_request_merge,
        ip_rule_validity => files::ip_rule_validity,
        ip_policy => files::ip_policy,
        single_origin_from_flags => flags::single_origin_from_flags,
        token_parse => flags::token_parse,
        credentials_parse => flags::credentials_parse,
        tag_parse => flags::tag_parse,
        origin_url_flag => flags::origin_url_flag,
        hostname_flag => flags::hostname_flag,
        edge_ip_version => flags::edge_ip_version,
        dns_resolver_addrs => flags::dns_resolver_addrs,
        protocol_selection => flags::protocol_selection,
        header_serialize => wire::header_serialize,
        header_deserialize => wire::header_deserialize,
        quic_connect_request_to_http => wire::quic_connect_request_to_http,
        bastion_destination => wire::bastion_destination,
        websocket_accept_key => wire::websocket_accept_key,
        edge_srv_name => wire::edge_srv_name,
        lb_probe_user_agent => wire::lb_probe_user_agent,
    }
    running {
        control_response_header => wire::control_response_header,
        flush_decision => wire::flush_decision,
        h2_stream_type => wire::h2_stream_type,
        http_roundtrip => roundtrip::http_roundtrip,
        readiness => state::readiness,
        remote_config_update => state::remote_config_update,
        reconnect_backoff => state::reconnect_backoff,
        registration_failure => state::registration_failure,
        socks5 => streams::socks5,
        tcp_over_websocket => streams::tcp_over_websocket,
        connections_matrix => matrix::connections_matrix,
        multi_origin_routing => matrix::multi_origin_routing,
        access_jwt => matrix::access_jwt,
        shutdown => signals::shutdown,
        cli_exit => process::cli_exit,
    }
}
