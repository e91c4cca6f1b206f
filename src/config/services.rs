//! The `service` of a rule: one, or a list of equals among which requests are shared out.

use super::mistakes::Place;
use super::origin::OriginOptions;
use super::reader::Reader;
use super::service::Service;
use super::tree::{Node, Value};

/// A service and how it is spelled.
pub(crate) type Spelled = (Service, String);

/// Texts of `service` and where they stand.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    pub(crate) items: Vec<(Place, String)>,
    /// A list is a list, of one service too: it cannot be what only a single service can be.
    pub(crate) list: bool,
}

// Each has a pool, a state and a series of its own.
const MOST: usize = 256;

/// The items of a list; `None` when a mistake was reported.
pub(crate) fn texts(reader: &mut Reader<'_>, node: &Node, path: &str) -> Option<Texts> {
    let items = reader.list(node, path)?;
    if items.is_empty() || items.len() > MOST {
        reader.report.mistake(node.place, path, format!("a list has 1 to {MOST} services"));
        return None;
    }
    let before = reader.report.mistakes.len();
    let mut read = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let path = format!("{path}[{at}]");
        if matches!(item.value, Value::Null) {
            reader.report.mistake(item.place, &path, "must be a text, this is nothing");
        }
        read.extend(reader.text(item, &path).map(|text| (item.place, text)));
    }
    (reader.report.mistakes.len() == before).then_some(Texts { items: read, list: true })
}

/// The services of a list, checked one by one and against each other.
pub(crate) fn list(
    reader: &mut Reader<'_>,
    texts: &Texts,
    options: &OriginOptions,
    path: &str,
) -> Option<Vec<Spelled>> {
    let before = reader.report.mistakes.len();
    let mut services: Vec<Spelled> = Vec::with_capacity(texts.items.len());
    for (at, (place, text)) in texts.items.iter().enumerate() {
        let path = format!("{path}[{at}]");
        let spelled = match Service::spelled(text) {
            Ok(spelled) => spelled,
            Err(error) => {
                reader.report.mistake(*place, &path, error.to_string());
                continue;
            }
        };
        reader.admit(&spelled.0, *place, &path);
        let Some(kind) = kind(&spelled.0) else {
            let message = format!("{} stands alone, not in a list", spelled.0);
            reader.report.mistake(*place, &path, message);
            continue;
        };
        if options.bastion_mode {
            reader.report.mistake(*place, &path, "`bastionMode` takes the place of a service, not of a list");
        }
        if let Some((first, _)) = services.first().filter(|(first, _)| self::kind(first) != Some(kind)) {
            let message = format!("{} is of another kind than {first}; the services of a list are alike", spelled.0);
            reader.report.mistake(*place, &path, message);
        } else if services.iter().any(|(other, _)| *other == spelled.0) {
            reader.report.mistake(*place, &path, format!("{} is already in the list", spelled.0));
        }
        services.push(spelled);
    }
    (reader.report.mistakes.len() == before).then_some(services)
}

/// Services of one kind can stand in for each other: the same request, under the same protection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// HTTP, over TCP or a unix socket.
    Http {
        tls: bool,
        h2c: bool,
    },
    Tcp,
}

fn kind(service: &Service) -> Option<Kind> {
    match service {
        Service::Http { tls, h2c, .. } => Some(Kind::Http { tls: *tls, h2c: *h2c }),
        Service::Unix { tls, .. } => Some(Kind::Http { tls: *tls, h2c: false }),
        Service::Tcp { .. } => Some(Kind::Tcp),
        Service::Bastion | Service::HelloWorld | Service::SocksProxy | Service::Status(_) => None,
    }
}
