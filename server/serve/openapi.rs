//! The description of the interface, as JSON and as a page.

use std::fmt::Write;

use serde_json::Value;

/// Kept by hand; tests/cli/serve/ holds the server to it.
const DOCUMENT: &str = include_str!("openapi.json");

/// The document as JSON.
pub fn json() -> String {
    DOCUMENT.replacen("\"VERSION\"", &format!("\"{}\"", env!("CARGO_PKG_VERSION")), 1)
}

/// The document as a page that loads nothing.
pub fn page() -> String {
    let document: Value = serde_json::from_str(DOCUMENT).unwrap_or_default();
    let mut page = String::from(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <title>ernie-vil</title><style>\
         body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}\
         code,pre{font:14px/1.5 ui-monospace,monospace;background:#f4f4f2;border-radius:4px}code{padding:.1em .3em}\
         pre{padding:.8em;overflow-x:auto}h2{margin:2.5rem 0 .5rem;border-top:1px solid #ddd;padding-top:1rem}\
         td{padding:.15em 1em .15em 0;vertical-align:top}\
         @media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}code,pre{background:#262626}h2{border-color:#444}}\
         </style>",
    );
    let info = &document["info"];
    let _ = write!(
        page,
        "<h1>{} {}</h1><p>{}</p><p>As <a href=/openapi.json>OpenAPI</a>.</p>",
        escaped(text(&info["title"])),
        env!("CARGO_PKG_VERSION"),
        escaped(text(&info["description"]))
    );
    for (path, operations) in entries(&document["paths"]) {
        for (method, operation) in entries(operations) {
            let _ = write!(
                page,
                "<h2><code>{} {}</code></h2><p>{}. {}</p>",
                method.to_uppercase(),
                escaped(path),
                escaped(text(&operation["summary"])),
                escaped(text(&operation["description"]))
            );
            let body = &operation["requestBody"]["content"]["application/json"];
            if let Some(name) = reference(&body["schema"]) {
                let _ = write!(
                    page,
                    "<pre>{}</pre><p>Body: <a href='#{name}'>{name}</a></p>",
                    escaped(&format!("{:#}", body["example"]))
                );
            }
            page.push_str("<table>");
            for (status, response) in entries(&operation["responses"]) {
                let _ = write!(
                    page,
                    "<tr><td>{status}<td>{}",
                    escaped(text(&response["description"]))
                );
                if let Some(name) = reference(&response["content"]["application/json"]["schema"]) {
                    let _ = write!(page, "<td><a href='#{name}'>{name}</a>");
                }
            }
            page.push_str("</table>");
        }
    }
    for (name, schema) in entries(&document["components"]["schemas"]) {
        let _ = write!(
            page,
            "<h2 id='{name}'><code>{name}</code></h2><pre>{}</pre>",
            escaped(&format!("{schema:#}"))
        );
    }
    page.push_str("</html>\n");
    page
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The schema's name.
fn reference(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str()?.rsplit('/').next()
}

pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere_and_every_operation_is_on_the_page() {
        let document: Value = serde_json::from_str(&json()).unwrap();
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let schemas = &document["components"]["schemas"];
        for part in DOCUMENT.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(schemas.get(name).is_some(), "{name}");
        }
        let page = page();
        for (path, operations) in entries(&document["paths"]) {
            for (method, _) in entries(operations) {
                assert!(
                    page.contains(&format!("{} {path}<", method.to_uppercase())),
                    "{method} {path}"
                );
            }
        }
        assert!(!page.contains("src="));
    }
}
