//! Registration over the control stream: the connector's half and the edge's half (protocol.md §4, §5).

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use capnp::capability::Rc;
use capnp_rpc::rpc_twoparty_capnp::Side;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot},
};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{
    framing::FEATURE,
    rpc::{RpcThread, system},
    schema::tunnelrpc_capnp::{connection_response, registration_server as schema},
};

/// For the peer to end its half of the control stream.
const GOODBYE_LIMIT: Duration = Duration::from_secs(1);

/// What a connector says about itself (§5.1).
#[derive(Clone)]
pub struct Registration {
    /// Account tag of the token; opaque.
    pub account: String,
    /// Tunnel secret, raw.
    pub secret: Zeroizing<Vec<u8>>,
    /// Tunnel id.
    pub tunnel: Uuid,
    /// Connection index, 0 to n−1.
    pub index: u8,
    /// Connector id, one per process and token generation.
    pub connector: Uuid,
    /// Feature strings.
    pub features: Vec<String>,
    /// Version of the program.
    pub version: String,
    /// `<os>_<architecture>` in Go's words.
    pub arch: String,
    /// See §5.1: the socket's local address on HTTP/2, the edge's on QUIC.
    pub local_ip: Option<IpAddr>,
    /// Waits since the last success.
    pub previous_attempts: u8,
}

impl Registration {
    /// Whether the connector offers adit's own ways, see [`framing`](super::framing).
    pub fn offers_own(&self) -> bool {
        self.features.iter().any(|feature| feature == FEATURE)
    }
}

impl std::fmt::Debug for Registration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registration")
            .field("tunnel", &self.tunnel)
            .field("connector", &self.connector)
            .field("index", &self.index)
            .field("features", &self.features)
            .finish_non_exhaustive()
    }
}

/// What the edge says to an accepted connection (§5.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The edge's id of this connection.
    pub connection: Uuid,
    /// Where the edge is, free text.
    pub location: String,
    /// Whether the edge pushes the rules.
    pub remotely_managed: bool,
    /// Features that the edge confirms; empty from edges other than ours.
    pub features: Vec<String>,
}

impl Registered {
    /// Whether the edge confirms adit's own ways. Counts only where they were offered.
    pub fn confirms_own(&self) -> bool {
        self.features.iter().any(|feature| feature == FEATURE)
    }
}

/// Why a registration did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistrationError {
    /// The edge refused, in its own words.
    #[error("the edge refused the registration: {cause}")]
    Refused {
        /// The edge's words.
        cause: String,
        /// How long the edge asks to wait.
        retry_after: Option<Duration>,
        /// Whether the edge thinks that trying again helps.
        should_retry: bool,
    },
    /// The RPC itself failed or answered nonsense.
    #[error("registration failed: {0}")]
    Rpc(String),
    /// No answer in time.
    #[error("no answer to the registration within {0:?}")]
    TimedOut(Duration),
}

impl RegistrationError {
    /// Whether the edge has a connection with this index already (protocol.md §5.3: exactly this word).
    pub fn is_duplicate(&self) -> bool {
        matches!(self, Self::Refused { cause, .. } if cause == "EDUPCONN")
    }
}

enum Call {
    Unregister(oneshot::Sender<Result<(), String>>),
    LocalConfiguration(Vec<u8>, oneshot::Sender<Result<(), String>>),
}

/// The control stream of a registered connection. Dropping it closes the stream.
#[derive(Debug)]
pub struct Control {
    calls: mpsc::Sender<Call>,
}

impl Control {
    /// Completes when the control stream has ended, whoever ended it.
    pub async fn closed(&self) {
        self.calls.closed().await;
    }

    /// Tells the edge to send nothing new. The connection then ends when the edge closes it (§5.4).
    ///
    /// # Errors
    ///
    /// With the reason, when the edge did not answer `Ok` within `limit`.
    pub async fn unregister(&self, limit: Duration) -> Result<(), String> {
        self.call(limit, Call::Unregister).await
    }

    /// Tells the edge the local rules (§5.5).
    ///
    /// # Errors
    ///
    /// With the reason; the registration is unharmed.
    pub async fn update_local_configuration(&self, json: Vec<u8>, limit: Duration) -> Result<(), String> {
        self.call(limit, |reply| Call::LocalConfiguration(json, reply)).await
    }

    async fn call(
        &self,
        limit: Duration,
        call: impl FnOnce(oneshot::Sender<Result<(), String>>) -> Call,
    ) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        let gone = || "the control stream is closed".to_owned();
        self.calls.send(call(reply)).await.map_err(|_| gone())?;
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(format!("no answer within {limit:?}")),
        }
    }
}

/// Registers over a fresh control stream.
///
/// # Errors
///
/// [`RegistrationError`]; the stream is closed then.
pub async fn register(
    rpc: &RpcThread,
    recv: impl AsyncRead + Unpin + Send + 'static,
    send: impl AsyncWrite + Unpin + Send + 'static,
    registration: Registration,
    limit: Duration,
) -> Result<(Registered, Control), RegistrationError> {
    let (reply, answer) = oneshot::channel();
    let (calls, incoming) = mpsc::channel(4);
    rpc.start(move || drive(recv, send, registration, reply, incoming));
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(outcome)) => Ok((outcome?, Control { calls })),
        Ok(Err(_)) => Err(RegistrationError::Rpc("the control stream ended".into())),
        Err(_) => Err(RegistrationError::TimedOut(limit)),
    }
}

async fn drive(
    recv: impl AsyncRead + Unpin + 'static,
    send: impl AsyncWrite + Unpin + 'static,
    registration: Registration,
    reply: oneshot::Sender<Result<Registered, RegistrationError>>,
    mut calls: mpsc::Receiver<Call>,
) {
    let mut system = system(recv, send, Side::Client, None);
    let server: schema::Client = system.bootstrap(Side::Server);
    let disconnector = system.get_disconnector();
    let mut driver = tokio::task::spawn_local(system);
    let outcome = tokio::select! {
        outcome = call_register(&server, &registration) => outcome,
        end = &mut driver => Err(RegistrationError::Rpc(match end {
            Ok(Err(error)) => error.to_string(),
            _ => "the control stream ended".into(),
        })),
    };
    drop(registration);
    let registered = outcome.is_ok();
    if reply.send(outcome).is_ok() && registered {
        // What came in while another call waited for its answer.
        let mut next = None;
        loop {
            let call = match next.take() {
                Some(call) => Some(call),
                None => tokio::select! {
                    call = calls.recv() => call,
                    _ = &mut driver => return,
                },
            };
            match call {
                Some(Call::Unregister(mut reply)) => {
                    tokio::select! {
                        outcome = server.unregister_connection_request().send().promise => {
                            let _ = reply.send(outcome.map(drop).map_err(|error| error.to_string()));
                        }
                        // Nobody waits for an edge that does not answer; its stream must not stay open for it.
                        () = reply.closed() => {}
                    }
                    break;
                }
                Some(Call::LocalConfiguration(json, mut reply)) => {
                    let mut request = server.update_local_configuration_request();
                    request.get().set_config(&json);
                    tokio::select! {
                        outcome = request.send().promise => {
                            let _ = reply.send(outcome.map(drop).map_err(|error| error.to_string()));
                        }
                        () = reply.closed() => {}
                        // An edge that never answers this must still hear the unregistration. That nobody can call
                        // any more ends the wait as well.
                        call = calls.recv() => {
                            let _ = reply.send(Err("given up for the next call".into()));
                            match call {
                                Some(call) => next = Some(call),
                                None => break,
                            }
                        }
                    }
                }
                None => break,
            }
        }
    }
    drop(server);
    // Says goodbye and closes the send side; a peer that is gone already makes no difference, one that keeps its own
    // side open is not waited for: over HTTP/2 its stream would hold the connection.
    let goodbye = async {
        let _ = disconnector.await;
        let _ = (&mut driver).await;
    };
    if tokio::time::timeout(GOODBYE_LIMIT, goodbye).await.is_err() {
        driver.abort();
    }
}

async fn call_register(server: &schema::Client, registration: &Registration) -> Result<Registered, RegistrationError> {
    let mut request = server.register_connection_request();
    let mut params = request.get();
    let mut auth = params.reborrow().init_auth();
    auth.set_account_tag(&registration.account);
    auth.set_tunnel_secret(&registration.secret);
    params.set_tunnel_id(registration.tunnel.as_bytes());
    params.set_conn_index(registration.index);
    let mut options = params.init_options();
    options.set_num_previous_attempts(registration.previous_attempts);
    if let Some(ip) = registration.local_ip {
        options.set_origin_local_ip(&sixteen_bytes(ip));
    }
    let mut client = options.init_client();
    client.set_client_id(registration.connector.as_bytes());
    client.set_version(&registration.version);
    client.set_arch(&registration.arch);
    let mut features = client.init_features(registration.features.len() as u32);
    for (at, feature) in registration.features.iter().enumerate() {
        features.set(at as u32, feature);
    }
    let answer = request.send().promise.await.map_err(rpc_error)?;
    let result = answer.get().and_then(|answer| answer.get_result()).map_err(rpc_error)?;
    match result.get_result().which() {
        Ok(connection_response::result::Which::Error(error)) => {
            let error = error.map_err(rpc_error)?;
            let cause = error.get_cause().map_err(rpc_error)?;
            let retry_after = u64::try_from(error.get_retry_after()).unwrap_or(0);
            Err(RegistrationError::Refused {
                cause: String::from_utf8_lossy(cause.as_bytes()).into_owned(),
                retry_after: (retry_after > 0).then(|| Duration::from_nanos(retry_after)),
                should_retry: error.get_should_retry(),
            })
        }
        Ok(connection_response::result::Which::ConnectionDetails(details)) => {
            let details = details.map_err(rpc_error)?;
            let id = details.get_uuid().map_err(rpc_error)?;
            let connection = Uuid::from_slice(id)
                .map_err(|_| RegistrationError::Rpc(format!("a connection id of {} bytes", id.len())))?;
            let location = details.get_location_name().map_err(rpc_error)?;
            Ok(Registered {
                connection,
                location: String::from_utf8_lossy(location.as_bytes()).into_owned(),
                remotely_managed: details.get_tunnel_is_remotely_managed(),
                features: texts(details.get_features().map_err(rpc_error)?),
            })
        }
        Err(capnp::NotInSchema(tag)) => Err(RegistrationError::Rpc(format!("unknown result which {tag}"))),
    }
}

fn rpc_error(error: capnp::Error) -> RegistrationError {
    RegistrationError::Rpc(error.to_string())
}

/// At most 64 short texts of a list that a peer may have made as long as it likes.
fn texts(list: capnp::text_list::Reader<'_>) -> Vec<String> {
    list.iter()
        .take(64)
        .filter_map(Result::ok)
        .map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned())
        .collect()
}

/// The 16-byte form also for IPv4 (§12.1 item 7).
fn sixteen_bytes(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// An edge's refusal.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Words for the operator of the connector.
    pub cause: String,
    /// How long to wait.
    pub retry_after: Duration,
    /// Whether trying again can help.
    pub should_retry: bool,
}

/// What a connector asks of an edge; each is answered once, by its sender.
#[derive(Debug)]
pub enum EdgeCall {
    /// `registerConnection`.
    Register(Box<Registration>, oneshot::Sender<Result<Registered, Refusal>>),
    /// `unregisterConnection`.
    Unregister(oneshot::Sender<()>),
    /// `updateLocalConfiguration`; JSON.
    LocalConfiguration(Vec<u8>),
}

struct EdgeHalf {
    calls: mpsc::Sender<EdgeCall>,
}

fn gone<T>(_: T) -> capnp::Error {
    capnp::Error::failed("the edge is closing".into())
}

impl schema::Server for EdgeHalf {
    async fn register_connection(
        self: Rc<Self>,
        params: schema::RegisterConnectionParams,
        mut results: schema::RegisterConnectionResults,
    ) -> Result<(), capnp::Error> {
        let registration = read_registration(params.get()?)?;
        let (reply, answer) = oneshot::channel();
        self.calls.send(EdgeCall::Register(Box::new(registration), reply)).await.map_err(gone)?;
        let mut result = results.get().init_result().init_result();
        match answer.await.map_err(gone)? {
            Ok(registered) => {
                let mut details = result.init_connection_details();
                details.set_uuid(registered.connection.as_bytes());
                details.set_location_name(&registered.location);
                details.set_tunnel_is_remotely_managed(registered.remotely_managed);
                if !registered.features.is_empty() {
                    let mut features = details.init_features(registered.features.len() as u32);
                    for (at, feature) in registered.features.iter().enumerate() {
                        features.set(at as u32, feature);
                    }
                }
            }
            Err(refusal) => {
                let mut error = result.reborrow().init_error();
                error.set_cause(&refusal.cause);
                error.set_retry_after(i64::try_from(refusal.retry_after.as_nanos()).unwrap_or(i64::MAX));
                error.set_should_retry(refusal.should_retry);
            }
        }
        Ok(())
    }

    async fn unregister_connection(
        self: Rc<Self>,
        _: schema::UnregisterConnectionParams,
        _: schema::UnregisterConnectionResults,
    ) -> Result<(), capnp::Error> {
        let (reply, answer) = oneshot::channel();
        self.calls.send(EdgeCall::Unregister(reply)).await.map_err(gone)?;
        answer.await.map_err(gone)
    }

    async fn update_local_configuration(
        self: Rc<Self>,
        params: schema::UpdateLocalConfigurationParams,
        _: schema::UpdateLocalConfigurationResults,
    ) -> Result<(), capnp::Error> {
        let config = params.get()?.get_config()?.to_vec();
        self.calls.send(EdgeCall::LocalConfiguration(config)).await.map_err(gone)
    }
}

fn read_registration(params: schema::register_connection_params::Reader<'_>) -> Result<Registration, capnp::Error> {
    let text = |text: capnp::text::Reader<'_>| String::from_utf8_lossy(text.as_bytes()).into_owned();
    let id = |bytes: &[u8], what: &str| {
        Uuid::from_slice(bytes).map_err(|_| capnp::Error::failed(format!("{what} of {} bytes", bytes.len())))
    };
    let auth = params.get_auth()?;
    let options = params.get_options()?;
    let client = options.get_client()?;
    let local_ip = <[u8; 16]>::try_from(options.get_origin_local_ip()?).ok().map(|octets| {
        let ip = Ipv6Addr::from(octets);
        ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4)
    });
    Ok(Registration {
        account: text(auth.get_account_tag()?),
        secret: Zeroizing::new(auth.get_tunnel_secret()?.to_vec()),
        tunnel: id(params.get_tunnel_id()?, "tunnel id")?,
        index: params.get_conn_index(),
        connector: id(client.get_client_id()?, "connector id")?,
        features: texts(client.get_features()?),
        version: text(client.get_version()?),
        arch: text(client.get_arch()?),
        local_ip,
        previous_attempts: options.get_num_previous_attempts(),
    })
}

/// Serves the edge's half of one control stream until it ends.
pub async fn serve(
    rpc: &RpcThread,
    recv: impl AsyncRead + Unpin + Send + 'static,
    send: impl AsyncWrite + Unpin + Send + 'static,
    calls: mpsc::Sender<EdgeCall>,
) {
    rpc.run(move || async move {
        let server: schema::Client = capnp_rpc::new_client(EdgeHalf { calls });
        let _ = system(recv, send, Side::Server, Some(server.client)).await;
    })
    .await;
}
