//! Every parser of foreign bytes, fed with what its corpus holds and with what can be made out of that.
//!
//! A target is a function that takes any bytes and panics when a promise is broken. It returns what it saw as a number,
//! so that inputs which reach something new are kept and changed further. In every run of the tests a target gets its
//! corpus and a fixed number of mutations; for longer:
//!
//! ```text
//! ADIT_FUZZ_SECONDS=600 cargo test --release --test fuzz -- --ignored --nocapture
//! ```
//!
//! An input that breaks a promise is written to `target/fuzz/TARGET/`; once the reason is mended it belongs into
//! `tests/corpus/TARGET/`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails says why by panicking")]
#![allow(clippy::print_stdout, reason = "figures of long runs")]

mod callers;
mod config;
mod engine;
mod mutate;
mod proxy;
mod rpc;
#[path = "../it/websocket_frames/said.rs"]
mod said;
mod wire;

use engine::Target;

/// Two tests for each target: one for every run, one that takes as long as it is told to.
macro_rules! targets {
    ($($name:ident: $run:path, $words:expr;)+) => {$(
        mod $name {
            use super::*;

            const TARGET: Target = Target { name: stringify!($name), run: $run, words: $words };

            #[test]
            fn survives_its_corpus_and_what_is_made_of_it() {
                TARGET.replay();
                TARGET.mutate(engine::Until::Executions(2_000));
            }

            #[test]
            #[ignore = "takes ADIT_FUZZ_SECONDS, 20 without it; .ci/run runs it"]
            fn survives_for_long() {
                TARGET.mutate(engine::Until::told());
            }
        }
    )+};
}

targets! {
    preamble: wire::preamble, wire::CAPNP;
    connect_request: wire::connect_request, wire::CAPNP;
    connect_response: wire::connect_response, wire::CAPNP;
    packed_headers: wire::packed_headers, wire::PACKED;
    framed_body: wire::framed_body, wire::PACKED;
    announced: wire::announced, wire::CAPNP;
    http2_head: wire::http2_head, wire::HEADS;
    target_path: wire::target_path, wire::HEADS;
    rpc_registration_answer: rpc::registration_answer, wire::CAPNP;
    rpc_registration_call: rpc::registration_call, wire::CAPNP;
    rpc_call: rpc::call, wire::CAPNP;
    token: config::token, config::JSON;
    credentials_file: config::credentials_file, config::JSON;
    configuration: config::configuration, config::YAML;
    pushed_configuration: config::pushed, config::JSON;
    tunnels_file: config::tunnels_file, config::YAML;
    service: config::service, config::RULES;
    hostname: config::hostname, config::RULES;
    path_pattern: config::path_pattern, config::PATTERNS;
    websocket_decoder: proxy::websocket_decoder, proxy::FRAMES;
    websocket_boundary: proxy::websocket_boundary, proxy::FRAMES;
    socks: proxy::socks, proxy::SOCKS;
    bastion: proxy::bastion, config::RULES;
    relayed: callers::relayed, callers::HEADERS;
    caller_certificate: callers::caller_certificate, callers::DER;
    revocation_list: callers::revocation_list, callers::DER;
}

#[test]
fn every_folder_of_the_corpus_belongs_to_a_target_and_the_whole_of_it_is_small() {
    let mut bytes = 0;
    for folder in std::fs::read_dir(engine::corpus()).unwrap() {
        let folder = folder.unwrap();
        let name = folder.file_name().into_string().unwrap();
        assert!(include_str!("main.rs").contains(&format!("    {name}: ")), "{name} is nobody's corpus");
        for file in std::fs::read_dir(folder.path()).unwrap() {
            bytes += file.unwrap().metadata().unwrap().len();
        }
    }
    assert!(bytes < 300 << 10, "{bytes} bytes");
}
