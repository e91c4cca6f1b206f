//! A connector that was given several edges: replicas that read one state and share nothing else.

use std::{net::SocketAddr, time::Duration};

use adit::{
    edge::{Edge, EdgeConfig, EdgeHandle, state::StateDir},
    shutdown::Tasks,
};
use tokio::{net::TcpListener, time::Instant};

use crate::harness::{LIMIT, Lab, Over, eventually, over_both, rule};

/// A further replica over the same state.
struct Replica {
    handle: EdgeHandle,
    connectors: SocketAddr,
    tasks: Tasks,
}

impl Replica {
    async fn start(state: &StateDir, listen: Option<SocketAddr>) -> Self {
        let mut config = EdgeConfig::loopback(state.clone());
        config.listen = listen.unwrap_or(config.listen);
        let tasks = Tasks::new();
        let edge = Edge::bind(config, tasks.clone()).await.unwrap();
        let (handle, connectors) = (edge.handle(), edge.connector_addr());
        tasks.spawn(async move { edge.run().await.unwrap() });
        Self { handle, connectors, tasks }
    }

    /// Stops it in good order; returns where it listened.
    async fn stop(self) -> SocketAddr {
        self.tasks.finish(LIMIT).await;
        self.connectors
    }
}

async fn every_edge_has_a_connection(over: Over) {
    let mut lab = Lab::edge_only().await;
    let (b, c) = (Replica::start(&lab.state, None).await, Replica::start(&lab.state, None).await);
    lab.connect(over, &rule("http_status:204"), |flags| {
        flags.with("edge", &b.connectors.to_string()).with("edge", &c.connectors.to_string())
    })
    .await;
    let tunnel = lab.token.tunnel;
    for handle in [&lab.edge, &b.handle, &c.handle] {
        handle.registered(tunnel, 1, LIMIT).await.expect("an edge without a connection");
    }
    assert_eq!(lab.get("/").await.status, 204);
    eventually("three connections", async || lab.admin("/ready").await.text().contains("\"readyConnections\":3")).await;
    b.tasks.kill();
    c.tasks.kill();
    lab.finish().await;
}

async fn an_edge_that_goes_is_left_and_returned_to(over: Over) {
    let mut lab = Lab::edge_only().await;
    let replica = Replica::start(&lab.state, None).await;
    let (connectors, tunnel) = (replica.connectors, lab.token.tunnel);
    lab.connect(over, &rule("http_status:204"), |flags| flags.with("edge", &connectors.to_string())).await;
    replica.handle.registered(tunnel, 1, LIMIT).await.unwrap();
    lab.edge.registered(tunnel, 1, LIMIT).await.unwrap();
    let listen = replica.stop().await;
    // Its connection goes to the edge that is left…
    lab.edge.registered(tunnel, 2, LIMIT).await.expect("the connection did not go elsewhere");
    // …and home again when there is one.
    let replica = Replica::start(&lab.state, Some(listen)).await;
    replica.handle.registered(tunnel, 1, LIMIT).await.expect("the connection did not return");
    eventually("one connection each", async || lab.edge.registry().of(tunnel).len() == 1).await;
    assert_eq!(lab.get("/").await.status, 204);
    replica.tasks.kill();
    lab.finish().await;
}

over_both! {
    a_connector_keeps_a_connection_to_every_edge_it_was_given => every_edge_has_a_connection,
    a_connection_of_an_edge_that_goes_moves_and_comes_home => an_edge_that_goes_is_left_and_returned_to,
}

/// However an edge fails, twelve attempts take more than a second: the waits before them are drawn from a quarter,
/// a half and then whole seconds.
#[tokio::test]
async fn an_edge_that_is_gone_for_good_is_asked_seldom() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut lab = Lab::edge_only().await;
    let address = dead.local_addr().unwrap();
    lab.connect(Over::Http2, &rule("http_status:204"), |flags| flags.with("edge", &address.to_string())).await;
    let started = Instant::now();
    for _ in 0..8 {
        // Accepted and closed at once: the worst that can be had for free.
        drop(tokio::time::timeout(LIMIT, dead.accept()).await.expect("nobody comes back").unwrap());
    }
    assert!(started.elapsed() > Duration::from_secs(1), "{:?} for eight attempts", started.elapsed());
    // Meanwhile the connection whose home that is serves elsewhere.
    lab.edge.registered(lab.token.tunnel, 2, LIMIT).await.unwrap();
    lab.finish().await;
}
