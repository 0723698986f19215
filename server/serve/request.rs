//! The bodies of requests: bytes in, checked values or a [`Problem`] out.
//!
//! A body becomes a tree with a bounded number of nodes first, so that its memory follows from its length and the
//! limits, and then what an endpoint takes, with the path of each value in the messages: `input[2].image`.

use std::cell::{Cell, RefCell};
use std::fmt;

use ernie_vil::Error;
use ernie_vil::classify::{PLACE, TEMPLATES};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// What is wrong with a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// A short stable word, for programs.
    pub code: &'static str,
    /// The path of the value that is wrong.
    pub param: Option<String>,
    pub message: String,
}

type Result<T> = std::result::Result<T, Problem>;

/// How much a body may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Items of one request.
    pub items: usize,
    /// Bytes of a text.
    pub text: usize,
    /// Captions that a classification makes of its labels and templates.
    pub prompts: usize,
    /// Values of an embedding that is given as numbers.
    pub dimensions: usize,
}

impl Limits {
    /// Refuses a text of more bytes than there may be. `what` says which text it is, where the path does not.
    fn check_text(&self, bytes: usize, path: &str, what: &str) -> Result<()> {
        if bytes <= self.text {
            return Ok(());
        }
        Err(Problem {
            code: "text_too_long",
            ..at(
                path,
                format!("{bytes} bytes{what}, expected at most {} (--max-text)", self.text),
            )
        })
    }

    /// Nodes of a body's tree: room for an embedding in each item, and some for what surrounds them.
    fn nodes(&self) -> usize {
        self.items
            .saturating_mul(self.dimensions + 16)
            .saturating_add(1024)
    }
}

/// What is to be embedded, or is an embedding already.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    Text(String),
    /// An encoded image in base64.
    Image(String),
    Embedding(Vec<f32>),
}

/// How embeddings are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As JSON numbers.
    Float,
    /// As base64 of little-endian float32.
    Base64,
}

/// `POST /v1/embeddings`
#[derive(Debug, PartialEq)]
pub struct Embed {
    pub input: Vec<Item>,
    pub model: Option<String>,
    pub encoding: Encoding,
    pub dimensions: Option<u64>,
}

/// `POST /v1/search`
#[derive(Debug, PartialEq)]
pub struct Search {
    pub input: Vec<Item>,
    pub model: Option<String>,
    pub k: usize,
}

/// `POST /v1/classify`
#[derive(Debug, PartialEq)]
pub struct Classify {
    pub input: Vec<Item>,
    pub model: Option<String>,
    /// What to choose from; without it what the index holds.
    pub labels: Option<Vec<Item>>,
    pub k: usize,
    /// Captions with `{}` in the label's place; a label's vector is their mean.
    pub templates: Vec<String>,
    /// By what scores are divided before the softmax; without it by what the model was trained with.
    pub temperature: Option<f64>,
}

/// `POST /v1/index`
#[derive(Debug, PartialEq)]
pub struct Add {
    pub ids: Vec<String>,
    pub items: Vec<Item>,
    pub model: Option<String>,
}

/// `DELETE /v1/index`
#[derive(Debug, PartialEq)]
pub struct Remove {
    pub ids: Vec<String>,
}

/// Bytes of an id, at most: every hit of every query repeats one.
const LONGEST_ID: usize = 1024;
/// Results of a query, where it does not say how many.
const K: u64 = 10;
/// Results of a query, at most.
const MOST_K: u64 = 1000;
/// Templates of a classification, at most: each of them is as much work as the labels alone.
const MOST_TEMPLATES: usize = 64;

impl Embed {
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self> {
        let mut fields = Fields::parse(body, limits)?;
        let input = fields.input(limits)?;
        for (i, item) in input.iter().enumerate() {
            if let Item::Embedding(_) = item {
                return Err(at(
                    format!("input[{i}]"),
                    "an embedding, expected {\"text\": ...} or {\"image\": ...}",
                ));
            }
        }
        let encoding = match fields.string("encoding_format")?.as_deref() {
            None | Some("float") => Encoding::Float,
            Some("base64") => Encoding::Base64,
            Some(other) => {
                let message = format!("{}, expected \"float\" or \"base64\"", quoted(other));
                return Err(at("encoding_format", message));
            }
        };
        Ok(Self {
            input,
            model: fields.string("model")?,
            encoding,
            dimensions: fields.whole_number("dimensions")?,
        })
    }
}

impl Search {
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self> {
        let mut fields = Fields::parse(body, limits)?;
        Ok(Self {
            input: fields.input(limits)?,
            model: fields.string("model")?,
            k: fields.k()?,
        })
    }
}

impl Classify {
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self> {
        let mut fields = Fields::parse(body, limits)?;
        let labels = match fields.take("labels")? {
            None | Some(Node::Null) => None,
            Some(node) => Some(items(node, "labels", limits)?),
        };
        let temperature = match fields.take("temperature")? {
            None | Some(Node::Null) => None,
            Some(Node::Number(value)) if (1e-4..=1e4).contains(&value) => Some(value),
            Some(other) => {
                let message = format!("{}, expected a number from 0.0001 to 10000", other.shown());
                return Err(at("temperature", message));
            }
        };
        let templates = templates(&mut fields)?;
        if let Some((name, _)) = &templates {
            let is_text = |label: &Item| matches!(label, Item::Text(_));
            if !labels.as_ref().is_some_and(|labels| labels.iter().all(is_text)) {
                return Err(at(
                    *name,
                    "given without texts as labels, expected texts in `labels`",
                ));
            }
        }
        let templates = templates.map_or_else(|| vec![PLACE.to_owned()], |(_, templates)| templates);
        let count = labels.as_ref().map_or(0, Vec::len);
        let prompts = count.saturating_mul(templates.len());
        if prompts > limits.prompts {
            return Err(Problem {
                code: "too_many_prompts",
                ..at(
                    "labels",
                    format!(
                        "{count} labels in {} templates are {prompts} captions, expected at most {} (--max-prompts)",
                        templates.len(),
                        limits.prompts
                    ),
                )
            });
        }
        check_filled(&templates, labels.as_deref().unwrap_or_default(), limits)?;
        Ok(Self {
            input: fields.input(limits)?,
            model: fields.string("model")?,
            labels,
            k: fields.k()?,
            templates,
            temperature,
        })
    }
}

/// Refuses labels that become too long in a template. Nothing is put together for that.
fn check_filled(templates: &[String], labels: &[Item], limits: &Limits) -> Result<()> {
    for template in templates {
        let places = template.matches(PLACE).count();
        let around = template.len() - places * PLACE.len();
        for (i, label) in labels.iter().enumerate() {
            if let Item::Text(label) = label {
                let bytes = places.saturating_mul(label.len()).saturating_add(around);
                if bytes > limits.text {
                    let what = format!(" in the template {}", quoted(template));
                    limits.check_text(bytes, &format!("labels[{i}]"), &what)?;
                }
            }
        }
    }
    Ok(())
}

/// The templates of a request, and the field that has them: `template`, `templates` or `ensemble`.
fn templates(fields: &mut Fields) -> Result<Option<(&'static str, Vec<String>)>> {
    let mut found = Vec::new();
    if let Some(template) = fields.string("template")? {
        found.push(("template", vec![template]));
    }
    match fields.take("templates")? {
        None | Some(Node::Null) => {}
        Some(Node::List(list)) if (1..=MOST_TEMPLATES).contains(&list.len()) => {
            let template = |(i, node)| match node {
                Node::String(text) => Ok(text),
                other => Err(at(
                    format!("templates[{i}]"),
                    format!("{}, expected a string", other.shown()),
                )),
            };
            found.push((
                "templates",
                list.into_iter()
                    .enumerate()
                    .map(template)
                    .collect::<Result<_>>()?,
            ));
        }
        Some(other) => {
            let message = format!(
                "{}, expected a list of 1 to {MOST_TEMPLATES} strings",
                other.shown()
            );
            return Err(at("templates", message));
        }
    }
    match fields.take("ensemble")? {
        None | Some(Node::Null | Node::Bool(false)) => {}
        Some(Node::Bool(true)) => found.push(("ensemble", TEMPLATES.map(str::to_owned).to_vec())),
        Some(other) => {
            return Err(at(
                "ensemble",
                format!("{}, expected true or false", other.shown()),
            ));
        }
    }
    if let [_, (name, _), ..] = found[..] {
        return Err(at(
            name,
            "given beside another one, expected `template`, `templates` or `ensemble` alone",
        ));
    }
    let templates = found.pop();
    if let Some((name, list)) = &templates
        && let Some(template) = list.iter().find(|template| !template.contains(PLACE))
    {
        let message = format!("{} has no {PLACE} where the label goes", quoted(template));
        return Err(at(*name, message));
    }
    Ok(templates)
}

impl Add {
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self> {
        let mut fields = Fields::parse(body, limits)?;
        let list = list(fields.take("items")?, "items", limits)?;
        let (mut ids, mut items) = (Vec::new(), Vec::new());
        for (i, node) in list.into_iter().enumerate() {
            let path = format!("items[{i}]");
            let Node::Map(map) = node else {
                let message = format!(
                    "{}, expected an object with an id and text, image or embedding",
                    node.shown()
                );
                return Err(at(path, message));
            };
            let mut map = Fields(map);
            let id = format!("{path}.id");
            match map.take("id").map_err(|problem| within(problem, &path))? {
                Some(Node::String(text)) if text.len() > LONGEST_ID => {
                    let message = format!("{} bytes, expected at most {LONGEST_ID}", text.len());
                    return Err(at(id, message));
                }
                Some(Node::String(text)) if !text.is_empty() => ids.push(text),
                Some(other) => {
                    return Err(at(
                        id,
                        format!("{}, expected a string that is not empty", other.shown()),
                    ));
                }
                None => return Err(at(id, "missing, expected a string that is not empty")),
            }
            items.push(item(Node::Map(map.0), &path, limits)?);
        }
        Ok(Self {
            ids,
            items,
            model: fields.string("model")?,
        })
    }
}

impl Remove {
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self> {
        let mut fields = Fields::parse(body, limits)?;
        let list = list(fields.take("ids")?, "ids", limits)?;
        let id = |(i, node)| match node {
            Node::String(id) => Ok(id),
            other => Err(at(
                format!("ids[{i}]"),
                format!("{}, expected a string", other.shown()),
            )),
        };
        Ok(Self {
            ids: list.into_iter().enumerate().map(id).collect::<Result<_>>()?,
        })
    }
}

fn at(param: impl Into<String>, message: impl fmt::Display) -> Problem {
    let param = param.into();
    Problem {
        code: "invalid_value",
        message: format!("{param}: {message}"),
        param: Some(param),
    }
}

fn within(problem: Problem, path: &str) -> Problem {
    let param = problem.param.map(|param| format!("{path}.{param}"));
    Problem {
        message: format!("{path}.{}", problem.message),
        param,
        ..problem
    }
}

/// The beginning of a text, in quotes.
fn quoted(text: &str) -> String {
    let start: String = text.chars().take(40).collect();
    let more = if start.len() < text.len() { "…" } else { "" };
    format!("\"{}{more}\"", start.escape_debug())
}

/// The fields of an object. What is left over nobody asked for, and is no error at the top: clients of OpenAI's
/// interface send fields that mean nothing here.
struct Fields(Vec<(String, Node)>);

impl Fields {
    fn parse(body: &[u8], limits: &Limits) -> Result<Self> {
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
    fn take(&mut self, name: &str) -> Result<Option<Node>> {
        let mut found = None;
        while let Some(i) = self.0.iter().position(|(key, _)| key == name) {
            if found.is_some() {
                return Err(at(name, "given twice"));
            }
            found = Some(self.0.swap_remove(i).1);
        }
        Ok(found)
    }

    fn string(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name)? {
            None | Some(Node::Null) => Ok(None),
            Some(Node::String(text)) => Ok(Some(text)),
            Some(other) => Err(at(name, format!("{}, expected a string", other.shown()))),
        }
    }

    fn whole_number(&mut self, name: &str) -> Result<Option<u64>> {
        match self.take(name)? {
            None | Some(Node::Null) => Ok(None),
            Some(Node::Number(value)) if value >= 0.0 && value.fract() == 0.0 && value < 1e15 => {
                Ok(Some(value as u64))
            }
            Some(other) => Err(at(name, format!("{}, expected a whole number", other.shown()))),
        }
    }

    fn k(&mut self) -> Result<usize> {
        let k = self.whole_number("k")?.unwrap_or(K);
        if !(1..=MOST_K).contains(&k) {
            return Err(at("k", format!("{k}, expected 1 to {MOST_K}")));
        }
        Ok(k as usize)
    }

    fn input(&mut self, limits: &Limits) -> Result<Vec<Item>> {
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

/// A list that is neither empty nor too long.
fn list(node: Option<Node>, path: &str, limits: &Limits) -> Result<Vec<Node>> {
    let problem = match node {
        Some(Node::List(list)) if list.is_empty() => "an empty list, expected at least one item".to_owned(),
        Some(Node::List(list)) if list.len() > limits.items => {
            return Err(Problem {
                code: "too_many_items",
                ..at(
                    path,
                    format!(
                        "{} items, expected at most {} (--max-items)",
                        list.len(),
                        limits.items
                    ),
                )
            });
        }
        Some(Node::List(list)) => return Ok(list),
        Some(other) => format!("{}, expected a list", other.shown()),
        None => "missing, expected a list".into(),
    };
    Err(at(path, problem))
}

/// One item, or a list of them.
fn items(node: Node, path: &str, limits: &Limits) -> Result<Vec<Item>> {
    match node {
        node @ Node::List(_) => {
            let list = list(Some(node), path, limits)?;
            if let Some(Node::Number(_) | Node::List(_)) = list.first() {
                return Err(at(
                    path,
                    "token ids, expected texts: this model has another vocabulary than OpenAI's",
                ));
            }
            let item = |(i, node)| item(node, &format!("{path}[{i}]"), limits);
            list.into_iter().enumerate().map(item).collect()
        }
        node => Ok(vec![item(node, &format!("{path}[0]"), limits)?]),
    }
}

const EXPECTED: &str = "expected a string, {\"text\": ...}, {\"image\": ...}, {\"embedding\": ...}, or a part of a message as \
                        OpenAI's chat has them";

/// A string is a caption or a data URI; an object says which it is.
fn item(node: Node, path: &str, limits: &Limits) -> Result<Item> {
    let map = match node {
        Node::String(text) if is_data_uri(&text) => return Ok(Item::Image(data_uri(text, path)?)),
        Node::String(text) => {
            refuse_address(&text, path)?;
            refuse_file(&text, path)?;
            limits.check_text(text.len(), path, "")?;
            return Ok(Item::Text(text));
        }
        Node::Map(map) => map,
        other => return Err(at(path, format!("{}, {EXPECTED}", other.shown()))),
    };
    if map.iter().any(|(name, _)| name == "type" || name == "image_url") {
        return part(Fields(map), path, limits);
    }
    if map.len() != 1 {
        let names: Vec<String> = map.iter().take(8).map(|(name, _)| quoted(name)).collect();
        let more = if map.len() > names.len() { ", …" } else { "" };
        let message = match map.is_empty() {
            true => format!("an empty object, {EXPECTED}"),
            false => format!(
                "an object with another number of fields than one ({}{more}), {EXPECTED}",
                names.join(", ")
            ),
        };
        return Err(at(path, message));
    }
    let (name, value) = map.into_iter().next().unwrap_or((String::new(), Node::Null));
    let inner = format!("{path}.{name}");
    match (name.as_str(), value) {
        ("text", Node::String(text)) => {
            limits.check_text(text.len(), &inner, "")?;
            Ok(Item::Text(text))
        }
        ("image", Node::String(text)) => image(text, &inner),
        ("embedding", Node::List(list)) if list.len() <= limits.dimensions => {
            let value = |(i, node)| match node {
                Node::Number(value) => Ok(value as f32),
                other => Err(at(
                    format!("{inner}[{i}]"),
                    format!("{}, expected a number", other.shown()),
                )),
            };
            Ok(Item::Embedding(
                list.into_iter().enumerate().map(value).collect::<Result<_>>()?,
            ))
        }
        ("embedding", Node::List(list)) => {
            let message = format!("{} values, expected {}", list.len(), limits.dimensions);
            Err(at(inner, message))
        }
        ("text" | "image", value) => Err(at(inner, format!("{}, expected a string", value.shown()))),
        ("embedding", value) => Err(at(
            inner,
            format!("{}, expected a list of numbers", value.shown()),
        )),
        (name, _) => Err(at(path, format!("a field {}, {EXPECTED}", quoted(name)))),
    }
}

/// A part of a message as OpenAI's chat has them: `{"type": "text", "text": ...}`, `{"type": "image_url",
/// "image_url": {"url": ...}}`, and the same of its newer interface, `input_text` and `input_image`.
fn part(mut fields: Fields, path: &str, limits: &Limits) -> Result<Item> {
    let inner = |problem: Problem| within(problem, path);
    let kind = fields.string("type").map_err(inner)?;
    let own = match kind.as_deref() {
        Some("text" | "input_text") => "text",
        _ => "image_url",
    };
    let contents = ["text", "image", "embedding", "image_url"];
    // What surrounds the content, such as how much of a picture is to be seen, means nothing here.
    if let Some((name, _)) =
        (fields.0.iter()).find(|(name, _)| name != own && contents.contains(&name.as_str()))
    {
        let message =
            format!("given beside `{own}`, expected one of them: each item becomes an embedding of its own");
        return Err(at(format!("{path}.{name}"), message));
    }
    match kind.as_deref() {
        Some("text" | "input_text") => {
            let found = fields.take("text").map_err(inner)?;
            let place = format!("{path}.text");
            match found {
                Some(Node::String(text)) => {
                    limits.check_text(text.len(), &place, "")?;
                    Ok(Item::Text(text))
                }
                Some(other) => Err(at(place, format!("{}, expected a string", other.shown()))),
                None => Err(at(place, "missing, expected a string")),
            }
        }
        None | Some("image_url" | "input_image") => {
            let place = format!("{path}.image_url");
            match fields.take("image_url").map_err(inner)? {
                Some(Node::String(text)) => image(text, &place),
                Some(Node::Map(map)) => {
                    let url = Fields(map)
                        .take("url")
                        .map_err(|problem| within(problem, &place))?;
                    let place = format!("{place}.url");
                    match url {
                        Some(Node::String(text)) => image(text, &place),
                        Some(other) => Err(at(place, format!("{}, expected a data URI", other.shown()))),
                        None => Err(at(place, "missing, expected a data URI")),
                    }
                }
                Some(other) => Err(at(
                    place,
                    format!(
                        "{}, expected {{\"url\": \"data:image/...;base64,...\"}}",
                        other.shown()
                    ),
                )),
                None => Err(at(
                    place,
                    "missing, expected {\"url\": \"data:image/...;base64,...\"}",
                )),
            }
        }
        Some(other) => Err(at(
            format!("{path}.type"),
            format!("{}, expected \"text\" or \"image_url\"", quoted(other)),
        )),
    }
}

/// An image in base64 or as a data URI.
fn image(text: String, path: &str) -> Result<Item> {
    if is_data_uri(&text) {
        return Ok(Item::Image(data_uri(text, path)?));
    }
    refuse_address(&text, path)?;
    Ok(Item::Image(text))
}

fn has_scheme(text: &str, scheme: &str) -> bool {
    text.get(..scheme.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
}

/// A text without the blanks in front of it, a mark of the byte order among them.
fn trimmed(text: &str) -> &str {
    text.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}')
}

fn is_data_uri(text: &str) -> bool {
    has_scheme(trimmed(text), "data:")
}

/// Whether a text begins as an address does: with any scheme and `//`, or with one whose addresses have none.
fn is_address(text: &str) -> bool {
    const OTHERS: [&str; 12] = [
        "http:", "https:", "file:", "ftp:", "blob:", "s3:", "gs:", "oss:", "cos:", "bos:", "ipfs:", "cid:",
    ];
    let text = trimmed(text);
    let end = text.char_indices().nth(48).map_or(text.len(), |(end, _)| end);
    let is_scheme = |scheme: &str| {
        scheme.len() <= 40
            && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'-' | b'.'))
    };
    OTHERS.iter().any(|scheme| has_scheme(text, scheme))
        || text[..end]
            .split_once("://")
            .is_some_and(|(scheme, _)| is_scheme(scheme))
}

/// Images are never fetched: a server that opens addresses for its clients opens those inside its own network too.
fn refuse_address(text: &str, path: &str) -> Result<()> {
    if is_address(text) {
        return Err(Problem {
            code: "remote_image",
            ..at(
                path,
                format!(
                    "{} is an address, and nothing is fetched; expected the image itself as a data URI or base64, \
                     or {{\"text\": ...}} where it is a caption",
                    quoted(text)
                ),
            )
        });
    }
    Ok(())
}

/// What stands for an image without being one would be embedded as a caption, and nobody would see it.
fn refuse_file(text: &str, path: &str) -> Result<()> {
    let what = if is_file_name(text) && !text.contains(char::is_whitespace) {
        "is the name of a file, and no file is read"
    } else if is_bytes_literal(text) {
        "is Python's way of showing bytes"
    } else if is_bare_base64(text) {
        "is an image in base64, but says so nowhere"
    } else {
        return Ok(());
    };
    Err(at(
        path,
        format!(
            "{} {what}; expected {{\"image\": ...}} with the image in base64, or {{\"text\": ...}} where it is a caption",
            quoted(text)
        ),
    ))
}

/// Whether a text is no more than a name that ends as images' names do.
fn is_file_name(text: &str) -> bool {
    const ENDS: [&str; 12] = [
        "jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "heic", "avif", "ppm", "jfif",
    ];
    let is_end = |end: &str| ENDS.iter().any(|known| known.eq_ignore_ascii_case(end));
    text.len() <= 4096
        && text
            .rsplit_once('.')
            .is_some_and(|(name, end)| !name.is_empty() && is_end(end))
}

/// Whether a text is what Python's `str` makes of bytes: `b'...'`.
fn is_bytes_literal(text: &str) -> bool {
    let text = trimmed(text).trim_end();
    ['\'', '"'].iter().any(|&quote| {
        let inner = text
            .strip_prefix(['b', 'B'])
            .and_then(|rest| rest.strip_prefix(quote));
        inner.is_some_and(|inner| inner.len() > 16 && inner.ends_with(quote))
    })
}

/// Whether a text is the base64 of a file that begins as images do.
fn is_bare_base64(text: &str) -> bool {
    // JPEG, PNG, GIF, WebP, TIFF in both orders of bytes, BMP, PNM.
    const STARTS: [&str; 11] = [
        "/9j/",
        "iVBORw0KGgo",
        "R0lGOD",
        "UklGR",
        "SUkqA",
        "TU0AK",
        "Qk",
        "UDEK",
        "UDQK",
        "UDUK",
        "UDYK",
    ];
    let text = trimmed(text);
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=-_\r\n".contains(&byte);
    text.len() >= 64
        && STARTS.iter().any(|start| text.starts_with(start))
        && text.trim_end().bytes().all(is_base64)
}

/// Checks that a text is base64 of the alphabet that everybody writes. The library's decoder leaves other
/// characters out as Python's does, which makes another file of it, and an error of that file.
pub fn check_base64(text: &str) -> ernie_vil::Result<()> {
    let wrong = |message: String| Err(Error::Base64(message));
    let is_plain = |byte: u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=') || byte.is_ascii_whitespace()
    };
    let Some(at) = text.bytes().position(|byte| !is_plain(byte)) else {
        return Ok(());
    };
    let found = char::from(text.as_bytes()[at]);
    if is_bytes_literal(text) {
        return wrong(
            "the text is b'...', as Python shows bytes, expected the base64 alone: base64.b64encode(data).decode()".into(),
        );
    }
    if is_path(text) {
        return wrong(format!(
            "{} is the name of a file, and no file is read, expected the image itself in base64",
            quoted(text)
        ));
    }
    if !found.is_ascii() {
        // The decoder says where it is.
        return Ok(());
    }
    wrong(match found {
        '-' | '_' => format!(
            "byte {at} is '{found}', which only the URL-safe alphabet has, expected the standard one with '+' and '/' \
             (base64.b64encode, not urlsafe_b64encode)"
        ),
        '%' => format!("byte {at} is '%', as in an address, expected base64 without percent-encoding"),
        _ => format!("byte {at} is {found:?}, expected base64: A-Z, a-z, 0-9, '+', '/' and '='"),
    })
}

/// Whether a text that is no base64 is the path of a file.
fn is_path(text: &str) -> bool {
    let begins = ["./", "../", "~/", "\\\\"]
        .iter()
        .any(|start| text.starts_with(start));
    let drive = text
        .as_bytes()
        .get(1..3)
        .is_some_and(|two| matches!(two, b":\\" | b":/"));
    text.len() <= 4096 && (begins || drive || is_file_name(text))
}

/// The base64 of `data:image/jpeg;base64,...`.
fn data_uri(mut text: String, path: &str) -> Result<String> {
    let wrong = |found: &str| {
        let message = format!(
            "{}, expected data:image/...;base64,..., or {{\"text\": ...}} where it is a caption",
            quoted(found)
        );
        at(path, message)
    };
    let start = text.len() - trimmed(&text).len();
    // Only the head is looked at; what follows may be megabytes.
    let head = &text.as_bytes()[start..];
    let Some(comma) = head.iter().take(256).position(|&byte| byte == b',') else {
        return Err(wrong(&text));
    };
    let head = text[start..start + comma].to_ascii_lowercase();
    let is_image = head.starts_with("data:image/") || head.starts_with("data:application/octet-stream");
    if !is_image || !head.ends_with(";base64") {
        return Err(wrong(&text));
    }
    Ok(text.split_off(start + comma + 1))
}

/// A JSON value.
#[derive(Debug)]
enum Node {
    Null,
    Bool(bool),
    Number(f64),
    String(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    /// What it is, for messages.
    fn shown(&self) -> String {
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
    use serde_json::json;

    use super::*;

    const LIMITS: Limits = Limits {
        items: 3,
        text: 20,
        prompts: 5,
        dimensions: 2,
    };

    fn problem(body: &str) -> (&'static str, String) {
        let problem = Embed::parse(body.as_bytes(), &LIMITS).unwrap_err();
        (problem.code, problem.message)
    }

    #[test]
    fn takes_every_form_of_input() {
        let parse = |body: &str| Embed::parse(body.as_bytes(), &LIMITS).unwrap().input;
        assert_eq!(parse(r#"{"input": "猫"}"#), [Item::Text("猫".into())]);
        assert_eq!(
            parse(r#"{"input": {"image": "QUJD"}}"#),
            [Item::Image("QUJD".into())]
        );
        assert_eq!(
            parse(
                r#"{"user": "u", "input": ["a", {"text": "http://b"}, "DATA:image/png;base64,QUJD"], "model": null}"#
            ),
            [
                Item::Text("a".into()),
                Item::Text("http://b".into()),
                Item::Image("QUJD".into())
            ]
        );
        let search = Search::parse(br#"{"input": {"embedding": [0.5, -1]}, "k": 3}"#, &LIMITS).unwrap();
        assert_eq!(
            (search.k, search.input),
            (3, vec![Item::Embedding(vec![0.5, -1.0])])
        );
        let add = Add::parse(br#"{"items": [{"text": "a", "id": "1"}]}"#, &LIMITS).unwrap();
        assert_eq!(
            (add.ids, add.items),
            (vec!["1".to_owned()], vec![Item::Text("a".into())])
        );
    }

    #[test]
    fn says_which_value_is_wrong() {
        let cases = [
            ("[]", "invalid_json", "the body is a list, expected a JSON object"),
            ("{", "invalid_json", "the body is not JSON: EOF"),
            (
                r#"{"input": NaN}"#,
                "invalid_json",
                "the body is not JSON: expected value",
            ),
            (
                r#"{"input": 1e999}"#,
                "invalid_json",
                "the body is not JSON: number out of range",
            ),
            ("{}", "invalid_value", "input: missing"),
            (r#"{"input": []}"#, "invalid_value", "input: an empty list"),
            (
                r#"{"input": ["a","b","c","d"]}"#,
                "too_many_items",
                "input: 4 items, expected at most 3",
            ),
            (r#"{"input": [1, 2]}"#, "invalid_value", "input: token ids"),
            (
                r#"{"input": ["a", null]}"#,
                "invalid_value",
                "input[1]: null, expected",
            ),
            (
                r#"{"input": ["a", {"text": 7}]}"#,
                "invalid_value",
                "input[1].text: the number 7, expected a string",
            ),
            (
                r#"{"input": [{"text": "a", "image": "b"}]}"#,
                "invalid_value",
                "input[0]: an object with another number",
            ),
            (
                r#"{"input": [{"audio": "b"}]}"#,
                "invalid_value",
                "input[0]: a field \"audio\"",
            ),
            (
                r#"{"input": {"embedding": [1]}}"#,
                "invalid_value",
                "input[0]: an embedding",
            ),
            (
                r#"{"input": ["a", "一二三四五六七"]}"#,
                "text_too_long",
                "input[1]: 21 bytes, expected at most 20 (--max-text)",
            ),
            (
                r#"{"input": {"text": "0123456789 0123456789"}}"#,
                "text_too_long",
                "input[0].text: 21 bytes, expected at most 20 (--max-text)",
            ),
            (
                r#"{"input": "HTTPS://x/y.jpg"}"#,
                "remote_image",
                "input[0]: \"HTTPS://x/y.jpg\" is an address",
            ),
            (
                r#"{"input": {"image": "file:///etc/passwd"}}"#,
                "remote_image",
                "input[0].image: \"file:",
            ),
            (
                r#"{"input": "data:text/plain,abc"}"#,
                "invalid_value",
                "input[0]: \"data:text/plain,abc\", expected data:image",
            ),
            (
                r#"{"input": "a", "input": "b"}"#,
                "invalid_value",
                "input: given twice",
            ),
            (
                r#"{"input": "a", "encoding_format": "hex"}"#,
                "invalid_value",
                "encoding_format: \"hex\", expected",
            ),
            (
                r#"{"input": "a", "dimensions": 1.5}"#,
                "invalid_value",
                "dimensions: the number 1.5, expected a whole",
            ),
        ];
        for (body, code, start) in cases {
            let (found, message) = problem(body);
            assert_eq!(found, code, "{body}: {message}");
            assert!(message.starts_with(start), "{body}: {message}");
        }
    }

    #[test]
    fn labels_are_measured_in_their_templates() {
        let parse = |templates: &str| {
            let body = format!("{{\"input\": \"a\", \"labels\": [\"a\", \"0123456\"], {templates}}}");
            Classify::parse(body.as_bytes(), &LIMITS).map_err(|problem| (problem.code, problem.message))
        };
        // 7 and 13, 14 and 6 bytes.
        assert!(parse(r#""templates": ["{}0123456789012", "{}012345{}"]"#).is_ok());
        let (code, message) = parse(r#""templates": ["{}", "{}0123456{}"]"#).unwrap_err();
        assert_eq!(code, "text_too_long");
        assert_eq!(
            message,
            "labels[1]: 21 bytes in the template \"{}0123456{}\", expected at most 20 (--max-text)"
        );
        let places = "{}".repeat(1000);
        assert_eq!(
            parse(&format!("\"template\": \"{places}\"")).unwrap_err().0,
            "text_too_long"
        );
        // And a label without a template.
        let alone = Classify::parse(
            br#"{"input": "a", "labels": ["b", "0123456789 0123456789"]}"#,
            &LIMITS,
        );
        assert_eq!(
            alone.unwrap_err().message,
            "labels[1]: 21 bytes, expected at most 20 (--max-text)"
        );
    }

    #[test]
    fn what_stands_for_an_image_is_no_caption() {
        let limits = Limits { text: 4096, ..LIMITS };
        let parse = |item: serde_json::Value| {
            let body = json!({ "input": [item] }).to_string();
            let parsed = Embed::parse(body.as_bytes(), &limits);
            parsed.map(|mut body| body.input.remove(0)).map_err(|problem| {
                assert!(problem.message.starts_with("input[0]"), "{}", problem.message);
                (problem.code, problem.message)
            })
        };
        let image = || Ok(Item::Image("QUJD".into()));
        let uri = "data:image/png;base64,QUJD";
        for item in [
            json!(uri),
            json!(format!(" \n\t{uri}")),
            json!(format!("\u{feff}{uri}")),
            json!(format!("\u{3000}DATA:image/JPEG;charset=x;BASE64,QUJD")),
            json!({ "image": format!(" {uri}") }),
            json!({"type": "image_url", "image_url": {"url": uri}}),
            json!({"type": "image_url", "image_url": {"url": uri, "detail": "low"}}),
            json!({"type": "image_url", "image_url": uri}),
            json!({"image_url": {"url": uri}}),
            json!({"type": "input_image", "image_url": uri, "detail": "auto"}),
            json!({"type": "image_url", "image_url": {"url": "QUJD"}}),
        ] {
            assert_eq!(parse(item.clone()), image(), "{item}");
        }
        for kind in ["text", "input_text"] {
            let part = json!({"type": kind, "text": "https://a", "cache_control": {}});
            assert_eq!(parse(part), Ok(Item::Text("https://a".into())));
        }
        // Captions that look a little like something else.
        let long = format!("Qk {}", "a".repeat(100));
        for text in [
            "note: a cat",
            "1://",
            "b'cat'",
            "猫:狗",
            "a.b",
            ".jpg",
            "see cat.jpg",
            "C: 狗",
            "",
            &long,
        ] {
            assert_eq!(parse(json!(text)), Ok(Item::Text(text.into())), "{text}");
        }
        let base64 = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==";
        let cases = [
            (json!("blob:https://a/1"), "remote_image", "is an address"),
            (json!(" s3://bucket/cat"), "remote_image", "is an address"),
            (json!("S3:bucket"), "remote_image", "is an address"),
            (json!("oss://bucket/cat"), "remote_image", "is an address"),
            (json!("\u{feff}https://a/b"), "remote_image", "is an address"),
            (json!({"image": "gs://b/c"}), "remote_image", "is an address"),
            (
                json!({"type": "image_url", "image_url": {"url": "https://a/b.png"}}),
                "remote_image",
                "is an address",
            ),
            (json!("photos/猫.JPG"), "invalid_value", "is the name of a file"),
            (
                json!(format!("b'{base64}'")),
                "invalid_value",
                "Python's way of showing bytes",
            ),
            (json!(base64), "invalid_value", "is an image in base64"),
            (
                json!(" data:text/plain,abc"),
                "invalid_value",
                "expected data:image/...;base64,...",
            ),
            (
                json!("data: 猫"),
                "invalid_value",
                "{\"text\": ...} where it is a caption",
            ),
            (
                json!({"type": "video_url", "video_url": {"url": uri}}),
                "invalid_value",
                "input[0].type: \"video_url\"",
            ),
            (
                json!({"type": "image_url"}),
                "invalid_value",
                "input[0].image_url: missing",
            ),
            (
                json!({"type": "image_url", "image_url": {}}),
                "invalid_value",
                "input[0].image_url.url: missing",
            ),
            (
                json!({"type": "image_url", "image_url": 1}),
                "invalid_value",
                "expected {\"url\"",
            ),
            (json!({"type": "text"}), "invalid_value", "input[0].text: missing"),
            (
                json!({"type": "text", "text": 1}),
                "invalid_value",
                "input[0].text: the number 1",
            ),
            (
                json!({"type": 1}),
                "invalid_value",
                "input[0].type: the number 1, expected a string",
            ),
            (
                json!({"image_url": uri, "text": "a"}),
                "invalid_value",
                "input[0].text: given beside `image_url`",
            ),
            (
                json!({"text": "a", "b": 1}),
                "invalid_value",
                "fields than one (\"b\", \"text\")",
            ),
            (json!({}), "invalid_value", "an empty object"),
        ];
        for (item, code, part) in cases {
            let (found, message) = parse(item.clone()).unwrap_err();
            assert_eq!(found, code, "{item}: {message}");
            assert!(message.contains(part), "{item}: {message}");
        }
    }

    #[test]
    fn base64_is_of_the_alphabet_that_is_meant() {
        for text in ["", "QUJD", "QU\r\nJD ", "QQ==", "a+/b"] {
            check_base64(text).unwrap();
        }
        for (text, part) in [
            ("_9j_4AAQ", "byte 0 is '_', which only the URL-safe alphabet has"),
            ("QU-J", "byte 2 is '-'"),
            ("b'/9j/4AAQSkZJRgABAQ=='", "Python shows bytes"),
            ("/home/me/my cat.jpg", "is the name of a file"),
            ("照片/猫.png", "is the name of a file"),
            ("C:\\cat", "is the name of a file"),
            ("QUJD%3D", "byte 4 is '%'"),
            ("<svg>", "byte 0 is '<'"),
        ] {
            let message = check_base64(text).unwrap_err().to_string();
            assert!(
                message.starts_with("base64: ") && message.contains(part),
                "{text}: {message}"
            );
        }
    }

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
    fn labels_times_templates_have_a_limit() {
        let parse = |labels: &str, templates: &str| {
            let body = format!("{{\"input\": \"a\", \"labels\": {labels}, {templates}}}");
            Classify::parse(body.as_bytes(), &LIMITS).map_err(|problem| (problem.code, problem.message))
        };
        assert!(parse(r#"["a"]"#, r#""templates": ["{}", "{}", "{}", "{}", "{}"]"#).is_ok());
        let (code, message) = parse(r#"["a", "b"]"#, r#""templates": ["{}", "{}a", "{}b"]"#).unwrap_err();
        assert_eq!(code, "too_many_prompts");
        assert_eq!(
            message,
            "labels: 2 labels in 3 templates are 6 captions, expected at most 5 (--max-prompts)"
        );
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
