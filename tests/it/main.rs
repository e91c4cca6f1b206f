//! The integration tests, in one binary.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::or_fun_call,
    reason = "a test that fails says why by panicking"
)]

mod cli;
mod cloudflared;
mod config_cases;
mod config_file;
mod config_layers;
mod config_remote;
mod config_secrets;
mod config_values;
mod credentials_cases;
mod credentials_source;
mod edge_front;
mod harness;
mod http;
mod http_body;
mod http_errors;
mod http_tls;
mod https;
mod ingress_table;
mod layers;
mod refusals;
mod socks;
mod streams;
mod volume;
mod websocket_frames;
mod wire_rpc;
mod wire_vectors;
