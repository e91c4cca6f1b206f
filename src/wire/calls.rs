//! Calls between edge and connector beside registration: configuration and UDP sessions (protocol.md §4.2, §5.6, §8.2).
//!
//! On QUIC each call has a stream of its own. UDP sessions are refused in the protocol's own words until datagrams are
//! built.

use std::time::Duration;

use bytes::Bytes;
use capnp::capability::Rc;
use capnp_rpc::rpc_twoparty_capnp::Side;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot},
};

use super::{
    rpc::{RpcThread, system},
    schema::tunnelrpc_capnp::{cloudflared_server, configuration_manager, session_manager},
};

/// How long an RPC stream towards the connector lives (§3.5).
pub const CALL_LIMIT: Duration = Duration::from_secs(5);

/// For an RPC conversation to end in good order after its answer.
const PARTING_LIMIT: Duration = Duration::from_secs(2);

/// The answer to a pushed configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The version in force now.
    pub version: i32,
    /// Every reason why the push was refused, empty when it was not.
    pub error: String,
}

/// A pushed configuration and where its answer goes.
#[derive(Debug)]
pub struct Push {
    /// Version of the configuration; those not above the current one change nothing.
    pub version: i32,
    /// JSON.
    pub config: Bytes,
    /// Whether it comes from an edge that confirmed adit's own ways, so that adit's own keys count.
    pub own_edge: bool,
    /// Takes the answer.
    pub reply: oneshot::Sender<Applied>,
}

struct ConnectorHalf {
    own_edge: bool,
    pushes: mpsc::Sender<Push>,
}

impl cloudflared_server::Server for ConnectorHalf {}

impl configuration_manager::Server for ConnectorHalf {
    async fn update_configuration(
        self: Rc<Self>,
        params: configuration_manager::UpdateConfigurationParams,
        mut results: configuration_manager::UpdateConfigurationResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let (reply, answer) = oneshot::channel();
        let push = Push {
            version: params.get_version(),
            config: Bytes::copy_from_slice(params.get_config()?),
            own_edge: self.own_edge,
            reply,
        };
        let gone = || capnp::Error::failed("the connector is stopping".into());
        self.pushes.send(push).await.map_err(|_| gone())?;
        let applied = answer.await.map_err(|_| gone())?;
        let mut result = results.get().init_result();
        result.set_latest_applied_version(applied.version);
        result.set_err(&applied.error);
        Ok(())
    }
}

impl session_manager::Server for ConnectorHalf {
    async fn register_udp_session(
        self: Rc<Self>,
        params: session_manager::RegisterUdpSessionParams,
        mut results: session_manager::RegisterUdpSessionResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let id = params.get_session_id()?;
        if id.len() != 16 {
            return Err(capnp::Error::failed(format!("invalid UUID (got {} bytes)", id.len())));
        }
        let mut result = results.get().init_result();
        result.set_err(match params.get_dst_ip()?.len() {
            4 | 16 => "UDP sessions are not supported by this connector",
            _ => "unable to parse destination IP",
        });
        Ok(())
    }

    async fn unregister_udp_session(
        self: Rc<Self>,
        _: session_manager::UnregisterUdpSessionParams,
        _: session_manager::UnregisterUdpSessionResults,
    ) -> Result<(), capnp::Error> {
        Ok(())
    }
}

/// Serves one RPC stream that the edge opened, for at most [`CALL_LIMIT`]. `own_edge` is said of what it pushes.
pub async fn serve(
    rpc: &RpcThread,
    recv: impl AsyncRead + Unpin + Send + 'static,
    send: impl AsyncWrite + Unpin + Send + 'static,
    own_edge: bool,
    pushes: mpsc::Sender<Push>,
) {
    rpc.run(move || async move {
        let server: cloudflared_server::Client = capnp_rpc::new_client(ConnectorHalf { own_edge, pushes });
        let system = system(recv, send, Side::Server, Some(server.client));
        let _ = tokio::time::timeout(CALL_LIMIT, system).await;
    })
    .await;
}

/// Pushes a configuration over a fresh RPC stream, as an edge does.
///
/// # Errors
///
/// With the reason, when the connector did not answer in time.
pub async fn push(
    rpc: &RpcThread,
    recv: impl AsyncRead + Unpin + Send + 'static,
    send: impl AsyncWrite + Unpin + Send + 'static,
    version: i32,
    config: Bytes,
) -> Result<Applied, String> {
    let call = move || async move {
        let mut system = system(recv, send, Side::Client, None);
        let server: configuration_manager::Client = system.bootstrap(Side::Server);
        let disconnector = system.get_disconnector();
        let driver = tokio::task::spawn_local(system);
        let mut request = server.update_configuration_request();
        request.get().set_version(version);
        request.get().set_config(&config);
        let outcome = async {
            let answer = request.send().promise.await?;
            let result = answer.get()?.get_result()?;
            Ok(Applied {
                version: result.get_latest_applied_version(),
                error: String::from_utf8_lossy(result.get_err()?.as_bytes()).into_owned(),
            })
        };
        let outcome = tokio::time::timeout(CALL_LIMIT, outcome).await;
        drop(server);
        // The connector answered or is given up; its share in the parting must not hold up the next push.
        let _ = tokio::time::timeout(PARTING_LIMIT, disconnector).await;
        driver.abort();
        match outcome {
            Ok(Ok(applied)) => Ok(applied),
            Ok(Err(error)) => Err(capnp::Error::to_string(&error)),
            Err(_) => Err(format!("no answer within {CALL_LIMIT:?}")),
        }
    };
    rpc.run(call).await.unwrap_or_else(|| Err("the call died".into()))
}
