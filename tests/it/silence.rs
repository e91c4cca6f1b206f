//! A connection that goes silent without ending is replaced while it still looks alive.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};
use tokio_util::sync::CancellationToken;

use crate::harness::{LIMIT, Lab, Over, background, eventually, over_both, rule};

/// Stands between connector and edge on one port, over UDP and TCP. What is frozen keeps its sockets and moves no byte.
struct Freezer {
    address: SocketAddr,
    tcp: Arc<Mutex<Vec<CancellationToken>>>,
    udp: Arc<Mutex<Flows>>,
}

#[derive(Default)]
struct Flows {
    open: HashMap<SocketAddr, Arc<UdpSocket>>,
    frozen: HashSet<SocketAddr>,
}

impl Freezer {
    async fn before(edge: SocketAddr) -> Self {
        let (listener, socket) = loop {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(socket) = UdpSocket::bind(listener.local_addr().unwrap()).await {
                break (listener, Arc::new(socket));
            }
        };
        let freezer = Self { address: listener.local_addr().unwrap(), tcp: Arc::default(), udp: Arc::default() };
        let tcp = freezer.tcp.clone();
        background(async move {
            while let Ok((connector, _)) = listener.accept().await {
                let frozen = CancellationToken::new();
                tcp.lock().unwrap().push(frozen.clone());
                let edge = TcpStream::connect(edge).await.unwrap();
                let ((a, b), (c, d)) = (connector.into_split(), edge.into_split());
                background(pass(a, d, frozen.clone()));
                background(pass(c, b, frozen));
            }
        });
        let flows = freezer.udp.clone();
        background(async move {
            let mut packet = vec![0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut packet).await {
                let known = {
                    let flows = flows.lock().unwrap();
                    if flows.frozen.contains(&from) {
                        continue;
                    }
                    flows.open.get(&from).cloned()
                };
                let towards = match known {
                    Some(known) => known,
                    None => flow(edge, from, &socket, &flows).await,
                };
                let _ = towards.send(&packet[..length]).await;
            }
        });
        freezer
    }

    /// Freezes what is open; what comes later passes.
    fn freeze(&self) {
        self.tcp.lock().unwrap().drain(..).for_each(|frozen| frozen.cancel());
        let mut flows = self.udp.lock().unwrap();
        let open: Vec<_> = flows.open.keys().copied().collect();
        flows.frozen.extend(open);
    }
}

async fn flow(
    edge: SocketAddr,
    from: SocketAddr,
    socket: &Arc<UdpSocket>,
    flows: &Arc<Mutex<Flows>>,
) -> Arc<UdpSocket> {
    let towards = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    towards.connect(edge).await.unwrap();
    flows.lock().unwrap().open.insert(from, towards.clone());
    let (back, socket, flows) = (towards.clone(), socket.clone(), flows.clone());
    background(async move {
        let mut packet = vec![0; 2048];
        while let Ok(length) = back.recv(&mut packet).await {
            if !flows.lock().unwrap().frozen.contains(&from) {
                let _ = socket.send_to(&packet[..length], from).await;
            }
        }
    });
    towards
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, frozen: CancellationToken) {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let read = tokio::select! {
            biased;
            () = frozen.cancelled() => std::future::pending().await,
            read = from.read(&mut bytes) => read,
        };
        match read {
            Ok(length) if length > 0 && to.write_all(&bytes[..length]).await.is_ok() => {}
            _ => return,
        }
    }
}

async fn a_silent_connection_is_replaced(over: Over) {
    let mut lab = Lab::edge_only().await;
    let freezer = Freezer::before(lab.connectors).await;
    lab.connectors = freezer.address;
    lab.connect(over, &rule("http_status:204"), |flags| flags).await;
    lab.edge.registered(lab.token.tunnel, 1, LIMIT).await.unwrap();
    assert_eq!(lab.get("/").await.status, 204);
    freezer.freeze();
    eventually("the connection is replaced", async || {
        lab.admin("/metrics").await.text().contains("adit_connection_replacements_total{why=\"silent\"} 1")
    })
    .await;
    assert_eq!(lab.get("/").await.status, 204);
    let ready = lab.admin("/ready").await.text();
    assert!(ready.contains("\"readyConnections\":1"), "{ready}");
    lab.finish().await;
}

over_both! {
    a_connection_that_goes_silent_is_replaced_before_it_ends => a_silent_connection_is_replaced,
}
