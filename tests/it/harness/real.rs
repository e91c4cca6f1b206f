//! Real servers, from the distribution's packages.

use std::{net::SocketAddr, path::Path, process::Stdio, sync::Mutex};

use tokio::{
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

use super::eventually;

/// A real server, ended with the test.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    _child: Child,
    _dir: tempfile::TempDir,
}

/// `program` with a configuration made of a free address and a folder of its own, once it listens.
pub(crate) async fn server(
    program: &str,
    arguments: &[&str],
    config: impl FnOnce(SocketAddr, &Path) -> String,
) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let addr = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let path = dir.path().join("config");
    std::fs::write(&path, config(addr, dir.path())).unwrap();
    let mut command = Command::new(program);
    command.args(arguments).arg(&path).stdout(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
    let child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    let child = Mutex::new(child);
    eventually(&format!("{program} listens"), async || {
        // One that could not have its address ends, and somebody else may listen there.
        let ended = child.lock().unwrap().try_wait().unwrap();
        assert!(ended.is_none(), "{program} ended: {ended:?}");
        TcpStream::connect(addr).await.is_ok()
    })
    .await;
    Server { addr, _child: child.into_inner().unwrap(), _dir: dir }
}

/// nginx with what `http` says inside of `http { … }`.
pub(crate) async fn nginx(http: impl FnOnce(SocketAddr, &Path) -> String) -> Server {
    server("nginx", &["-c"], |addr, dir| {
        let http = http(addr, dir);
        let dir = dir.display();
        format!(
            "daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log;\n\
             events {{}}\n\
             http {{ access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;\n\
             uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n{http}\n}}\n"
        )
    })
    .await
}
