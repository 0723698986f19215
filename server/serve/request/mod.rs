//! The bodies of requests: bytes in, checked values or a [`Problem`] out.
//!
//! A body becomes a tree with a bounded number of nodes first, so that its memory follows from its length and
//! the limits, and then what an endpoint takes, with the path of each value in the messages:
//! `input[2].image`.

mod item;
pub mod text;
mod tree;

use std::fmt;

use ernie_vil::classify::{PLACE, TEMPLATES};

use item::{item, items, list};
use tree::{Fields, Node};

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

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const LIMITS: Limits = Limits {
        items: 3,
        text: 20,
        prompts: 5,
        dimensions: 2,
    };

    pub(super) fn problem(body: &str) -> (&'static str, String) {
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
}
