//! The integration tests, in one binary.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::or_fun_call,
    reason = "a test that fails says why by panicking"
)]

mod body;
mod cancellation;
mod cli;
mod cloudflared;
mod config_cases;
mod config_file;
mod config_layers;
mod config_limits;
mod config_remote;
mod config_secrets;
mod config_values;
mod credentials_cases;
mod credentials_source;
mod edge_front;
mod edge_state;
mod failures;
mod flows;
mod forwarded;
mod harness;
mod heads;
mod http;
mod http_body;
mod http_errors;
mod http_tls;
mod https;
mod ingress_table;
mod layers;
mod limits;
mod origins;
mod proxy_protocol;
mod raw_attempts;
mod raw_connector;
mod raw_edge;
mod raw_http2;
mod raw_quic;
mod raw_service;
mod refusals;
mod rules_pushed;
mod socks;
mod streams;
mod visitors;
mod volume;
mod websocket;
mod websocket_frames;
mod wire_craft;
mod wire_hostile;
mod wire_rpc;
mod wire_vectors;
