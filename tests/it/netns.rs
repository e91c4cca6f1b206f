//! Recovery with a real network in between: the program as processes in namespaces, and a router that drops, refuses
//! and heals. Each test prints the times it measured beside the promise.

mod world;

use std::time::Duration;

use tokio::time::Instant;

use world::{Fault, World};

const SECOND: Duration = Duration::from_secs(1);

fn report(what: &str, took: Duration, promise: Duration) {
    eprintln!("{what}: {:.2} s, promised {:.0} s", took.as_secs_f64(), promise.as_secs_f64());
    assert!(took <= promise, "{what}: {took:?}");
}

fn all(transport: &'static str, count: usize) -> impl Fn(&World) -> bool {
    move |world| world.transports() == vec![transport; count]
}

/// An edge and a connector with four connections, serving.
async fn running(protocol: &str) -> (World, u32) {
    let mut world = World::new();
    let edge = world.edge(0);
    let address = world.edge_address(0).to_string();
    world.connector(protocol, &address, &[]);
    world.back_after(Instant::now(), SECOND * 20).await;
    world.seen("four connections", Instant::now(), SECOND * 20, |world| world.transports().len() == 4).await;
    (world, edge)
}

async fn start_without_udp(fault: Fault) {
    let mut world = World::new();
    world.edge(0);
    // The edge itself is there, as over a path whose UDP is blocked.
    world.opens().await;
    world.udp(fault);
    let address = world.edge_address(0).to_string();
    let started = Instant::now();
    world.connector("auto", &address, &[]);
    let took = world.back_after(started, SECOND * 20).await;
    report(&format!("start with UDP {fault:?}, served over {:?}", world.transports()), took, SECOND * 2);
    let why = world.ready()["connections"][0]["whyNotQuic"].as_str().map(str::to_owned);
    assert!(why.is_some_and(|why| !why.is_empty()), "{}", world.ready());
}

#[tokio::test]
#[ignore = "needs root and network namespaces"]
async fn a_start_with_udp_black_holed_is_served_within_two_seconds() {
    start_without_udp(Fault::Drop).await;
}

#[tokio::test]
#[ignore = "needs root and network namespaces"]
async fn a_start_with_udp_refused_is_served_within_two_seconds() {
    start_without_udp(Fault::Refuse).await;
}

#[tokio::test]
#[ignore = "needs root and network namespaces"]
async fn udp_that_dies_is_left_within_ten_seconds_and_taken_back_when_it_returns() {
    let (world, _) = running("auto").await;
    // A first packet that a new network loses costs QUIC a second, and HTTP/2 goes first.
    world.seen("QUIC at the start", Instant::now(), SECOND * 120, all("quic", 4)).await;
    for fault in [Fault::Drop, Fault::Refuse] {
        world.udp(fault);
        let died = Instant::now();
        let took = world.back_after(died, SECOND * 30).await;
        report(&format!("UDP dies ({fault:?}), served"), took, SECOND * 10);
        let took = world.seen("HTTP/2 alone", died, SECOND * 30, all("http2", 4)).await;
        report(&format!("UDP dies ({fault:?}), all four over HTTP/2"), took, SECOND * 15);
        world.heal();
        let took = world.seen("QUIC again", Instant::now(), SECOND * 120, all("quic", 4)).await;
        report(&format!("UDP returns after {fault:?}, all four over QUIC"), took, SECOND * 90);
    }
}

async fn outage(protocol: &str) {
    let (world, _) = running(protocol).await;
    for seconds in [4, 20] {
        // Both directions; what the router itself says does not matter.
        world.fault("from all", Fault::Drop);
        let lost = Instant::now();
        tokio::time::sleep_until(lost + SECOND * seconds).await;
        assert!(!world.served(0, SECOND).await, "the network is not down");
        world.heal();
        let took = world.back_after(Instant::now(), SECOND * 30).await;
        report(&format!("{protocol}: back after {seconds} s without any network"), took, SECOND * 5);
        let since = Instant::now();
        let took = world.seen("four connections", since, SECOND * 30, |world| world.transports().len() == 4).await;
        eprintln!("{protocol}: all four connections {:.2} s later", took.as_secs_f64());
    }
}

#[tokio::test]
#[ignore = "needs root and network namespaces"]
async fn an_outage_is_over_five_seconds_after_the_network_is_back() {
    tokio::join!(outage("auto"), outage("quic"), outage("http2"));
}

async fn restart(protocol: &str) {
    let (mut world, edge) = running(protocol).await;
    world.signal(edge, "KILL");
    tokio::time::sleep(SECOND * 2).await;
    world.edge(0);
    world.opens().await;
    let took = world.back_after(Instant::now(), SECOND * 30).await;
    report(&format!("{protocol}: back after the edge was killed and restarted"), took, SECOND * 5);
}

#[tokio::test]
#[ignore = "needs root and network namespaces"]
async fn a_restarted_edge_has_its_connector_back_within_five_seconds() {
    tokio::join!(restart("auto"), restart("quic"), restart("http2"));
}

#[tokio::test]
#[ignore = "needs root and network namespaces"]
async fn a_connection_that_goes_silent_alone_is_replaced() {
    let (world, _) = running("http2").await;
    let port = world.tcp_ports()[0];
    world.fault(&format!("ipproto tcp sport {port}"), Fault::Drop);
    world.fault(&format!("ipproto tcp dport {port}"), Fault::Drop);
    let cut = Instant::now();
    let replaced = |world: &World| {
        let ports = world.tcp_ports();
        world.log("connector").contains("connection replaced") && ports.iter().filter(|p| **p != port).count() == 4
    };
    let took = world.seen("the replacement", cut, SECOND * 30, replaced).await;
    report("one HTTP/2 connection silent, replaced", took, SECOND * 10);
}

#[tokio::test]
#[ignore = "needs root and network namespaces"]
async fn a_start_without_dns_waits_and_a_lost_dns_changes_nothing() {
    let mut world = World::new();
    let edge = world.edge(0);
    let connector = world.connector("auto", "edge.test", &[]);
    let complained = |world: &World| world.log("connector").contains("can be resolved");
    world.seen("the complaint about DNS", Instant::now(), SECOND * 20, complained).await;
    // It is still there.
    world.signal(connector, "0");
    world.names(&[world.edge_address(0)]);
    let took = world.back_after(Instant::now(), SECOND * 30).await;
    report("DNS comes after the start", took, SECOND * 5);
    // Without DNS, a restarted edge is found at its last address.
    world.names(&[]);
    world.signal(edge, "KILL");
    tokio::time::sleep(SECOND * 2).await;
    world.edge(0);
    world.opens().await;
    let took = world.back_after(Instant::now(), SECOND * 30).await;
    report("the edge restarts while DNS is lost", took, SECOND * 5);
}

#[tokio::test]
#[ignore = "needs root and network namespaces"]
async fn an_edge_that_moves_to_another_address_is_found_there() {
    let mut world = World::new();
    let first = world.edge(0);
    world.names(&[world.edge_address(0)]);
    world.connector("auto", "edge.test", &[]);
    world.back_after(Instant::now(), SECOND * 20).await;
    world.signal(first, "KILL");
    world.edge(1);
    world.names(&[world.edge_address(1)]);
    let moved = Instant::now();
    while !world.served(1, Duration::from_millis(400)).await {
        assert!(moved.elapsed() < SECOND * 30, "{}", world.log("connector"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    report("the edge moves to another address", moved.elapsed(), SECOND * 10);
}

/// UDP works for every handshake and dies a second after each registration.
#[tokio::test]
#[ignore = "needs root and network namespaces"]
async fn quic_that_connects_and_then_collapses_is_left() {
    let (world, _) = running("auto").await;
    let count = |world: &World| world.log("connector").matches("transport=quic").count();
    let (mut asked, mut served, mut registered) = (0u32, 0u32, count(&world));
    let first = registered;
    let until = Instant::now() + SECOND * 60;
    let mut blocked_until = None;
    while Instant::now() < until {
        let now = count(&world);
        if now > registered || (asked == 0) {
            registered = now;
            tokio::time::sleep(SECOND).await;
            world.udp(Fault::Drop);
            blocked_until = Some(Instant::now() + SECOND * 6);
        }
        if blocked_until.is_some_and(|until| until < Instant::now()) {
            world.heal();
            blocked_until = None;
        }
        asked += 1;
        served += u32::from(world.served(0, SECOND).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let again = count(&world) - first;
    eprintln!(
        "QUIC collapses after each registration: {again} more QUIC registrations in 60 s, {served} of {asked} served"
    );
    assert!(again <= 4, "{again} registrations over QUIC");
    assert!(world.transports().iter().filter(|transport| *transport == "http2").count() >= 3);
    assert!(f64::from(served) >= f64::from(asked) * 0.9, "{served} of {asked}");
}
