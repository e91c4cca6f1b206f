//! Services whose names change their addresses while connections to the old ones wait.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use adit::{
    config::OriginOptions,
    metrics::OriginMetrics,
    origin::{
        dial::{Dialer, Target},
        http::{HttpOrigin, Reply},
        request_body::RequestBody,
        resolve::Resolver,
    },
};
use http::Request;
use tokio::{net::TcpListener, sync::mpsc};

use crate::harness::{background, h2::H2, in_time, peer::Peer};

const OLD: [u8; 4] = [127, 0, 0, 2];
const NEW: [u8; 4] = [127, 0, 0, 3];

/// The name `svc.test` and what answers behind it.
struct Named {
    origin: HttpOrigin,
    table: Arc<Mutex<HashMap<String, Vec<IpAddr>>>>,
    old: TcpListener,
    new: TcpListener,
}

/// Listeners on one port of two addresses.
async fn listeners() -> (TcpListener, TcpListener) {
    loop {
        let old = TcpListener::bind(SocketAddr::from((OLD, 0))).await.unwrap();
        let port = old.local_addr().unwrap().port();
        if let Ok(new) = TcpListener::bind(SocketAddr::from((NEW, port))).await {
            return (old, new);
        }
    }
}

impl Named {
    async fn start(h2c: bool) -> Self {
        let (old, new) = listeners().await;
        let table = Arc::new(Mutex::new(HashMap::from([("svc.test".to_owned(), vec![IpAddr::from(OLD)])])));
        let options = OriginOptions::default();
        let dialer = Dialer {
            connect_timeout: Duration::from_secs(10),
            keep_alive: options.tcp_keep_alive,
            race: true,
            forbidden: Arc::from([]),
            loopback_only: false,
            resolver: Resolver::Table(table.clone()),
        };
        let target = Target::Tcp { host: "svc.test".into(), port: old.local_addr().unwrap().port() };
        let origin = HttpOrigin::new(dialer, target, None, h2c, &options, OriginMetrics::default());
        Self { origin, table, old, new }
    }

    fn is_at(&self, addresses: &[[u8; 4]]) {
        let addresses = addresses.iter().map(|address| IpAddr::from(*address)).collect();
        self.table.lock().unwrap().insert("svc.test".to_owned(), addresses);
    }
}

async fn get(origin: &HttpOrigin) -> String {
    let mut request = Request::new(RequestBody::Empty);
    request.headers_mut().insert("host", "svc.test".parse().unwrap());
    let reply = origin.send(Box::new(request), "svc.test", false).await.map_err(|failed| failed.error);
    let Reply::Response(mut response) = reply.unwrap() else { panic!("no WebSocket was asked for") };
    let mut text = Vec::new();
    while !response.body_mut().is_end() {
        let Some(frame) = response.body_mut().frame().await.unwrap() else { break };
        text.extend_from_slice(&frame.into_data().unwrap());
    }
    String::from_utf8(text).unwrap()
}

/// Serves HTTP/1.1 and tells when a connection ended.
fn serve(listener: TcpListener, name: &'static str) -> mpsc::UnboundedReceiver<()> {
    let (ended, ends) = mpsc::unbounded_channel();
    background(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let ended = ended.clone();
            background(async move {
                let mut peer = Peer::new(stream, 0);
                while peer.request().await.is_some() {
                    peer.ok(name).await;
                }
                let _ = ended.send(());
            });
        }
    });
    ends
}

#[tokio::test]
async fn idle_connections_to_addresses_that_left_the_name_are_closed() {
    in_time(async {
        let named = Named::start(false).await;
        named.is_at(&[OLD, NEW]);
        let Named { origin, table, old, new } = named;
        let (mut old_ended, _new) = (serve(old, "old"), serve(new, "new"));
        let set = |addresses: &[[u8; 4]]| {
            let addresses = addresses.iter().map(|address| IpAddr::from(*address)).collect();
            table.lock().unwrap().insert("svc.test".to_owned(), addresses);
        };
        assert_eq!(get(&origin).await, "old");
        // Still one of its addresses.
        origin.follow_name().await;
        assert_eq!(get(&origin).await, "old");
        // A look-up that fails says nothing about the service.
        set(&[]);
        origin.follow_name().await;
        assert_eq!(get(&origin).await, "old");
        set(&[NEW]);
        assert_eq!(get(&origin).await, "old", "the name is looked up for new connections");
        origin.follow_name().await;
        old_ended.recv().await.unwrap();
        assert_eq!(get(&origin).await, "new");
    })
    .await;
}

#[tokio::test]
async fn a_shared_connection_to_an_address_that_left_the_name_ends_with_its_last_request() {
    in_time(async {
        let named = Named::start(true).await;
        let accept =
            async |listener: &TcpListener| H2::accept(Peer::new(listener.accept().await.unwrap().0, 0), 100).await;
        let (answer, mut old) = tokio::join!(get(&named.origin), async {
            let mut old = accept(&named.old).await;
            let (stream, _) = old.request().await.unwrap();
            old.ok(stream, "old").await;
            old
        });
        assert_eq!(answer, "old");
        let held = get(&named.origin);
        let meanwhile = async {
            let (stream, _) = old.request().await.unwrap();
            named.is_at(&[NEW]);
            named.origin.follow_name().await;
            let (answer, new) = tokio::join!(get(&named.origin), async {
                let mut new = accept(&named.new).await;
                let (stream, _) = new.request().await.unwrap();
                new.ok(stream, "new").await;
                new
            });
            assert_eq!(answer, "new");
            old.ok(stream, "held").await;
            new
        };
        let (held, _new) = tokio::join!(held, meanwhile);
        assert_eq!(held, "held");
        // The connector hangs up.
        old.ended().await;
    })
    .await;
}

#[tokio::test]
async fn an_idle_shared_connection_is_let_go_after_its_time() {
    in_time(async {
        let (addr, options) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), OriginOptions::default());
        let dialer = Dialer {
            connect_timeout: Duration::from_secs(10),
            keep_alive: options.tcp_keep_alive,
            race: true,
            forbidden: Arc::from([]),
            loopback_only: false,
            resolver: Resolver::System,
        };
        let options = OriginOptions { keep_alive_timeout: Duration::ZERO, ..options };
        let target = Target::Tcp { host: "127.0.0.1".into(), port: addr.local_addr().unwrap().port() };
        let origin = HttpOrigin::new(dialer, target, None, true, &options, OriginMetrics::default());
        let (_, mut service) = tokio::join!(get(&origin), async {
            let mut service = H2::accept(Peer::new(addr.accept().await.unwrap().0, 0), 100).await;
            let (stream, _) = service.request().await.unwrap();
            service.ok(stream, "x").await;
            service
        });
        origin.sweep();
        service.ended().await;
    })
    .await;
}
