//! Cap'n Proto RPC: each half of a control stream, and the calls of an edge, faced with any bytes of the other.

use std::{
    cell::RefCell,
    sync::{
        Once,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use adit::wire::{
    calls::{self, Applied},
    connect::message_len,
    registration::{self, EdgeCall, Registered, Registration, RegistrationError},
    rpc::RpcThread,
};
use tokio::{io::AsyncReadExt, runtime::Runtime, sync::mpsc};
use uuid::Uuid;

use super::engine::{gist, seen};

/// A conversation whose peer has said everything ends at once; this is for a processor that is busy.
const ENDS: Duration = Duration::from_secs(4);

thread_local! {
    static STAGE: RefCell<Option<(Runtime, RpcThread)>> = const { RefCell::new(None) };
}

/// Panics on the RPC thread end one conversation and would otherwise go unseen.
static PANICS: AtomicU64 = AtomicU64::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let place = panic.location().map(std::panic::Location::file).unwrap_or_default();
            if ["capnp", "src/wire"].iter().any(|part| place.contains(part)) {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            before(panic);
        }));
    });
}

/// Runs a conversation to its end, which must come, and without a panic.
fn converse<F: Future<Output = u64>>(conversation: impl FnOnce(RpcThread) -> F) -> u64 {
    count_panics();
    let before = PANICS.load(Ordering::SeqCst);
    let found = STAGE.with_borrow_mut(|stage| {
        let (runtime, rpc) = stage.get_or_insert_with(|| {
            (tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(), RpcThread::new())
        });
        let ended = async { tokio::time::timeout(ENDS, conversation(rpc.clone())).await };
        runtime.block_on(ended).expect("the conversation does not end")
    });
    assert_eq!(PANICS.load(Ordering::SeqCst), before, "a panic on the RPC thread");
    found
}

/// What kinds of messages these are: the union tags of the first few, which stand behind table and root pointer.
fn tags(mut said: &[u8]) -> Vec<u8> {
    let mut tags = Vec::new();
    while let Ok(Some(len)) = message_len(said)
        && len <= said.len()
        && tags.len() < 8
    {
        tags.extend(said.get(16));
        said = &said[len..];
    }
    tags
}

/// The bytes, then the end of the stream.
fn bytes(input: &[u8]) -> std::io::Cursor<Vec<u8>> {
    std::io::Cursor::new(input.to_vec())
}

fn claims() -> Registration {
    Registration {
        account: "account".into(),
        secret: vec![7; 32].into(),
        tunnel: Uuid::nil(),
        index: 0,
        connector: Uuid::nil(),
        features: Vec::new(),
        version: "1".into(),
        arch: "linux_amd64".into(),
        local_ip: None,
        previous_attempts: 0,
    }
}

/// A connector hears an edge's answer to its registration.
pub(super) fn registration_answer(input: &[u8]) -> u64 {
    converse(|rpc| async move {
        let limit = Duration::from_secs(2);
        match registration::register(&rpc, bytes(input), tokio::io::sink(), claims(), limit).await {
            Ok((registered, control)) => {
                control.closed().await;
                seen((registered.remotely_managed, registered.location.len().min(3)))
            }
            Err(RegistrationError::TimedOut(_)) => panic!("a stream that ended is waited for"),
            Err(RegistrationError::Refused { cause, retry_after, should_retry }) => {
                assert!(cause.len() <= 3 * input.len());
                seen((cause.len().min(3), retry_after.is_some(), should_retry))
            }
            Err(RegistrationError::Rpc(text)) => {
                assert!(text.len() <= 3 * input.len() + 2_000);
                seen(gist(&text))
            }
        }
    })
}

/// An edge hears a connector's calls on its control stream.
pub(super) fn registration_call(input: &[u8]) -> u64 {
    converse(|rpc| async move {
        let (sender, mut calls) = mpsc::channel(4);
        let mut heard = Vec::new();
        let answers = async {
            while let Some(call) = calls.recv().await {
                match call {
                    EdgeCall::Register(registration, reply) => {
                        assert!(registration.version.len() <= 3 * input.len());
                        heard.push("register");
                        let _ = reply.send(Ok(Registered {
                            connection: Uuid::nil(),
                            location: "x".into(),
                            remotely_managed: true,
                            features: Vec::new(),
                        }));
                    }
                    EdgeCall::Unregister(reply) => {
                        heard.push("unregister");
                        let _ = reply.send(());
                    }
                    EdgeCall::LocalConfiguration(json) => {
                        assert!(json.len() <= input.len());
                        heard.push("rules");
                    }
                }
            }
        };
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let serve = registration::serve(&rpc, bytes(input), ours, sender);
        let mut said = Vec::new();
        let (_, _, read) = tokio::join!(serve, answers, theirs.read_to_end(&mut said));
        read.unwrap();
        assert!(said.len() <= 4 * input.len() + 4_096, "{} bytes for {}", said.len(), input.len());
        heard.truncate(4);
        seen((heard, tags(&said)))
    })
}

/// A connector hears an edge's calls on a stream of their own.
pub(super) fn call(input: &[u8]) -> u64 {
    converse(|rpc| async move {
        let (sender, mut pushes) = mpsc::channel(4);
        let mut heard = 0;
        let answers = async {
            while let Some(calls::Push { version, config, reply, .. }) = pushes.recv().await {
                assert!(config.len() <= input.len());
                heard += 1;
                let _ = reply.send(Applied { version, error: String::new() });
            }
        };
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let serve = calls::serve(&rpc, bytes(input), ours, true, sender);
        let mut said = Vec::new();
        let (_, _, read) = tokio::join!(serve, answers, theirs.read_to_end(&mut said));
        read.unwrap();
        assert!(said.len() <= 4 * input.len() + 4_096, "{} bytes for {}", said.len(), input.len());
        seen((heard.min(3), tags(&said)))
    })
}
