//! The built-in `hello_world` service: a page, a health check, an event stream and a WebSocket echo.
//!
//! It answers inside the process; no port is opened and no certificate is needed.

use std::time::Duration;

use ::http::{HeaderValue, Method, StatusCode, header};
use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::{
    accept_websocket,
    frames::{Decoder, Encoder, Event, MAX_HEADER, Opcode, Role},
    record::Record,
    refuse,
};
use crate::{
    code::Code,
    transport::{Recv, Responder, Send},
    wire::{RequestHead, ResponseHead},
};

const PAGE: &str = "<!doctype html>
<html lang=\"en\"><head><meta charset=\"utf-8\"><title>adit</title>
<style>body{font:1.1rem/1.6 system-ui,sans-serif;max-width:36rem;margin:15vh auto;padding:0 1rem}</style></head>
<body><h1>The tunnel works.</h1>
<p>This page comes from adit itself, through an edge, down a connection that adit dialled outward. Point the rule at
your own service and you are done.</p></body></html>
";

fn page(content_type: &'static str, length: usize) -> ResponseHead {
    let mut head = ResponseHead::new(StatusCode::OK);
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    head.headers.insert(header::CONTENT_LENGTH, (length as u64).into());
    head
}

pub(super) async fn serve(record: &mut Record<'_>, head: RequestHead, responder: Responder, recv: Recv) {
    let body = match head.target.path() {
        "/ws" if head.websocket => return echo(record, &head, responder, recv).await,
        "/sse" => return events(record, &head, responder).await,
        "/_health" => ("text/plain; charset=utf-8", Bytes::from_static(b"ok")),
        "/uptime" => {
            let uptime = process_uptime();
            let json = format!("{{\"uptime\":\"{}s\"}}\n", uptime.as_secs());
            ("application/json", Bytes::from(json))
        }
        "/" => ("text/html; charset=utf-8", Bytes::from_static(PAGE.as_bytes())),
        _ => return refuse(record, responder, Code::NotFound).await,
    };
    let (content_type, body) = body;
    let end = head.method == Method::HEAD;
    record.sent = if end { 0 } else { body.len() as u64 };
    let answered = match responder.respond(page(content_type, body.len()), end).await {
        Ok(mut send) if !end => send.write(body, true).await,
        other => other.map(drop),
    };
    if answered.is_err() {
        record.visitor_left();
    }
}

fn process_uptime() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// `/sse?freq=MILLISECONDS` or a Go duration; 500 ms without one, never faster than 10 ms.
async fn events(record: &mut Record<'_>, head: &RequestHead, responder: Responder) {
    let wish = head.target.query().into_iter().flat_map(|q| q.split('&')).find_map(|p| p.strip_prefix("freq="));
    let every = wish.and_then(parse_every).unwrap_or(Duration::from_millis(500)).max(Duration::from_millis(10));
    let mut answer = ResponseHead::new(StatusCode::OK);
    answer.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer.headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    let Ok(mut send) = responder.respond(answer, false).await else { return record.visitor_left() };
    let mut tick = tokio::time::interval(every);
    let mut number = 0u64;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = send.stopped() => return record.visitor_left(),
        }
        let event = Bytes::from(format!("{number}\n\n"));
        record.sent += event.len() as u64;
        number += 1;
        if send.write(event, false).await.is_err() {
            return record.visitor_left();
        }
    }
}

fn parse_every(text: &str) -> Option<Duration> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, "ms"),
    };
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        _ => None,
    }
}

/// Echoes every message, frame by frame.
async fn echo(record: &mut Record<'_>, head: &RequestHead, responder: Responder, mut recv: Recv) {
    let Some(key) = head.headers.get(header::SEC_WEBSOCKET_KEY) else {
        return refuse(record, responder, Code::RequestInvalid).await;
    };
    let answer = accept_websocket(key);
    record.status = answer.status;
    let Ok(mut send) = responder.respond(answer, false).await else { return record.visitor_left() };
    let mut decoder = Decoder::new(Role::Server);
    while let Ok(Some(chunk)) = recv.chunk().await {
        decoder.push(chunk);
        loop {
            let done = match decoder.next() {
                Ok(Some(event)) => echo_event(record, &mut send, event).await,
                Ok(None) => break,
                Err(error) => {
                    let _ = send.write(Encoder::server().close(Some(error.close_code()), ""), true).await;
                    true
                }
            };
            if done {
                return;
            }
        }
    }
}

/// Returns whether the conversation is over.
async fn echo_event(record: &mut Record<'_>, send: &mut Send, event: Event) -> bool {
    let encoder = Encoder::server();
    let frame = match event {
        Event::Data(data) => {
            // A piece of a frame goes out as a fragment of its own.
            let opcode = if data.first { data.opcode } else { Opcode::Continuation };
            let mut frame = BytesMut::with_capacity(MAX_HEADER + data.payload.len());
            frame.extend_from_slice(&encoder.header(opcode, data.last, data.payload.len()));
            frame.extend_from_slice(&data.payload);
            record.received += data.payload.len() as u64;
            record.sent += data.payload.len() as u64;
            frame.freeze()
        }
        Event::Ping(payload) => encoder.pong(&payload),
        Event::Pong(_) => return false,
        Event::Close { code, .. } => {
            let _ = send.write(encoder.close(code, ""), true).await;
            return true;
        }
    };
    send.write(frame, false).await.is_err()
}
