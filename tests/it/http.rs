//! Requests and answers through the whole tunnel.

use crate::harness::{Lab, Over, canned, mirror, over_both, rule};

async fn get_is_served(over: Over) {
    let lab = Lab::start(over, &rule(format!("http://{}", mirror().await))).await;
    let answer = lab.get("/a//b/../c;d?x=%zz&y").await;
    assert_eq!(answer.status, 200);
    assert!(answer.text().starts_with("GET /a//b/../c;d?x=%zz&y HTTP/1.1\r\n"), "{}", answer.text());
    lab.finish().await;
}

async fn forged_tags_are_replaced(over: Over) {
    let lab = Lab::start(over, &rule(format!("http://{}", mirror().await))).await;
    let request = "GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\nCf-Warp-Tag-Id: forged\r\n\r\n";
    let seen = lab.raw(request).await.text();
    assert!(seen.contains(&format!("Cf-Warp-Tag-Id: {}\r\n", lab.connector_id)), "{seen}");
    assert!(!seen.contains("forged"), "{seen}");
    lab.finish().await;
}

async fn a_service_does_not_speak_for_adit(over: Over) {
    let service =
        canned("HTTP/1.1 200 OK\r\nAdit-Error: x\r\nCf-Int-A: x\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 0\r\n\r\n");
    let lab = Lab::start(over, &rule(format!("http://{}", service.await))).await;
    let answer = lab.get("/").await;
    assert_eq!((answer.code(), answer.header("cf-int-a")), (None, None));
    assert_eq!(answer.all("x-a"), ["1", "2"]);
    lab.finish().await;
}

over_both! {
    a_get_reaches_the_service_with_its_path_untouched => get_is_served,
    a_visitor_cannot_forge_the_connectors_tag => forged_tags_are_replaced,
    headers_that_only_adit_may_set_are_taken_from_a_service => a_service_does_not_speak_for_adit,
}
