//! Cap'n Proto code generated from `schema/*.capnp` (`capnp compile -orust:.` with `capnpc` 0.27).

#![allow(
    clippy::all,
    clippy::unwrap_used,
    clippy::unimplemented,
    clippy::expect_used,
    missing_docs,
    warnings,
    reason = "generated"
)]

pub mod metadata_capnp;
pub mod tunnelrpc_capnp;
