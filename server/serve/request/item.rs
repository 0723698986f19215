//! Items of a request: texts, images and embeddings in all forms in which clients send them.

use super::text::{data_uri, is_data_uri, refuse_address, refuse_file};
use super::tree::{Fields, Node};
use super::{Item, Limits, Problem, Result, at, quoted, within};

/// A list that is neither empty nor too long.
pub(super) fn list(node: Option<Node>, path: &str, limits: &Limits) -> Result<Vec<Node>> {
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
pub(super) fn items(node: Node, path: &str, limits: &Limits) -> Result<Vec<Item>> {
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
pub(super) fn item(node: Node, path: &str, limits: &Limits) -> Result<Item> {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Embed;
    use super::super::tests::LIMITS;
    use super::*;

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
}
