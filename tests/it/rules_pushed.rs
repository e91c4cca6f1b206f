//! Rules that the edge pushes from a file beside its `tunnels.yml`.

use crate::{
    harness::{LIMIT, Lab, Over, eventually, over_both},
    reload::held,
};

pub(crate) fn status(status: u16) -> String {
    format!("ingress:\n  - service: http_status:{status}\n")
}

fn write(lab: &Lab, name: &str, text: &str) {
    std::fs::write(lab.state.path().join(name), text).unwrap();
}

/// Tells the edge that the tunnel's rules are in `rules.yml`.
fn configure(lab: &Lab) {
    let tunnels = std::fs::read_to_string(lab.state.path().join("tunnels.yml")).unwrap();
    write(lab, "tunnels.yml", &format!("{tunnels}  config: rules.yml\n"));
}

/// An edge whose tunnel has these rules.
pub(crate) async fn edge_with(rules: &str) -> Lab {
    let lab = Lab::edge_only().await;
    write(&lab, "rules.yml", rules);
    configure(&lab);
    let configured = async || lab.edge.tunnels().get(lab.token.tunnel).is_some_and(|tunnel| tunnel.config.is_some());
    eventually("the edge reads its state", configured).await;
    lab
}

pub(crate) async fn serves(lab: &Lab, status: u16) {
    eventually(&format!("{status} is served"), async || lab.get("/").await.status == status).await;
}

pub(crate) async fn connect(lab: &mut Lab, over: Over, yaml: &str, connections: usize) {
    lab.connect(over, yaml, |flags| flags.with("ha-connections", &connections.to_string())).await;
    lab.edge.registered(lab.token.tunnel, connections, LIMIT).await.unwrap();
}

async fn version(lab: &Lab) -> i64 {
    let config: serde_json::Value = serde_json::from_slice(&lab.admin("/config").await.body).unwrap();
    config["version"].as_i64().unwrap()
}

async fn pushed(over: Over) {
    let mut lab = edge_with(&status(201)).await;
    // Four connections, each of which is told.
    connect(&mut lab, over, &status(404), 4).await;
    serves(&lab, 201).await;
    assert!(version(&lab).await > 0);
    lab.finish().await;
}

async fn pushed_to_one_without_rules(over: Over) {
    let mut lab = edge_with(&status(201)).await;
    connect(&mut lab, over, "", 1).await;
    serves(&lab, 201).await;
    lab.finish().await;
}

async fn changed(over: Over) {
    let mut lab = edge_with(&status(201)).await;
    connect(&mut lab, over, "", 1).await;
    serves(&lab, 201).await;
    // Several changes within one second, the last by a file that is older than those before.
    for next in [202, 203] {
        write(&lab, "rules.yml", &status(next));
        serves(&lab, next).await;
    }
    write(&lab, "older.yml", &status(205));
    let file = std::fs::File::options().write(true).open(lab.state.path().join("older.yml")).unwrap();
    file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(3600)).unwrap();
    std::fs::rename(lab.state.path().join("older.yml"), lab.state.path().join("rules.yml")).unwrap();
    serves(&lab, 205).await;
    lab.finish().await;
}

async fn added_later(over: Over) {
    let mut lab = Lab::edge_only().await;
    connect(&mut lab, over, &status(200), 1).await;
    serves(&lab, 200).await;
    write(&lab, "rules.yml", &status(201));
    configure(&lab);
    serves(&lab, 201).await;
    lab.finish().await;
}

async fn invalid(over: Over) {
    let mut lab = edge_with(&status(201)).await;
    let mut current = 201;
    for (bad, next) in [("ingress: [", 202), ("ingress:\n  - service: nonsense\n", 203), ("", 206)] {
        connect(&mut lab, over, "", 1).await;
        serves(&lab, current).await;
        write(&lab, "rules.yml", bad);
        // Whoever comes now gets the last good rules.
        lab.tasks.drain();
        lab.connector_ended().await;
        connect(&mut lab, over, "", 1).await;
        serves(&lab, current).await;
        write(&lab, "rules.yml", &status(next));
        serves(&lab, next).await;
        current = next;
        lab.tasks.drain();
        lab.connector_ended().await;
    }
    lab.finish().await;
}

async fn ignored(over: Over) {
    let mut lab = edge_with(&status(201)).await;
    let logged = lab.edge.clone();
    connect(&mut lab, over, &format!("remoteConfig: ignore\n{}", status(200)), 1).await;
    // A second tunnel takes the same kind of push later than the first was sent: once it serves, the first was refused.
    let mut witness = Lab::beside(&lab);
    connect_witness(&mut witness, over).await;
    eventually("the witness is served", async || {
        logged.registry().of(witness.token.tunnel).len() == 1 && version(&witness).await > 0
    })
    .await;
    assert_eq!((lab.get("/").await.status, version(&lab).await), (200, -1));
    witness.tasks.drain();
    witness.connector_ended().await;
    lab.finish().await;
}

/// A tunnel of its own with the same rules file, connected.
async fn connect_witness(witness: &mut Lab, over: Over) {
    witness.token = witness.state.new_token(&["witness.test".into()], None).unwrap();
    configure(witness);
    connect(witness, over, "", 1).await;
}

async fn in_flight(over: Over) {
    let (service, mut arrival, release) = held("of the old rules").await;
    let mut lab = edge_with(&format!("ingress:\n  - service: http://{service}\n")).await;
    connect(&mut lab, over, "", 1).await;
    eventually("the rules are there", async || version(&lab).await > 0).await;
    let old = version(&lab).await;
    let changes = async {
        arrival.recv().await.unwrap();
        write(&lab, "rules.yml", &status(203));
        eventually("the new rules are there", async || version(&lab).await > old).await;
        serves(&lab, 203).await;
        release.notify_one();
    };
    let (answer, ()) = tokio::join!(lab.get("/"), changes);
    assert_eq!((answer.status, answer.text().as_str()), (200, "of the old rules"));
    lab.finish().await;
}

over_both! {
    rules_of_the_edge_replace_those_of_the_file => pushed,
    a_connector_without_rules_gets_those_of_the_edge => pushed_to_one_without_rules,
    changed_rules_are_pushed_however_old_their_file_is => changed,
    rules_added_to_a_live_tunnel_are_pushed => added_later,
    unreadable_rules_leave_the_last_good_ones => invalid,
    a_connector_that_ignores_pushes_keeps_its_own_rules => ignored,
    a_request_in_flight_is_answered_by_the_rules_it_found => in_flight,
}
