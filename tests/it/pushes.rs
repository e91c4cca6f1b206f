//! Configurations that an edge pushes: versions, refusals with every reason, and a connector under load.

use adit::wire::{calls::Applied, rpc::RpcThread};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::{
    harness::{
        LIMIT, Lab, Over, eventually,
        load::{HalfMessage, Load},
        over_both, report, rule,
    },
    reload::{held, metric},
    rules_pushed::status,
    websocket::echo,
};

/// Pushes over a connection as an edge does, with whatever version and document a test wants.
struct Pusher {
    rpc: RpcThread,
}

impl Pusher {
    fn new() -> Self {
        Self { rpc: RpcThread::new() }
    }

    /// Over the connection with this place among the tunnel's.
    async fn over(&self, lab: &Lab, connection: usize, version: i32, config: &str) -> Result<Applied, String> {
        let sessions = lab.edge.registry().of(lab.token.tunnel);
        sessions[connection % sessions.len()].push(&self.rpc, version, Bytes::copy_from_slice(config.as_bytes())).await
    }

    async fn push(&self, lab: &Lab, version: i32, config: &str) -> Applied {
        self.over(lab, 0, version, config).await.unwrap()
    }

    async fn is_applied(&self, lab: &Lab, version: i32, config: &str) {
        let applied = self.push(lab, version, config).await;
        assert_eq!(applied, Applied { version, error: String::new() }, "{config}");
    }
}

fn to(service: impl std::fmt::Display) -> String {
    json!({ "ingress": [{ "service": service.to_string() }] }).to_string()
}

async fn versions(over: Over) {
    let lab = Lab::start(over, &status(200)).await;
    let pusher = Pusher::new();
    pusher.is_applied(&lab, 3, &to("http_status:203")).await;
    // The same and older ones are not even read, and change nothing.
    for version in [3, 2, 0, -1, i32::MIN] {
        for config in [to("http_status:299"), to("nonsense")] {
            let applied = pusher.push(&lab, version, &config).await;
            assert_eq!(applied, Applied { version: 3, error: String::new() });
        }
    }
    assert_eq!(lab.get("/").await.status, 203);
    // Refused, then mended under the same number.
    let refused = pusher.push(&lab, 4, &to("nonsense")).await;
    assert!(refused.version == 3 && !refused.error.is_empty(), "{refused:?}");
    assert_eq!(lab.get("/").await.status, 203);
    pusher.is_applied(&lab, 4, &to("http_status:204")).await;
    assert_eq!(lab.get("/").await.status, 204);
    // A rollback is the old document under a higher number.
    pusher.is_applied(&lab, 9, &to("http_status:203")).await;
    assert_eq!(lab.get("/").await.status, 203);
    let config: Value = serde_json::from_slice(&lab.admin("/config").await.body).unwrap();
    assert_eq!(
        (&config["version"], &config["config"]["ingress"][0]["service"]),
        (&json!(9), &json!("http_status:203"))
    );
    for (outcome, count) in [("applied", 3), ("unchanged", 10), ("refused", 1)] {
        let series = format!("adit_pushed_configurations_total{{outcome=\"{outcome}\"}}");
        assert_eq!(metric(&lab, &series).await, count, "{outcome}");
    }
    assert_eq!(metric(&lab, "adit_rules_version").await, 9);
    assert_eq!(metric(&lab, "cloudflared_orchestration_config_version").await, 9);
    // The highest version there is leaves nothing to be accepted, and nothing to be harmed.
    pusher.is_applied(&lab, i32::MAX, &to("http_status:205")).await;
    assert_eq!(pusher.push(&lab, i32::MAX, "{}").await.version, i32::MAX);
    lab.finish().await;
}

async fn reasons(over: Over) {
    let yaml = format!("remoteConfig: {{ mode: allowlist, services: ['https://*.svc:*'] }}\n{}", status(200));
    let lab = Lab::start(over, &yaml).await;
    let pusher = Pusher::new();
    let refused = json!({
        "ingress": [
            { "hostname": "a.test", "service": "https://a.my.svc:8443" },
            { "hostname": "b.test", "service": "https://svc" },
            { "hostname": "c:80", "service": "http://c.svc" },
            { "hostname": "d.test", "service": "nonsense", "originRequest": { "connectTimeout": "soon" } },
            { "hostname": "e.test", "service": "https://e.svc", "innerHop": {} },
            { "hostname": "f.test", "service": "tcp://x", "originRequest": { "bastionMode": true } },
            { "service": "http_status:404" },
        ],
    });
    let applied = pusher.push(&lab, 1, &refused.to_string()).await;
    assert_eq!(applied.version, -1);
    let wanted = [
        "ingress[1].service: https://svc is not among",
        "ingress[2].service: http://c.svc is not among",
        "ingress[2].hostname: ",
        "ingress[3].service: a service needs",
        "ingress[3].originRequest.connectTimeout: ",
        "ingress[4].innerHop: ",
        "ingress[5].service: bastion is not among",
    ];
    for reason in wanted {
        assert!(applied.error.contains(reason), "{reason} is not in\n{}", applied.error);
    }
    assert_eq!(applied.error.lines().count(), wanted.len(), "{}", applied.error);
    assert_eq!(lab.get("/").await.status, 200);
    let allowed = json!({ "ingress": [
        { "hostname": "a.test", "service": "https://a.my.svc:8443" }, { "service": "http_status:404" },
    ] });
    pusher.is_applied(&lab, 1, &allowed.to_string()).await;
    assert_eq!(lab.get("/").await.status, 404);
    lab.finish().await;
}

async fn documents(over: Over) {
    let lab = Lab::start(over, &status(200)).await;
    let pusher = Pusher::new();
    // Above 4 MiB a document is refused; above what a call may carry there is no answer but an error.
    let big = |size: usize| json!({ "ingress": [{ "service": "http_status:201" }], "x": "x".repeat(size) }).to_string();
    let refused = pusher.push(&lab, 1, &big(5 << 20)).await;
    assert!(refused.version == -1 && refused.error.contains("larger than"), "{refused:?}");
    for _ in 0..3 {
        pusher.over(&lab, 0, 1, &big(9 << 20)).await.expect_err("9 MiB are too much");
    }
    pusher.is_applied(&lab, 1, &big(3 << 20)).await;
    assert_eq!(lab.get("/").await.status, 201);
    // Nothing is refused like any other that is no JSON; `null` is an empty document: no rules, as with the peer.
    let refused = pusher.over(&lab, 0, 2, "").await;
    assert!(refused.is_err() || refused.as_ref().unwrap().version == 1, "{refused:?}");
    assert_eq!(lab.get("/").await.status, 201);
    pusher.is_applied(&lab, 2, "null").await;
    assert_eq!(lab.get("/").await.status, 503);
    pusher.is_applied(&lab, 3, "{}").await;
    assert_eq!(lab.get("/").await.status, 503);
    pusher.is_applied(&lab, 4, &to("http_status:204")).await;
    assert_eq!(lab.get("/").await.status, 204);
    lab.finish().await;
}

async fn under_load(over: Over) {
    let service = Load::service().await;
    let mut lab = Lab::edge_only().await;
    // A WebSocket in the middle of a message, whose service no pushed rules have.
    lab.connect(over, &rule(format!("http://{}", echo().await)), |flags| flags.with("ha-connections", "4")).await;
    lab.edge.registered(lab.token.tunnel, 4, LIMIT).await.unwrap();
    let message = HalfMessage::begin(lab.http).await;
    let pusher = Pusher::new();
    pusher.is_applied(&lab, 0, &to(format!("http://{service}"))).await;
    let load = Load::start(lab.http, 8);
    let (mut applied, mut refused, mut current) = (0, 0, 0);
    for version in 1..=200_i32 {
        let connection = version.unsigned_abs() as usize;
        let rules = |service: &str| json!({ "ingress": [{ "hostname": format!("n{version}.test"), "service": "hello_world" }, { "service": service }] });
        let valid = version % 2 == 0;
        let document = if valid { rules(&format!("http://{service}")) } else { rules("nonsense") }.to_string();
        // Over two connections at once, as an edge tells all of them.
        let answers = tokio::join!(
            pusher.over(&lab, connection, version, &document),
            pusher.over(&lab, connection + 1, version, &document),
        );
        for answer in [answers.0.unwrap(), answers.1.unwrap()] {
            if valid {
                assert_eq!(answer, Applied { version, error: String::new() });
                applied += 1;
                current = version;
            } else {
                assert!(answer.version == current && answer.error.contains("service"), "{version}: {answer:?}");
                refused += 1;
            }
        }
        if version % 20 == 0 {
            load.more(20).await;
        }
    }
    let served = load.stop().await;
    report(format!(
        "over {over:?}: {} requests during {applied} pushes and {refused} refusals, failed: {:?}",
        served.requests, served.failed
    ));
    assert!(served.failed.is_empty() && served.requests >= 200, "{served:?}");
    assert_eq!((applied, refused), (200, 200));
    assert_eq!(metric(&lab, "adit_rules_version").await, 200);
    // The WebSocket's own and the last.
    let two = async || metric(&lab, "adit_rules_generations").await == 2;
    eventually("two generations are left", two).await;
    message.end().await;
    lab.finish().await;
}

async fn draining(over: Over) {
    let (service, mut arrival, release) = held("late").await;
    let lab = Lab::start(over, &rule(format!("http://{service}"))).await;
    let session = lab.edge.registry().of(lab.token.tunnel)[0].clone();
    let pusher = Pusher::new();
    let pushed = async {
        // A request in flight keeps the drained connection.
        arrival.recv().await.unwrap();
        lab.tasks.drain();
        lab.admin_says("/readyz", 503).await;
        let push = session.push(&pusher.rpc, 1, Bytes::from(to("http_status:204")));
        let applied = tokio::time::timeout(LIMIT, push).await.unwrap().unwrap();
        release.notify_one();
        applied
    };
    let (answer, applied) = tokio::join!(lab.get("/"), pushed);
    assert_eq!((answer.status, answer.text().as_str()), (200, "late"));
    assert_eq!(applied, Applied { version: 1, error: String::new() });
    lab.finish().await;
}

over_both! {
    versions_only_rise_and_refused_ones_leave_no_trace => versions,
    a_refusal_names_every_reason => reasons,
    documents_of_every_size_and_none_are_answered => documents,
    pushes_under_load_are_all_answered_right_and_fail_no_request => under_load,
    a_draining_connector_still_answers_a_push => draining,
}
