//! Pushed JSON as a tree: the order of keys kept, numbers as written, no places.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::mistakes::{Place, Report};
use super::tree::{Entry, Node, Value};

/// A longer document is refused unread.
pub(crate) const MAX_BYTES: usize = 4 << 20;

/// Reads one JSON value; anything behind it is a mistake. `None`: reported. The parser stops at 128
/// levels, so that readers of the tree may recurse.
pub(crate) fn parse_json(bytes: &[u8], report: &mut Report) -> Option<Node> {
    if bytes.len() > MAX_BYTES {
        report.mistake(Place::default(), "", format!("larger than {MAX_BYTES} bytes"));
        return None;
    }
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let parsed = Tree.deserialize(&mut parser).and_then(|node| parser.end().map(|()| node));
    match parsed {
        Ok(node) => Some(node),
        Err(error) => {
            let place = Place { line: error.line(), column: error.column() };
            report.mistake(place, "", "not valid JSON");
            None
        }
    }
}

struct Tree;

impl<'de> DeserializeSeed<'de> for Tree {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

fn node(value: Value) -> Node {
    Node { place: Place::default(), value }
}

impl<'de> Visitor<'de> for Tree {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(node(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(node(Value::Number(value.to_string())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(node(Value::Number(value.to_string())))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        // The point keeps `1e2` from looking like the whole number it was not written as.
        Ok(node(Value::Number(format!("{value:?}"))))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(node(Value::Text(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(node(Value::Text(value)))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(node(Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Self)? {
            list.push(item);
        }
        Ok(node(Value::List(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = items.next_key::<String>()? {
            let node = items.next_value_seed(Self)?;
            map.push(Entry { place: Place::default(), key, node });
        }
        Ok(node(Value::Map(map)))
    }
}
