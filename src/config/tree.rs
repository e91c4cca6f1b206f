//! A configuration text as a tree of nodes that know where they stand. Values keep their spelling:
//! only the reader of a key knows whether `4` is a number or a text.

use std::collections::{HashMap, HashSet};

use yaml_rust2::parser::{Event, Parser};
use yaml_rust2::scanner::{Marker, TScalarStyle};

use super::mistakes::{Place, Report};
use super::reader::join;

/// One value and its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// A truth value of JSON. YAML's are [`Value::Plain`] until a reader asks for one.
    Bool(bool),
    List(Vec<Node>),
    Map(Vec<Entry>),
    Null,
    /// A number of JSON, as written.
    Number(String),
    /// An unquoted YAML scalar.
    Plain(String),
    /// A quoted scalar, or a JSON string: text and nothing but text.
    Text(String),
}

/// One key of a mapping and its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) place: Place,
    pub(crate) key: String,
    pub(crate) node: Node,
}

// Real files nest six levels. Recursive readers of the tree stay far from the end of the stack.
const MAX_DEPTH: usize = 64;
// Bounds what aliases can expand to; a file of that many lines is a mistake of its own.
const MAX_WEIGHT: usize = 200_000;
const MAX_BYTES: usize = 4 << 20;

/// Reads the first document of a YAML text. An empty document is an empty mapping.
///
/// `None` means that the report now says why the text cannot be read.
pub(crate) fn parse_yaml(text: &str, report: &mut Report) -> Option<Node> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.len() > MAX_BYTES {
        report.mistake(Place::default(), "", format!("larger than {MAX_BYTES} bytes"));
        return None;
    }
    let mut builder = Builder { report, open: Vec::new(), anchors: HashMap::new(), weight: 0, root: None };
    let before = builder.report.mistakes.len();
    if let Err(Stop { place, message }) = builder.run(text) {
        builder.report.mistake(place, "", message);
    }
    let root = builder.root.take();
    if report.mistakes.len() > before {
        return None;
    }
    Some(root.unwrap_or(Node { place: Place { line: 1, column: 1 }, value: Value::Map(Vec::new()) }))
}

struct Stop {
    place: Place,
    message: String,
}

/// A collection that is not closed yet.
struct Open {
    place: Place,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, seen: HashSet<String>, key: Option<(Place, String)> },
}

struct Builder<'a> {
    report: &'a mut Report,
    open: Vec<Open>,
    /// Finished nodes by anchor, with their weight.
    anchors: HashMap<usize, (Node, usize)>,
    weight: usize,
    root: Option<Node>,
}

impl Builder<'_> {
    // The parser is pulled, not given a receiver: its own loop calls itself for every level, so a
    // deeply nested text would end the process.
    fn run(&mut self, text: &str) -> Result<(), Stop> {
        let mut parser = Parser::new_from_str(text);
        let mut documents = 0;
        loop {
            let (event, mark) = parser
                .next_token()
                .map_err(|error| Stop { place: place(error.marker()), message: syntax(error.info()) })?;
            let place = place(&mark);
            match event {
                Event::StreamEnd => return Ok(()),
                Event::DocumentStart => {
                    documents += 1;
                    if documents > 1 {
                        self.report.warning(place, "", "only the first document is read; this one is ignored");
                        return Ok(());
                    }
                }
                Event::Scalar(text, style, anchor, tag) => {
                    if let Some(tag) = tag {
                        let message = format!("tags such as `!{}` are not supported", tag.suffix);
                        return Err(Stop { place, message });
                    }
                    self.count(weight_of(&text), place)?;
                    self.scalar(text, style, anchor, place)?;
                }
                Event::SequenceStart(anchor, _) => {
                    self.open(Open { place, anchor, content: Content::List(Vec::new()) })?;
                }
                Event::MappingStart(anchor, _) => {
                    let content = Content::Map { entries: Vec::new(), seen: HashSet::new(), key: None };
                    self.open(Open { place, anchor, content })?;
                }
                Event::SequenceEnd | Event::MappingEnd => self.close(place)?,
                Event::Alias(anchor) => self.alias(anchor, place)?,
                Event::Nothing | Event::StreamStart | Event::DocumentEnd => {}
            }
        }
    }

    fn scalar(&mut self, text: String, style: TScalarStyle, anchor: usize, place: Place) -> Result<(), Stop> {
        if let Some(Open { content: Content::Map { seen, key: key @ None, .. }, .. }) = self.open.last_mut() {
            if !seen.insert(text.clone()) {
                self.report.mistake(place, &join("", &text), "this key is already there; each may be given once");
            }
            if style == TScalarStyle::Plain && text == "<<" {
                let message = "merge keys (`<<`) are not supported; write the keys out".to_owned();
                return Err(Stop { place, message });
            }
            *key = Some((place, text));
            return Ok(());
        }
        let value = match style {
            TScalarStyle::Plain if is_null(&text) => Value::Null,
            TScalarStyle::Plain => Value::Plain(text),
            _ => Value::Text(text),
        };
        let node = Node { place, value };
        let weight = if anchor == 0 { 0 } else { weight(&node) };
        self.add(node, anchor, weight, place)
    }

    fn open(&mut self, open: Open) -> Result<(), Stop> {
        let Open { place, .. } = open;
        self.count(1, place)?;
        if self.open.len() >= MAX_DEPTH {
            let message = format!("nested more than {MAX_DEPTH} levels deep");
            return Err(Stop { place, message });
        }
        if let Some(Open { content: Content::Map { key: None, .. }, .. }) = self.open.last() {
            return Err(Stop { place, message: "a key must be a plain word".to_owned() });
        }
        self.open.push(open);
        Ok(())
    }

    fn close(&mut self, place: Place) -> Result<(), Stop> {
        let Some(Open { place: start, anchor, content }) = self.open.pop() else {
            return Err(Stop { place, message: "a collection ends that never began".to_owned() });
        };
        let value = match content {
            Content::List(items) => Value::List(items),
            Content::Map { entries, .. } => Value::Map(entries),
        };
        let node = Node { place: start, value };
        let weight = if anchor == 0 { 0 } else { weight(&node) };
        self.add(node, anchor, weight, place)
    }

    fn alias(&mut self, anchor: usize, place: Place) -> Result<(), Stop> {
        let Some((node, weight)) = self.anchors.get(&anchor) else {
            // Unknown names fail in the parser; what is left is a node that contains itself.
            let message = "an alias inside the value it stands for".to_owned();
            return Err(Stop { place, message });
        };
        // The weight is booked before the copy is made.
        let weight = *weight;
        let node = (self.weight + weight <= MAX_WEIGHT).then(|| node.clone());
        self.count(weight, place)?;
        let Some(node) = node else { return Ok(()) };
        if self.open.len() + depth(&node) > MAX_DEPTH {
            let message = format!("nested more than {MAX_DEPTH} levels deep");
            return Err(Stop { place, message });
        }
        if let Some(Open { content: Content::Map { key: None, .. }, .. }) = self.open.last() {
            return Err(Stop { place, message: "a key must be a plain word".to_owned() });
        }
        self.add(Node { place, ..node }, 0, weight, place)
    }

    fn add(&mut self, node: Node, anchor: usize, weight: usize, place: Place) -> Result<(), Stop> {
        if anchor != 0 {
            // Kept copies count too: nested anchors would otherwise hold quadratic memory.
            self.count(weight, place)?;
            self.anchors.insert(anchor, (node.clone(), weight));
        }
        match self.open.last_mut().map(|open| &mut open.content) {
            None => self.root = Some(node),
            Some(Content::List(items)) => items.push(node),
            Some(Content::Map { entries, key, .. }) => match key.take() {
                Some((place, key)) => entries.push(Entry { place, key, node }),
                None => {
                    return Err(Stop { place, message: "a key must be a plain word".to_owned() });
                }
            },
        }
        Ok(())
    }

    fn count(&mut self, more: usize, place: Place) -> Result<(), Stop> {
        self.weight = self.weight.saturating_add(more);
        if self.weight > MAX_WEIGHT {
            let message = "more values than a configuration can have, aliases counted in full".to_owned();
            return Err(Stop { place, message });
        }
        Ok(())
    }
}

/// One for each value, and more for long texts: an alias can repeat both.
fn weight(node: &Node) -> usize {
    match &node.value {
        Value::List(items) => 1 + items.iter().map(weight).sum::<usize>(),
        Value::Map(entries) => {
            let entry = |entry: &Entry| weight_of(&entry.key) + weight(&entry.node);
            1 + entries.iter().map(entry).sum::<usize>()
        }
        Value::Plain(text) | Value::Text(text) | Value::Number(text) => weight_of(text),
        Value::Bool(_) | Value::Null => 1,
    }
}

fn weight_of(text: &str) -> usize {
    1 + text.len() / 64
}

fn depth(node: &Node) -> usize {
    match &node.value {
        Value::List(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Map(entries) => 1 + entries.iter().map(|entry| depth(&entry.node)).max().unwrap_or(0),
        _ => 0,
    }
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

fn place(mark: &Marker) -> Place {
    Place { line: mark.line(), column: mark.col() + 1 }
}

fn syntax(info: &str) -> String {
    if info.contains("alias") || info.contains("anchor") {
        return format!("{info}; a `*` must be quoted: \"*.example.com\"");
    }
    if info.contains("tab") {
        return format!("{info}; YAML is indented with blanks");
    }
    info.to_owned()
}
