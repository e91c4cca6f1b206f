//! Several edges as equal replicas: one state, nothing else shared.

use adit::edge::EdgeConfig;

use crate::harness::{LIMIT, Lab, Over, eventually, over_both, rule};

fn write(lab: &Lab, name: &str, text: &str) {
    std::fs::write(lab.state.path().join(name), text).unwrap();
}

async fn replicas(over: Over) {
    let mut edges = vec![Lab::edge_only().await];
    for _ in 0..2 {
        edges.push(Lab::replica(&edges[0], |config| config).await);
    }
    let request = "GET / HTTP/1.1\r\nHost: late.test\r\nConnection: close\r\n\r\n";
    for edge in &mut edges {
        // A replica without a connection of the tunnel says so at once; the others do not help it.
        assert_eq!(edge.get("/").await.code(), Some("no-connection"));
        edge.connect(over, &rule("http_status:201"), |flags| flags).await;
        edge.edge.registered(edge.token.tunnel, 1, LIMIT).await.unwrap();
        assert_eq!(edge.get("/").await.status, 201);
        assert_eq!(edge.raw(request).await.status, 404);
    }
    // One change, noticed by each: another secret, and a name more.
    let id = edges[0].token.tunnel;
    let second = edges[0].state.new_token(&["late.test".into()], Some(id)).unwrap();
    for edge in &edges {
        eventually("the name is known", async || edge.raw(request).await.status == 201).await;
        let mut late = Lab::beside(edge);
        late.token = second.clone();
        late.connect(over, &rule("http_status:201"), |flags| flags).await;
        edge.edge.registered(id, 2, LIMIT).await.unwrap();
        late.tasks.drain();
        late.connector_ended().await;
    }
    // And the tunnel's end.
    write(&edges[0], "tunnels.yml", "[]\n");
    for edge in edges {
        eventually("the tunnel is gone", async || edge.get("/").await.status == 404).await;
        edge.finish().await;
    }
}

async fn older_file(over: Over) {
    let status = |status: u16| format!("ingress:\n  - service: http_status:{status}\n");
    let mut lab = Lab::edge_only().await;
    let tunnels = std::fs::read_to_string(lab.state.path().join("tunnels.yml")).unwrap();
    write(&lab, "rules.yml", &status(201));
    write(&lab, "tunnels.yml", &format!("{tunnels}  config: rules.yml\n"));
    lab.connect(over, "", |flags| flags).await;
    eventually("the first edge's rules are served", async || lab.get("/").await.status == 201).await;
    // The edge goes, and comes back at the same address with an older file that says something else.
    let address = lab.connectors;
    lab.edge_tasks.finish(LIMIT).await;
    write(&lab, "rules.yml", &status(202));
    let file = std::fs::File::options().write(true).open(lab.state.path().join("rules.yml")).unwrap();
    file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(24 * 3600)).unwrap();
    let again = Lab::replica(&lab, |config| EdgeConfig { listen: address, ..config }).await;
    again.edge.registered(lab.token.tunnel, 1, LIMIT).await.unwrap();
    eventually("the second edge's rules are served", async || again.get("/").await.status == 202).await;
    lab.tasks.drain();
    lab.connector_ended().await;
    again.finish().await;
}

over_both! {
    one_token_registers_at_every_replica_and_each_notices_a_change_of_the_state => replicas,
    an_edge_that_restarts_with_an_older_file_still_has_its_rules_served => older_file,
}
