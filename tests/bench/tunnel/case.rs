//! The list of tests, and the order that one of them becomes for the load generator. Knows no process.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// One test; `name` is what `--only` takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) connections: usize,
    work: Shape,
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    Down,
    Echo,
    Get(&'static str),
    /// WebSockets that stay open and idle, for their memory.
    Hold,
    Post(u64),
    Up,
}

/// What the load generator does, handed over as JSON.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Order {
    pub(crate) edge: SocketAddr,
    pub(crate) host: String,
    pub(crate) connections: usize,
    pub(crate) work: Work,
    /// Until when a connection starts another exchange; without it each makes exactly one.
    pub(crate) millis: Option<u64>,
    /// Keep the connections open, after the outcome is printed, until stdin closes.
    pub(crate) hold: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Work {
    /// Messages of 64 bytes over a WebSocket, one in flight.
    Echo,
    Get {
        path: String,
    },
    Post {
        path: String,
        bytes: u64,
    },
}

/// How much one window of measurement does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amount {
    pub(crate) millis: u64,
    pub(crate) bytes: u64,
}

impl Case {
    /// Whether its cost counts per byte rather than per request.
    pub(crate) const fn is_bulk(&self) -> bool {
        matches!(self.work, Shape::Down | Shape::Up)
    }

    /// Whether it measures memory only.
    pub(crate) const fn is_hold(&self) -> bool {
        matches!(self.work, Shape::Hold)
    }

    pub(crate) fn order(&self, edge: SocketAddr, host: &str, amount: Amount) -> Order {
        let share = amount.bytes / self.connections as u64;
        let work = match self.work {
            Shape::Down => Work::Get { path: format!("/down/{share}") },
            Shape::Echo | Shape::Hold => Work::Echo,
            Shape::Get(path) => Work::Get { path: path.to_owned() },
            Shape::Post(bytes) => Work::Post { path: "/up".to_owned(), bytes },
            Shape::Up => Work::Post { path: "/up".to_owned(), bytes: share },
        };
        Order {
            edge,
            host: host.to_owned(),
            connections: self.connections,
            work,
            millis: (!self.is_bulk() && !self.is_hold()).then_some(amount.millis),
            hold: self.is_hold(),
        }
    }
}

pub(crate) const ALL: &[Case] = &[
    // First, so that it finds a connector that has served nothing yet. Twice as many sockets would pass the usual
    // limit of 1,024 descriptors.
    Case { name: "idlews", about: "memory of 500 idle WebSockets", connections: 500, work: Shape::Hold },
    Case { name: "s100", about: "GET of 100 bytes, 64 connections", connections: 64, work: Shape::Get("/s100") },
    Case { name: "k10", about: "GET of 10 KiB, 64 connections", connections: 64, work: Shape::Get("/k10") },
    Case { name: "s100c256", about: "GET of 100 bytes, 256 connections", connections: 256, work: Shape::Get("/s100") },
    Case { name: "s100c1", about: "GET of 100 bytes, 1 connection", connections: 1, work: Shape::Get("/s100") },
    Case { name: "post10k", about: "POST of 10 KiB, 64 connections", connections: 64, work: Shape::Post(10 << 10) },
    Case { name: "ws", about: "WebSocket echo of 64 bytes, 64 connections", connections: 64, work: Shape::Echo },
    Case { name: "down1", about: "download over 1 stream", connections: 1, work: Shape::Down },
    Case { name: "down8", about: "download over 8 streams", connections: 8, work: Shape::Down },
    Case { name: "up1", about: "upload over 1 stream", connections: 1, work: Shape::Up },
    Case { name: "up8", about: "upload over 8 streams", connections: 8, work: Shape::Up },
];
