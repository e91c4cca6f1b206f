//! Visitors over TLS: certificates of the edge's authority, HTTP/1.1 and HTTP/2.

use std::sync::Arc;

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::harness::{Answer, LIMIT, Lab, Over, mirror, over_both, rule};

async fn connect(lab: &Lab, name: &str, alpn: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
    let roots = adit::tls::roots_from_file(&lab.state.ca_path()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(adit::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(lab.https).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(name.to_owned().try_into().unwrap(), stream).await
}

async fn http1(over: Over) {
    let lab = Lab::start(over, &rule(format!("http://{}", mirror().await))).await;
    for name in ["web.test", "any.web.test"] {
        let mut stream = connect(&lab, name, b"http/1.1").await.unwrap();
        let request = format!("GET /secure HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut bytes)).await.unwrap();
        let answer = Answer::parse(&bytes);
        assert_eq!(answer.status, 200);
        assert!(answer.text().contains("X-Forwarded-Proto: https"), "{}", answer.text());
    }
    assert!(connect(&lab, "stranger.test", b"http/1.1").await.is_err(), "no certificate for a name we do not serve");
    lab.finish().await;
}

async fn http2(over: Over) {
    let lab = Lab::start(over, &rule(format!("http://{}", mirror().await))).await;
    let stream = connect(&lab, "web.test", b"h2").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    let exchange = async {
        let mut sender = sender.ready().await.unwrap();
        let request = http::Request::get("https://web.test/over-h2").header("cookie", "a=1").header("cookie", "b=2");
        let (response, _) = sender.send_request(request.body(()).unwrap(), true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        let mut all = Vec::new();
        while let Some(chunk) = body.data().await {
            let chunk: Bytes = chunk.unwrap();
            body.flow_control().release_capacity(chunk.len()).unwrap();
            all.extend_from_slice(&chunk);
        }
        String::from_utf8(all).unwrap()
    };
    let seen = tokio::select! {
        seen = exchange => seen,
        end = connection => panic!("the edge hung up: {end:?}"),
    };
    assert!(seen.starts_with("GET /over-h2 HTTP/1.1\r\n"), "{seen}");
    assert!(seen.to_lowercase().contains("host: web.test\r\n"), "{seen}");
    lab.finish().await;
}

over_both! {
    visitors_come_over_tls_with_http1 => http1,
    visitors_come_over_tls_with_http2 => http2,
}
