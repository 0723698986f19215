//! How answers are put together.

use std::sync::Arc;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::super::memory::Answer;
use super::super::request::Encoding;
use super::super::service::{Embedded, Service};
use super::{App, FINGERPRINT, NOTE, Reply};

/// A longer response is put together beside the threads that serve, as far as its length is known beforehand.
const LONG_RESPONSE: usize = 96 << 10;
/// Bytes of a float32 as a JSON number and the comma behind it, at most.
const NUMBER: usize = 16;

/// Bytes of a vector in an answer, at most.
pub(super) fn vector_bytes(values: usize, encoding: Encoding) -> usize {
    match encoding {
        Encoding::Float => values * NUMBER,
        Encoding::Base64 => (4 * values).div_ceil(3) * 4,
    }
}

pub(super) fn write_vector(out: &mut String, vector: &[f32], encoding: Encoding) {
    match encoding {
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            out.push('"');
            BASE64_STANDARD.encode_string(bytes, out);
            out.push('"');
        }
        Encoding::Float => {
            out.push('[');
            let mut buffer = zmij::Buffer::new();
            for (i, &value) in vector.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                // The shortest text that reads as this float32 again. Vectors of the towers are finite.
                out.push_str(buffer.format(value));
            }
            out.push(']');
        }
    }
}

pub(super) fn usage(embedded: &Embedded) -> Value {
    let tokens: usize = embedded.tokens.iter().sum();
    let total = tokens + embedded.patches;
    json!({
        "prompt_tokens": total,
        "total_tokens": total,
        "text_tokens": tokens,
        "image_patches": embedded.patches,
    })
}

/// A list's response, whose bytes were counted: its entries, each as `write` writes it, which model, and what
/// it cost.
pub(super) async fn list<T: Send + 'static>(
    app: &App,
    service: &Arc<Service>,
    entries: Vec<T>,
    answer: Answer,
    usage: Value,
    write: impl Fn(&mut String, usize, &T) + Send + 'static,
) -> Reply {
    let bytes = answer.bytes();
    let body = move |service: &Service| {
        let mut out = String::with_capacity(bytes);
        out.push_str("{\"object\":\"list\",\"data\":[");
        for (i, entry) in entries.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            write(&mut out, i, entry);
        }
        let config = service.engine.config();
        let (name, fingerprint) = (json!(config.name), json!(config.fingerprint));
        out.push_str(&format!(
            "],\"model\":{name},\"fingerprint\":{fingerprint},\"usage\":{usage}}}"
        ));
        drop(entries);
        answer.body(out)
    };
    let body = match bytes {
        0..=LONG_RESPONSE => body(service),
        _ => service.aside(body).await?,
    };
    Ok(with_model(app, json_response(body)))
}

pub(super) fn json_response(body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Says in the head which model answered, and what its users have to know of it.
pub(super) fn with_model(app: &App, mut response: Response) -> Response {
    let Some(service) = app.service.get() else {
        return response;
    };
    let config = service.engine.config();
    for (name, text) in [
        (FINGERPRINT, Some(&config.fingerprint)),
        (NOTE, config.note.as_ref()),
    ] {
        let plain = text.map(|text| {
            text.chars()
                .map(|c| if (' '..='~').contains(&c) { c } else { '?' })
                .collect::<String>()
        });
        if let Some(value) = plain.and_then(|text| HeaderValue::from_str(&text).ok()) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// A page that may load nothing but has its own style.
pub(super) fn page(html: String) -> Response {
    let mut response = Html(html).into_response();
    let policy =
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'");
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    response
}
