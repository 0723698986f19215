//! The bodies of requests: read within all limits, parsed, and answered in time.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use http_body_util::BodyExt;

use super::super::error::ApiError;
use super::super::memory::Held;
use super::super::request::{Limits, Problem};
use super::super::service::{self, Service};
use super::{App, Reply};

/// A longer body is parsed beside the threads that serve.
const LONG_BODY: usize = 16 << 10;
/// What is still read of a body that was refused, so that the client comes to read why.
const LINGER: usize = 4 << 20;
const LINGER_TIME: Duration = Duration::from_secs(2);

/// Reads a JSON body within all limits.
async fn read_body(app: &App, request: Request) -> Result<(Bytes, Held), ApiError> {
    let is_json = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let is_json = is_json.is_some_and(|value| {
        let kind = value.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("application/json")
    });
    let encoding = encoding(request.headers());
    let waits = request.headers().contains_key(EXPECT);
    let length = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let mut body = pin!(request.into_body());
    let read = async {
        if let Some(encoding) = encoding {
            return Err(ApiError::Encoded(encoding));
        }
        if !is_json {
            return Err(ApiError::MediaType);
        }
        let most = app.options.max_body;
        let too_large = || ApiError::TooLarge(most);
        let length: usize = length.unwrap_or(0);
        if length > most {
            return Err(too_large());
        }
        let mut counted = app.memory.body();
        // What the head says is not reserved at once: a client may say much and send nothing.
        let mut bytes: Vec<u8> = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ApiError::Broken(error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            let total = bytes.len() + data.len();
            if total > most {
                return Err(too_large());
            }
            counted.grow(total)?;
            if bytes.is_empty() && total == length {
                return Ok((data, counted.held()));
            }
            bytes.extend_from_slice(&data);
        }
        Ok((Bytes::from(bytes), counted.held()))
    };
    let read = tokio::time::timeout(app.options.read_timeout, read).await;
    let read = read.unwrap_or(Err(ApiError::BodyTimeout));
    // A client that still sends does not see the answer, and a connection that is closed while bytes come in
    // is reset.
    if matches!(
        read,
        Err(ApiError::TooLarge(_) | ApiError::MediaType | ApiError::Encoded(_) | ApiError::Busy { .. })
    ) && !waits
    {
        let discard = async {
            let mut left = LINGER;
            while let Some(Ok(frame)) = body.frame().await {
                match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                    Some(less) => left = less,
                    None => break,
                }
            }
        };
        let _ = tokio::time::timeout(LINGER_TIME, discard).await;
    }
    read
}

/// How a body is compressed, as its head says.
fn encoding(headers: &HeaderMap) -> Option<String> {
    let given = headers.get_all(CONTENT_ENCODING).iter();
    let given: Vec<String> = given
        .map(|value| {
            String::from_utf8_lossy(value.as_bytes())
                .trim()
                .chars()
                .take(40)
                .collect()
        })
        .collect();
    let is_plain = |name: &String| name.is_empty() || name.eq_ignore_ascii_case("identity");
    (!given.iter().all(is_plain)).then(|| given.join(", "))
}

/// What compressed data begins like a body that is sent without saying so.
fn compressed(body: &[u8]) -> Option<&'static str> {
    match body {
        [0x1f, 0x8b, ..] => Some("gzip"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("zstd"),
        [0x78, 0x01 | 0x5e | 0x9c | 0xda, ..] => Some("deflate"),
        _ => None,
    }
}

/// Reads and parses a body, and does with it what the endpoint does, in time.
pub(super) async fn handle<T: Send + 'static, F: Future<Output = Reply>>(
    app: Arc<App>,
    request: Request,
    parse: fn(&[u8], &Limits) -> Result<T, Problem>,
    work: impl FnOnce(Arc<App>, Arc<Service>, T, Held) -> F,
) -> Reply {
    let (body, held) = read_body(&app, request).await?;
    if let Some(how) = compressed(&body) {
        return Err(ApiError::Encoded(how.into()));
    }
    let service = app.service()?.clone();
    let limits = app.limits(&service);
    let timeout = app.options.timeout;
    let work = async {
        let (parsed, held) = match body.len() {
            0..=LONG_BODY => (parse(&body, &limits), held),
            _ => service::aside(&app.texts, move || (parse(&body, &limits), held)).await?,
        };
        work(app.clone(), service, parsed?, held).await
    };
    tokio::time::timeout(timeout, work)
        .await
        .unwrap_or(Err(ApiError::Timeout))
}
