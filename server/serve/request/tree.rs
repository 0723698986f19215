//! A body as a tree with a bounded number of nodes, and the fields of its objects.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::item::items;
use super::{Item, K, Limits, MOST_K, Problem, Result, at, quoted};

/// The fields of an object. What is left over nobody asked for, and is no error at the top: clients of
/// OpenAI's interface send fields that mean nothing here.
pub(super) struct Fields(pub(super) Vec<(String, Node)>);

impl Fields {
    pub(super) fn parse(body: &[u8], limits: &Limits) -> Result<Self> {
        let invalid = |message: String| Problem {
            code: "invalid_json",
            param: None,
            message,
        };
        // Some editors and languages write a mark of the byte order in front of UTF-8, which has none.
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        let text = std::str::from_utf8(body).map_err(|error| {
            let what = match body {
                [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "the body is UTF-16, expected UTF-8".into(),
                _ => format!("the body is not UTF-8: {error}"),
            };
            invalid(what)
        })?;
        let room = Cell::new(limits.nodes());
        let trace = RefCell::new(Vec::new());
        let mut json = serde_json::Deserializer::from_str(text);
        let tree = Tree {
            room: &room,
            trace: &trace,
        };
        let node = tree.deserialize(&mut json);
        let node = node.and_then(|node| json.end().map(|()| node));
        match node {
            Ok(Node::Map(fields)) => Ok(Self(fields)),
            Ok(other) => Err(invalid(format!(
                "the body is {}, expected a JSON object",
                other.shown()
            ))),
            Err(error) if room.get() == 0 => Err(Problem {
                code: "too_many_values",
                param: None,
                message: format!(
                    "the body has more than {} values, expected at most {} items: {error}",
                    limits.nodes(),
                    limits.items
                ),
            }),
            Err(error) => {
                let path = shown_path(&trace.into_inner());
                if is_lone_surrogate(text, &error) {
                    let name = if path.is_empty() { "the body" } else { &path };
                    return Err(Problem {
                        message: format!(
                            "{name}: half of a character that UTF-16 writes as two (a lone surrogate such as \\ud83d), as a \
                             text that was cut in its middle has, expected whole characters: {error}"
                        ),
                        param: (!path.is_empty()).then_some(path),
                        ..invalid(String::new())
                    });
                }
                let place = if path.is_empty() {
                    path
                } else {
                    format!(", in {path}")
                };
                Err(invalid(format!("the body is not JSON: {error}{place}")))
            }
        }
    }

    /// Takes a field out; one that is there twice is an error.
    pub(super) fn take(&mut self, name: &str) -> Result<Option<Node>> {
        let mut found = None;
        while let Some(i) = self.0.iter().position(|(key, _)| key == name) {
            if found.is_some() {
                return Err(at(name, "given twice"));
            }
            found = Some(self.0.swap_remove(i).1);
        }
        Ok(found)
    }

    pub(super) fn string(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name)? {
            None | Some(Node::Null) => Ok(None),
            Some(Node::String(text)) => Ok(Some(text)),
            Some(other) => Err(at(name, format!("{}, expected a string", other.shown()))),
        }
    }

    pub(super) fn whole_number(&mut self, name: &str) -> Result<Option<u64>> {
        match self.take(name)? {
            None | Some(Node::Null) => Ok(None),
            Some(Node::Number(value)) if value >= 0.0 && value.fract() == 0.0 && value < 1e15 => {
                Ok(Some(value as u64))
            }
            Some(other) => Err(at(name, format!("{}, expected a whole number", other.shown()))),
        }
    }

    pub(super) fn k(&mut self) -> Result<usize> {
        let k = self.whole_number("k")?.unwrap_or(K);
        if !(1..=MOST_K).contains(&k) {
            return Err(at("k", format!("{k}, expected 1 to {MOST_K}")));
        }
        Ok(k as usize)
    }

    pub(super) fn input(&mut self, limits: &Limits) -> Result<Vec<Item>> {
        match self.take("input")? {
            None | Some(Node::Null) => Err(at("input", "missing, expected an item or a list of items")),
            Some(node) => items(node, "input", limits),
        }
    }
}

/// The path of a value, of its parts from the inside to the outside.
fn shown_path(parts: &[Part]) -> String {
    let mut path = String::new();
    for part in parts.iter().rev() {
        match part {
            Part::Index(i) => path.push_str(&format!("[{i}]")),
            Part::Name(name) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.extend(name.chars().take(40).flat_map(char::escape_debug));
            }
        }
    }
    path
}

/// Whether a text is wrong in an escape that is half of a character.
fn is_lone_surrogate(text: &str, error: &serde_json::Error) -> bool {
    let message = error.to_string();
    if message.contains("surrogate") {
        return true;
    }
    if !message.contains("hex escape") {
        return false;
    }
    // The escape that comes last before the place where another one was expected.
    let Some(line) = error
        .line()
        .checked_sub(1)
        .and_then(|line| text.split('\n').nth(line))
    else {
        return false;
    };
    let before = &line.as_bytes()[..error.column().min(line.len())];
    let before = &before[before.len().saturating_sub(12)..];
    before.windows(6).any(|six| {
        let digits = std::str::from_utf8(&six[2..]).ok();
        let unit = digits.and_then(|digits| u16::from_str_radix(digits, 16).ok());
        six.starts_with(b"\\u") && unit.is_some_and(|unit| (0xd800..0xe000).contains(&unit))
    })
}

/// A JSON value.
#[derive(Debug)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Number(f64),
    String(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    /// What it is, for messages.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Null => "null".into(),
            Self::Bool(_) => "true or false".into(),
            Self::Number(value) => format!("the number {value}"),
            Self::String(text) => format!("the string {}", quoted(text)),
            Self::List(_) => "a list".into(),
            Self::Map(_) => "an object".into(),
        }
    }
}

/// A step on the path to a value.
#[derive(Debug)]
enum Part {
    Name(String),
    Index(usize),
}

/// Reads a value with no more nodes than there is room for. Where that fails, the trace says in which value,
/// from the inside to the outside.
#[derive(Clone, Copy)]
struct Tree<'a> {
    room: &'a Cell<usize>,
    trace: &'a RefCell<Vec<Part>>,
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Node, D::Error> {
        match self.room.get().checked_sub(1) {
            Some(0) | None => {
                self.room.set(0);
                Err(D::Error::custom("too many values"))
            }
            Some(left) => {
                self.room.set(left);
                deserializer.deserialize_any(self)
            }
        }
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> std::result::Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Node, E> {
        Ok(Node::Number(value as f64))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Node, E> {
        Ok(Node::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Node, E> {
        Ok(Node::Number(value))
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Node, E> {
        Ok(Node::String(text.into()))
    }

    fn visit_string<E>(self, text: String) -> std::result::Result<Node, E> {
        Ok(Node::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Node, A::Error> {
        let mut nodes = Vec::new();
        loop {
            match list.next_element_seed(self) {
                Ok(Some(node)) => nodes.push(node),
                Ok(None) => return Ok(Node::List(nodes)),
                Err(error) => {
                    self.trace.borrow_mut().push(Part::Index(nodes.len()));
                    return Err(error);
                }
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            match map.next_value_seed(self) {
                Ok(value) => fields.push((name, value)),
                Err(error) => {
                    self.trace.borrow_mut().push(Part::Name(name));
                    return Err(error);
                }
            }
        }
        Ok(Node::Map(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{LIMITS, problem};
    use super::super::{Embed, Search};
    use super::*;

    #[test]
    fn json_errors_name_the_value() {
        let parse =
            |body: &[u8]| Embed::parse(body, &LIMITS).map_err(|problem| (problem.param, problem.message));
        // What editors write in front of UTF-8 means nothing.
        let marked = parse(b"\xef\xbb\xbf{\"input\": \"a\"}").unwrap();
        assert_eq!(marked.input, [Item::Text("a".into())]);
        assert!(parse(b"\xff\xfe{\0").unwrap_err().1.contains("UTF-16"));
        for (body, param) in [
            (r#"{"input": ["a", "\ud83d"]}"#, "input[1]"),
            (
                r#"{"input": ["a", {"text": "\ud83d and more"}]}"#,
                "input[1].text",
            ),
            (r#"{"input": "\udc00"}"#, "input"),
            (r#"{"input": ["\ud83d\u0041"]}"#, "input[0]"),
        ] {
            let (found, message) = parse(body.as_bytes()).unwrap_err();
            assert_eq!(found.as_deref(), Some(param), "{message}");
            assert!(
                message.starts_with(&format!("{param}: half of a character")),
                "{message}"
            );
        }
        for (body, part) in [
            (r#"{"input": ["a",]}"#, "trailing comma"),
            (r#"{"input": ["a" "b"]}"#, ", in input[1]"),
            (r#"{"input": ["\u12"]}"#, ", in input[0]"),
            (r#"{"input": ["a", {"text": nothing}]}"#, ", in input[1].text"),
        ] {
            let (found, message) = parse(body.as_bytes()).unwrap_err();
            assert!(
                found.is_none() && message.starts_with("the body is not JSON: "),
                "{message}"
            );
            assert!(message.contains(part), "{body}: {message}");
        }
    }

    #[test]
    fn deep_and_long_bodies_end_early() {
        let deep = format!("{{\"input\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(problem(&deep).0, "invalid_json");
        let long = format!("{{\"input\": [{}0]}}", "0,".repeat(100_000));
        assert_eq!(problem(&long).0, "too_many_values");
        let embedding = Search::parse(br#"{"input": {"embedding": [1, 2, 3]}}"#, &LIMITS).unwrap_err();
        assert_eq!(embedding.message, "input[0].embedding: 3 values, expected 2");
        assert!(Embed::parse(b"{\"input\": \"\xff\"}", &LIMITS).is_err());
    }
}
