//! A tunnel connector that replaces load-balancer ingress, and the edge that goes with it.
//!
//! A request's way: [`edge`] (or Cloudflare's) opens a stream → [`transport`] makes its head out of it → [`connector`]
//! gives it a task → [`proxy`] looks up the rule in one snapshot of [`ingress`] and opens the service in [`origin`].
//! A secret's way: [`secrets`] reads it → [`credentials`] makes a token of it → [`connector`] registers with it through
//! [`wire`], and nowhere else. ARCHITECTURE.md draws both.
//!
//! Modules stand in the order of their layers; a lower one never imports a higher one, and `tests/it/layers.rs` holds
//! that.

#![deny(missing_docs)]

// 0: import nothing of ours
pub mod backoff;
pub mod code;
pub mod credentials;
pub mod follow;
pub mod identity;
pub mod places;
pub mod shutdown;
pub mod telemetry;

// 1: what is configured, counted and said on the wire
pub mod config;
pub mod metrics;
pub mod wire;

// 2: rules as a table; the only reader of secrets
pub mod ingress;
pub mod secrets;

// 3: bytes into keys
pub mod tls;

// 4: connections to an edge and the streams on them; who may send what
pub mod callers;
pub mod transport;

// 5: services; a request body is the visitor's half of a stream
pub mod origin;

// 6: rule, stream and service come together
pub mod proxy;

// 7: the three programs, strangers to each other
pub mod connector;
pub mod edge;
pub mod guard;

// 8: shows them
pub mod admin;

// 9: the composition root
pub mod app;

// 10: all of it on one machine
pub mod demo;

// 11: commands
pub mod cli;
