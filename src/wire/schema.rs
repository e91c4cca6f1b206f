//! Cap'n Proto code generated from `schema/*.capnp` (`capnp compile -orust:.` with `capnpc` 0.27).

#![expect(
    clippy::all,
    clippy::pedantic,
    clippy::nursery,
    unreachable_pub,
    missing_debug_implementations,
    reason = "generated"
)]

pub mod metadata_capnp;
pub mod tunnelrpc_capnp;
