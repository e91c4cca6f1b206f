//! The alert rules: what they ask for is there, and Prometheus understands them.

use std::path::{Path, PathBuf};

use adit::{
    config::{IdentitySource, SecretRef},
    edge::{EdgeConfig, certificates::FileCertificate},
    metrics::Metrics,
};
use regex::Regex;
use tokio::process::Command;
use yaml_rust2::{Yaml, YamlLoader};

use crate::harness::{LIMIT, Lab, Over};

const RULES: &str = include_str!("../../deploy/prometheus/adit.rules.yml");

/// Every rule's name and expression.
fn rules() -> Vec<(String, String)> {
    let file = YamlLoader::load_from_str(RULES).unwrap().remove(0);
    let groups = file["groups"].as_vec().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_vec().unwrap());
    let text = |rule: &Yaml, key: &str| rule[key].as_str().unwrap().to_owned();
    rules.map(|rule| (text(rule, "alert"), text(rule, "expr"))).collect()
}

/// Every metric that an expression names, with one regular expression or text per label.
fn selectors(expression: &str) -> Vec<(String, Vec<(String, Regex)>)> {
    let selector = Regex::new(r"(adit_[a-z_]+)(?:\{([^}]*)\})?").unwrap();
    let label = Regex::new(r#"([a-z_]+)(=~|=)"([^"]*)""#).unwrap();
    let matcher = |operator: &str, value: &str| {
        let value = if operator == "=~" { value.to_owned() } else { regex::escape(value) };
        Regex::new(&format!("^(?:{value})$")).unwrap()
    };
    selector
        .captures_iter(expression)
        .map(|found| {
            let labels = found.get(2).map_or("", |labels| labels.as_str());
            let labels = label.captures_iter(labels).map(|label| (label[1].to_owned(), matcher(&label[2], &label[3])));
            (found[1].to_owned(), labels.collect())
        })
        .collect()
}

/// Whether a series of an exposition is selected.
fn selected(line: &str, metric: &str, labels: &[(String, Regex)]) -> bool {
    let Some(rest) = line.strip_prefix(metric) else { return false };
    if !rest.starts_with(['{', ' ']) {
        return false;
    }
    labels.iter().all(|(name, wanted)| {
        let value = Regex::new(&format!(r#"[{{,]{name}="([^"]*)""#)).unwrap();
        value.captures(rest).is_some_and(|found| wanted.is_match(&found[1]))
    })
}

#[tokio::test]
async fn every_series_that_a_rule_asks_for_is_exposed_by_a_running_connector_or_edge() {
    let made = adit::tls::issue::new_laboratory("test").unwrap();
    let issuer = adit::tls::issue::Authority::from_pem(&made.intermediate.certificate_pem, &made.intermediate.key_pem);
    let ids = ["spiffe://test/adit".parse().unwrap()];
    let lifetime = std::time::Duration::from_secs(86_400);
    let leaf = adit::tls::issue::Leaf { name: "adit", dns: &[], uris: &ids, lifetime };
    let issuer = issuer.unwrap();
    let leaf = issuer.issue_leaf(&leaf).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: String| -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let chain = leaf.certificate_pem + &made.intermediate.certificate_pem;
    let bundle = file("adit.pem", chain + &leaf.key_pem);
    let root = file("root.pem", made.root.certificate_pem);
    let list = file("crl.pem", issuer.revocation_list(None, &[]).unwrap().pem);
    let material = Some(IdentitySource { certificate: SecretRef::File(bundle.clone()), key: None });
    let certificate = FileCertificate { hostnames: vec!["web.test".into()], material, ..FileCertificate::default() };
    let (bundle, root, list) = (bundle.display(), root.display(), list.display());
    let yaml = format!(
        "innerHop:\n  identities: {{ default: {{ certificate: {bundle} }} }}\n  originTrust: [ {root} ]\n  \
         callers: {{ trustAnchors: [ {root} ], crls: [ {list} ] }}\ningress:\n  - service: https://127.0.0.1:1\n\
         guard:\n  - listen: 127.0.0.1:0\n    certificate: {bundle}\n    service: http://127.0.0.1:1\n    \
         callers: {{ trustAnchors: [ {root} ] }}\n"
    );
    let mut lab = Lab::edge_with(|config| EdgeConfig { certificates: vec![certificate], ..config }).await;
    lab.connect(Over::Quic, &yaml, |flags| flags).await;
    lab.edge.registered(lab.token.tunnel, 1, LIMIT).await.expect("the connector did not register");
    let exposed = lab.admin("/metrics").await.text() + &lab.edge.metrics();
    let mut asked = 0;
    for (alert, expression) in rules() {
        for (metric, labels) in selectors(&expression) {
            let found = exposed.lines().any(|line| selected(line, &metric, &labels));
            assert!(found, "{alert} asks for {metric} {labels:?}, which is not in\n{exposed}");
            asked += 1;
        }
    }
    assert!(asked > 15, "the rules ask for {asked} series only");
    lab.finish().await;
}

#[test]
fn a_series_that_is_not_exposed_is_noticed() {
    let exposed = Metrics::new().expose();
    for (expression, there) in [
        (r#"adit_refusals_total{code="caller-missing"}"#, true),
        (r#"adit_refusals_total{code=~"caller-missing|nobody"}"#, true),
        (r#"adit_refusals_total{code="caller"}"#, false),
        (r#"adit_refusals_total{cause="caller-missing"}"#, false),
        ("adit_refusals", false),
    ] {
        let found = selectors(expression);
        assert_eq!(found.len(), 1);
        let (metric, labels) = &found[0];
        assert_eq!(exposed.lines().any(|line| selected(line, metric, labels)), there, "{expression}");
    }
}

#[tokio::test]
#[ignore = "needs promtool (ADIT_TEST_PROMTOOL, or in the PATH); .ci/run fetches and runs it"]
async fn promtool_takes_the_rules_and_what_they_say_of_made_up_series() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    let promtool = std::env::var("ADIT_TEST_PROMTOOL").unwrap_or_else(|_| "promtool".into());
    for args in [["check", "rules", "adit.rules.yml"], ["test", "rules", "adit.rules.test.yml"]] {
        let output = Command::new(&promtool).args(args).current_dir(&folder).output().await.expect("promtool");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&said));
    }
}
