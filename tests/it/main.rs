//! The integration tests, in one binary.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::or_fun_call,
    clippy::print_stderr,
    reason = "a test that fails says why by panicking"
)]

mod balance;
mod body;
mod callers_relayed;
mod callers_trust;
mod callers_worker;
mod callers_zoo;
mod cancellation;
mod cases;
mod chaos;
mod cli;
mod cloudflared;
mod config_file;
mod config_inner_hop;
mod config_layers;
mod config_limits;
mod config_remote;
mod config_secrets;
mod config_services;
mod config_values;
mod credentials_cases;
mod credentials_source;
mod drain_edge;
mod drain_load;
mod drain_process;
mod drain_websocket;
mod edge_client_auth;
mod edge_front;
mod edge_limits;
mod edge_retry;
mod edge_state;
mod edge_stop;
mod edge_strict;
mod edges;
mod failures;
mod flows;
mod follow;
mod forwarded;
mod grpc;
mod guard_enforce;
mod guard_http;
mod guard_tcp;
mod harness;
mod heads;
mod hostile_connector;
mod hostile_edge_http2;
mod hostile_edge_quic;
mod hostile_visitor;
mod http;
mod http_body;
mod http_errors;
mod http_tls;
mod https;
mod ingress_table;
mod keyring;
mod layers;
mod limits;
mod many;
mod netns;
mod origin_http2;
mod origin_names;
mod origin_retry;
mod origins;
mod own_edge;
mod pki;
mod proxy_protocol;
mod pushes;
mod raw_attempts;
mod raw_connector;
mod raw_edge;
mod raw_frames;
mod raw_http2;
mod raw_quic;
mod raw_service;
mod refusals;
mod reload;
mod reload_program;
mod rotation;
mod rules_pushed;
mod several_edges;
mod silence;
mod smuggling;
mod socks;
mod streams;
mod trailers;
mod visitors;
mod volume;
mod websocket;
mod websocket_frames;
mod wire_craft;
mod wire_framing;
mod wire_hostile;
mod wire_rpc;
mod wire_vectors;
