//! What every request goes through: an id and the log, the name it came under, the keys.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::super::error::{ApiError, Refusal};
use super::{App, REQUEST_ID, is_open, known};

/// Gives every request an id, writes it into the log and counts it.
pub(super) async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = request_id(&app, request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    response.headers_mut().insert(REQUEST_ID, id.clone());
    let (status, time) = (response.status().as_u16(), start.elapsed());
    let refusal = response.extensions().get::<Refusal>().map(|refusal| refusal.0);
    let known = known(&app, &path);
    app.metrics.request(known, status, time, refusal);
    // Probes come every few seconds.
    if !matches!(known, "/health" | "/ready" | "/metrics") {
        tracing::info!(
            request_id = id.to_str().unwrap_or_default(),
            method = method.as_str(),
            path,
            status,
            ms = time.as_micros() as f64 / 1e3,
            error = refusal,
            "request"
        );
    }
    response
}

/// The client's own id where it is a short plain one, or a new one.
fn request_id(app: &App, headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(REQUEST_ID).filter(|id| {
        let bytes = id.as_bytes();
        (1..=128).contains(&bytes.len()) && bytes.iter().all(|byte| byte.is_ascii_graphic())
    });
    given.cloned().unwrap_or_else(|| {
        let number = app.requests.fetch_add(1, Ordering::Relaxed);
        let mut hasher = app.random.build_hasher();
        hasher.write_u64(number);
        HeaderValue::from_str(&format!("{:016x}{number:08x}", hasher.finish()))
            .unwrap_or(HeaderValue::from_static("request"))
    })
}

pub(super) async fn check_host(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let checked = app
        .options
        .hosts
        .check(request.version(), request.uri(), request.headers());
    match checked {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

pub(super) async fn authorise(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if app.keys.is_empty() || is_open(request.uri().path()) || has_key(&app.keys, request.headers()) {
        return next.run(request).await;
    }
    ApiError::Unauthorised.into_response()
}

/// Whether a request has one of the keys. How long it takes says nothing of a key: hashes of equal length are
/// compared, all of them and each to its end.
fn has_key(keys: &[[u8; 32]], headers: &HeaderMap) -> bool {
    let given = headers.get(AUTHORIZATION).map_or(&[][..], HeaderValue::as_bytes);
    let (scheme, key) = given.split_at_checked(7).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        return false;
    }
    let hash: [u8; 32] = Sha256::digest(key.trim_ascii()).into();
    let same = |key: &[u8; 32]| key.iter().zip(&hash).fold(0, |all, (a, b)| all | (a ^ b)) == 0;
    keys.iter().fold(false, |found, key| found | same(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let keys = [Sha256::digest("one").into(), Sha256::digest("two").into()];
        let has = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            has_key(&keys, &headers)
        };
        assert!(has("Bearer one") && has("bearer two"));
        for wrong in [
            "Bearer three",
            "Bearer ",
            "Bearer",
            "one",
            "Basic one",
            "Bearer onetwo",
        ] {
            assert!(!has(wrong), "{wrong}");
        }
        assert!(!has_key(&keys, &HeaderMap::new()));
    }
}
