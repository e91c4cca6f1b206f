//! The RPC vectors, against both halves of every conversation (protocol.md §4, §5).

use std::time::Duration;

use adit::{
    shutdown::Tasks,
    wire::{
        calls::{self, Applied, Push},
        registration::{self, EdgeCall, Refusal, Registered, Registration, RegistrationError},
        rpc::RpcThread,
    },
};
use bytes::Bytes;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
};
use uuid::Uuid;

use crate::wire_vectors::{group, unhex};

const LIMIT: Duration = Duration::from_secs(5);

fn messages(phase: &Value, side: &str) -> Vec<u8> {
    phase[side].as_array().unwrap().iter().flat_map(|hex| unhex(hex.as_str().unwrap())).collect()
}

/// The bytes up to and with the first call, and those after it. What a real peer sends after an answer, a Finish for
/// instance, must not arrive before it: it would cancel the call.
fn around_the_call(phase: &Value) -> (Vec<u8>, Vec<u8>) {
    let list: Vec<_> =
        phase["client_messages_hex"].as_array().unwrap().iter().map(|hex| unhex(hex.as_str().unwrap())).collect();
    // Framing, root pointer, then the tag of the message union; 2 is Call.
    let call = list.iter().position(|message| message[16] == 2).unwrap();
    (list[..=call].concat(), list[call + 1..].concat())
}

fn vector(of: &str, name: &str) -> Value {
    group(of).into_iter().find(|vector| vector["name"] == name).unwrap()
}

fn registration_of(vector: &Value) -> Registration {
    let input = &vector["input"];
    let options = &input["options"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Registration {
        account: text(&input["auth"]["accountTag"]),
        secret: unhex(input["auth"]["tunnelSecret_hex"].as_str().unwrap()).into(),
        tunnel: Uuid::from_slice(&unhex(input["tunnelId_hex"].as_str().unwrap())).unwrap(),
        index: input["connIndex"].as_u64().unwrap() as u8,
        connector: Uuid::new_v4(),
        features: Vec::new(),
        version: String::new(),
        arch: String::new(),
        local_ip: None,
        previous_attempts: options["numPreviousAttempts"].as_u64().unwrap_or(0) as u8,
    }
}

/// A stream whose far end is ours to script.
fn wire() -> (impl tokio::io::AsyncRead + Unpin + Send, impl tokio::io::AsyncWrite + Unpin + Send, DuplexStream) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let (recv, send) = tokio::io::split(near);
    (recv, send, far)
}

#[tokio::test]
async fn the_edge_reads_registrations_of_a_real_connector() {
    for vector in group("rpc.registration") {
        let name = vector["name"].as_str().unwrap();
        let (recv, send, mut far) = wire();
        let (calls, mut incoming) = mpsc::channel(4);
        Tasks::new().attend(async move { registration::serve(&RpcThread::new(), recv, send, calls).await });
        let (before, after) = around_the_call(&vector["register_phase"]);
        far.write_all(&before).await.unwrap();
        let Some(EdgeCall::Register(found, reply)) = tokio::time::timeout(LIMIT, incoming.recv()).await.unwrap() else {
            panic!("{name}: no registration");
        };
        let wanted = registration_of(&vector);
        assert_eq!(
            (&found.account, &found.secret, found.tunnel, found.index, found.previous_attempts),
            (&wanted.account, &wanted.secret, wanted.tunnel, wanted.index, wanted.previous_attempts),
            "{name}"
        );
        let registered =
            Registered { connection: Uuid::new_v4(), location: "LIS".into(), remotely_managed: true, features: vec![] };
        reply.send(Ok(registered)).unwrap();
        read_until(&mut far, b"LIS").await;
        far.write_all(&after).await.unwrap();
        if vector["unregister_phase"].is_object() {
            let update = &vector["update_local_configuration_phase"];
            let (before, after) = around_the_call(update);
            far.write_all(&before).await.unwrap();
            let Some(EdgeCall::LocalConfiguration(json)) = incoming.recv().await else { panic!("{name}") };
            far.write_all(&after).await.unwrap();
            assert_eq!(String::from_utf8(json).unwrap(), update["config_utf8"].as_str().unwrap(), "{name}");
            let (before, after) = around_the_call(&vector["unregister_phase"]);
            far.write_all(&before).await.unwrap();
            let Some(EdgeCall::Unregister(reply)) = incoming.recv().await else { panic!("{name}: no unregister") };
            reply.send(()).unwrap();
            far.write_all(&after).await.unwrap();
        }
        far.write_all(&messages(&vector["close_phase"], "client_messages_hex")).await.unwrap();
        far.shutdown().await.unwrap();
        assert!(tokio::time::timeout(LIMIT, incoming.recv()).await.unwrap().is_none(), "{name}: does not end");
    }
}

#[tokio::test]
async fn the_connector_reads_answers_of_the_reference_edge() {
    for vector in group("rpc.registration").into_iter().filter(|vector| vector["pipelined"] == true) {
        let name = vector["name"].as_str().unwrap();
        let (recv, send, mut far) = wire();
        far.write_all(&messages(&vector["register_phase"], "server_messages_hex")).await.unwrap();
        let rpc = RpcThread::new();
        let outcome = registration::register(&rpc, recv, send, registration_of(&vector), LIMIT).await;
        let expect = &vector["expect"];
        match outcome {
            Ok((registered, _control)) => {
                let details = &expect["connectionDetails"];
                assert_eq!(registered.connection.to_string(), details["uuid"].as_str().unwrap(), "{name}");
                assert_eq!(registered.location, details["locationName"].as_str().unwrap(), "{name}");
                assert_eq!(registered.remotely_managed, details["tunnelIsRemotelyManaged"] == true, "{name}");
                assert!(registered.features.is_empty(), "an older edge confirms nothing");
            }
            Err(RegistrationError::Refused { cause, retry_after, should_retry }) => {
                let error = &expect["error"];
                assert_eq!(cause, error["cause"].as_str().unwrap(), "{name}");
                assert_eq!(should_retry, error["shouldRetry"] == true, "{name}");
                let wanted = error["retryAfter"].as_u64().unwrap();
                assert_eq!(retry_after.unwrap_or_default(), Duration::from_nanos(wanted), "{name}");
            }
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

/// Both our halves, joined.
async fn register_with(answer: Result<Registered, Refusal>) -> (Registration, Result<Registered, RegistrationError>) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let ((recv, send), (far_recv, far_send)) = (tokio::io::split(near), tokio::io::split(far));
    let (calls, mut incoming) = mpsc::channel(4);
    Tasks::new().attend(async move { registration::serve(&RpcThread::new(), far_recv, far_send, calls).await });
    let mut sent = registration_of(&vector("rpc.registration", "success_pipelined"));
    sent.features = vec!["a".into(), "b".into()];
    sent.version = "1.2.3".into();
    sent.arch = "linux_amd64".into();
    sent.local_ip = Some("10.1.2.3".parse().unwrap());
    sent.previous_attempts = 5;
    let rpc = RpcThread::new();
    let register = registration::register(&rpc, recv, send, sent.clone(), LIMIT);
    let serve = async {
        let Some(EdgeCall::Register(found, reply)) = incoming.recv().await else { panic!("no registration") };
        reply.send(answer).unwrap();
        *found
    };
    let (outcome, found) = tokio::join!(register, serve);
    assert_eq!(found.connector, sent.connector);
    (found, outcome.map(|(registered, _)| registered))
}

#[tokio::test]
async fn every_parameter_of_a_registration_arrives() {
    let registered = Registered {
        connection: Uuid::new_v4(),
        location: "x".into(),
        remotely_managed: false,
        features: vec!["adit_1".into()],
    };
    let (found, outcome) = register_with(Ok(registered.clone())).await;
    assert_eq!(outcome.unwrap(), registered);
    assert_eq!(found.features, ["a", "b"]);
    assert_eq!((found.version.as_str(), found.arch.as_str()), ("1.2.3", "linux_amd64"));
    assert_eq!(found.local_ip, Some("10.1.2.3".parse().unwrap()));
    assert_eq!(found.previous_attempts, 5);
}

#[tokio::test]
async fn a_refusal_arrives_with_the_edges_words_and_its_wait() {
    let refusal = Refusal { cause: "busy".into(), retry_after: Duration::from_millis(1500), should_retry: true };
    let (_, outcome) = register_with(Err(refusal)).await;
    let Err(RegistrationError::Refused { cause, retry_after, should_retry }) = outcome else { panic!("{outcome:?}") };
    assert_eq!((cause.as_str(), retry_after, should_retry), ("busy", Some(Duration::from_millis(1500)), true));
}

#[tokio::test]
async fn silence_garbage_and_hurtful_messages_end_a_registration_and_nothing_else() {
    let rpc = RpcThread::new();
    let register = async |bytes: &[u8], limit| {
        let (recv, send, mut far) = wire();
        far.write_all(bytes).await.unwrap();
        let registration = registration_of(&vector("rpc.registration", "success_pipelined"));
        let outcome = registration::register(&rpc, recv, send, registration, limit).await;
        drop(far);
        outcome.map(|(registered, _)| registered)
    };
    let short = Duration::from_millis(50);
    assert!(matches!(register(&[], short).await, Err(RegistrationError::TimedOut(_))));
    // A message whose only segment has no word, 2^32 segments, a segment of 4 GiB, noise.
    for bytes in [&[0; 8][..], &[0xff; 8], &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0x1f], b"HTTP/1.1 400 Bad Request\r\n\r\n"] {
        assert!(register(bytes, Duration::from_millis(300)).await.is_err(), "{bytes:?}");
    }
    // The thread is as good as new.
    let answer = messages(&vector("rpc.registration", "success_pipelined")["register_phase"], "server_messages_hex");
    assert_eq!(register(&answer, LIMIT).await.unwrap().location, "LIS");
}

#[tokio::test]
async fn an_edge_that_never_answers_the_local_rules_still_hears_the_unregistration() {
    /// In every call of this interface.
    const REGISTRATION_SERVER: [u8; 8] = 0xf716_95ec_7fe8_5497_u64.to_le_bytes();
    const RULES: &[u8] = b"{\"never\":\"answered\"}";
    let (rpc, (recv, send, mut far)) = (RpcThread::new(), wire());
    let vector = vector("rpc.registration", "success_pipelined");
    far.write_all(&messages(&vector["register_phase"], "server_messages_hex")).await.unwrap();
    let registered = registration::register(&rpc, recv, send, registration_of(&vector), LIMIT).await;
    let (_, control) = registered.unwrap();
    let unregister = async {
        read_until(&mut far, RULES).await;
        tokio::select! {
            outcome = control.unregister(LIMIT * 10) => panic!("{outcome:?} without an answer"),
            heard = tokio::time::timeout(LIMIT, read_until(&mut far, &REGISTRATION_SERVER)) => drop(heard.unwrap()),
        }
    };
    let (told, ()) = tokio::join!(control.update_local_configuration(RULES.to_vec(), LIMIT * 10), unregister);
    assert!(told.is_err());
}

/// Reads until `needle` has come by.
async fn read_until(far: &mut (impl tokio::io::AsyncRead + Unpin), needle: &[u8]) -> Vec<u8> {
    let mut seen = Vec::new();
    while !seen.windows(needle.len()).any(|window| window == needle) {
        let mut buffer = [0; 4096];
        let n = tokio::time::timeout(LIMIT, far.read(&mut buffer)).await.expect("no answer").unwrap();
        assert!(n > 0, "the stream ends without {}", String::from_utf8_lossy(needle));
        seen.extend_from_slice(&buffer[..n]);
    }
    seen
}

/// Plays an edge's bytes of one call to the connector's half.
async fn call(vector: &Value, own_edge: bool) -> (mpsc::Receiver<Push>, DuplexStream) {
    let (recv, send, mut far) = wire();
    let (pushes, pushed) = mpsc::channel::<Push>(1);
    Tasks::new().attend(async move { calls::serve(&RpcThread::new(), recv, send, own_edge, pushes).await });
    let list = vector["call_phase"]["edge_messages_hex"].as_array().unwrap();
    let list: Vec<_> = list.iter().map(|hex| unhex(hex.as_str().unwrap())).collect();
    let call = list.iter().position(|message| message[16] == 2).unwrap();
    far.write_all(&list[..=call].concat()).await.unwrap();
    (pushed, far)
}

#[tokio::test]
async fn configurations_of_a_real_edge_arrive_whole_and_are_answered() {
    for (name, own) in [("update_configuration_ok", true), ("update_configuration_err", false)] {
        let vector = vector("rpc.cloudflared_server", name);
        let (mut pushed, mut far) = call(&vector, own).await;
        let Push { version, config, own_edge, reply } =
            tokio::time::timeout(LIMIT, pushed.recv()).await.unwrap().unwrap();
        assert_eq!(i64::from(version), vector["input"]["version"].as_i64().unwrap(), "{name}");
        assert_eq!(own_edge, own, "{name}");
        assert_eq!(config, vector["input"]["config_utf8"].as_str().unwrap(), "{name}");
        reply.send(Applied { version, error: "because of this".into() }).unwrap();
        read_until(&mut far, b"because of this").await;
    }
}

#[tokio::test]
async fn a_udp_session_is_refused_in_the_protocols_words() {
    for name in ["register_udp_session_ok", "register_udp_session_v6_err"] {
        let (_pushed, mut far) = call(&vector("rpc.cloudflared_server", name), false).await;
        read_until(&mut far, b"UDP sessions are not supported").await;
    }
}

#[tokio::test]
async fn the_end_of_an_unknown_udp_session_is_fine() {
    for name in ["unregister_udp_session", "unregister_udp_session_exception"] {
        let (mut pushed, mut far) = call(&vector("rpc.cloudflared_server", name), false).await;
        // A Return without results follows the Return of the bootstrap; then the stream may end.
        far.shutdown().await.unwrap();
        let mut rest = Vec::new();
        tokio::time::timeout(LIMIT, far.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert!(!String::from_utf8_lossy(&rest).contains("not implemented"), "{name}");
        assert!(pushed.recv().await.is_none());
    }
}

#[tokio::test]
async fn the_edge_reads_a_real_connectors_answer_to_a_push() {
    for name in ["update_configuration_ok", "update_configuration_err"] {
        let vector = vector("rpc.cloudflared_server", name);
        let (recv, send, mut far) = wire();
        far.write_all(&messages(&vector["call_phase"], "cloudflared_messages_hex")).await.unwrap();
        let config = Bytes::from(vector["input"]["config_utf8"].as_str().unwrap().to_owned());
        let applied = calls::push(&RpcThread::new(), recv, send, 2, config).await.unwrap();
        let result = &vector["result"];
        assert_eq!(i64::from(applied.version), result["latestAppliedVersion"].as_i64().unwrap(), "{name}");
        // The vectors write Go's nil for no error.
        assert_eq!(applied.error, result["err"].as_str().unwrap().replace("<nil>", ""), "{name}");
    }
}
