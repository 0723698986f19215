//! HTTP: addresses and what they lead to. [`middleware`] has the keys, [`body`] the limits of requests,
//! [`endpoints`] what each address does, and [`answer`] the forms of responses.

mod answer;
mod body;
mod endpoints;
mod middleware;

use std::collections::hash_map::RandomState;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::http::header::RETRY_AFTER;
use axum::http::{self, HeaderName, HeaderValue, Method, Uri};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use rayon::ThreadPool;
use sha2::{Digest, Sha256};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::error::ApiError;
use super::files::Folder;
use super::hosts::Hosts;
use super::memory::Memory;
use super::metrics::Metrics;
use super::request::Limits;
use super::service::Service;
use endpoints::{
    add, classify, docs, embeddings, file, index, info, metrics, model, models, openapi_json, ready, remove,
    search,
};
use middleware::{authorise, check_host, observe};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FINGERPRINT: HeaderName = HeaderName::from_static("x-model-fingerprint");
const NOTE: HeaderName = HeaderName::from_static("x-model-note");

/// What the command line says of HTTP.
pub struct Options {
    pub max_body: usize,
    pub max_items: usize,
    pub max_text: usize,
    pub max_prompts: usize,
    pub max_pixels: u64,
    pub timeout: Duration,
    pub read_timeout: Duration,
    pub api_keys: Vec<String>,
    pub cors_origins: Vec<String>,
    pub hosts: Hosts,
    pub web_root: Option<Folder>,
    pub models: Option<Folder>,
    /// Where the page would be looked for, for the sentence that says how to make it.
    pub web_root_hint: PathBuf,
}

/// What all requests share.
pub struct App {
    options: Options,
    /// There when the model is loaded and warm.
    service: OnceLock<Arc<Service>>,
    pub metrics: Arc<Metrics>,
    /// Threads that read bodies and put answers together.
    texts: Arc<ThreadPool>,
    pub memory: Arc<Memory>,
    paths: Vec<&'static str>,
    /// SHA-256 of the keys.
    keys: Vec<[u8; 32]>,
    stopping: AtomicBool,
    started: SystemTime,
    requests: AtomicU64,
    random: RandomState,
}

type Reply = Result<Response, ApiError>;

impl App {
    pub fn new(options: Options, metrics: Arc<Metrics>, texts: Arc<ThreadPool>, memory: Arc<Memory>) -> Self {
        let keys = options
            .api_keys
            .iter()
            .map(|key| Sha256::digest(key).into())
            .collect();
        Self {
            options,
            service: OnceLock::new(),
            metrics,
            texts,
            memory,
            paths: routes().into_iter().map(|(path, _)| path).collect(),
            keys,
            stopping: AtomicBool::new(false),
            started: SystemTime::now(),
            requests: AtomicU64::new(0),
            random: RandomState::new(),
        }
    }

    /// From now on requests are served.
    pub fn ready(&self, service: Arc<Service>) {
        // It is called once.
        let _ = self.service.set(service);
    }

    /// From now on `/ready` says that the server is about to stop.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    pub fn loaded(&self) -> Option<&Arc<Service>> {
        self.service.get()
    }

    fn service(&self) -> Result<&Arc<Service>, ApiError> {
        self.service.get().ok_or(ApiError::NotReady)
    }

    fn limits(&self, service: &Service) -> Limits {
        let config = service.engine.config();
        Limits {
            items: self.options.max_items,
            text: self.options.max_text,
            prompts: self.options.max_prompts,
            dimensions: config.image.width().max(config.text.width),
        }
    }
}

/// Everything that there is.
pub fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for (path, route) in routes() {
        router = router.route(path, route);
    }
    router = router
        .fallback(file)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(from_fn_with_state(app.clone(), authorise));
    // Outside of the keys: a page has to be able to read why it was refused, and asks beforehand without one.
    if !app.options.cors_origins.is_empty() {
        router = router.layer(cors(&app.options.cors_origins));
    }
    router
        // Outside of the origins: a page whose name leads here is of the right one.
        .layer(from_fn_with_state(app.clone(), check_host))
        .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
            ApiError::Internal("a fault in the server".into()).into_response()
        }))
        .layer(from_fn_with_state(app.clone(), observe))
        .with_state(app)
}

fn routes() -> [(&'static str, MethodRouter<Arc<App>>); 12] {
    [
        ("/v1/embeddings", post(embeddings)),
        ("/v1/search", post(search)),
        ("/v1/classify", post(classify)),
        ("/v1/index", get(index).post(add).delete(remove)),
        ("/v1/models", get(models)),
        (MODEL, get(model)),
        ("/info", get(info)),
        ("/health", get(async || "ok\n")),
        ("/ready", get(ready)),
        ("/metrics", get(metrics)),
        ("/openapi.json", get(openapi_json)),
        ("/docs", get(docs)),
    ]
}

/// Addresses that need no key: what probes and browsers ask for.
fn is_open(path: &str) -> bool {
    !path.starts_with("/v1/") && !matches!(path, "/v1" | "/info" | "/metrics")
}

/// What a path is called in the metrics, where every client could make up others.
fn known(app: &App, path: &str) -> &'static str {
    if model_name(path).is_some() {
        return MODEL;
    }
    let route = app.paths.iter().find(|&&known| known == path);
    route.copied().unwrap_or("file")
}

/// What asks for a model by its name.
const MODEL: &str = "/v1/models/{model}";

/// The name in such a path.
fn model_name(path: &str) -> Option<&str> {
    let name = path.strip_prefix("/v1/models/")?;
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

/// Whether a request asks for the server's health, which is answered however much there is to do.
pub fn is_probe<B>(request: &http::Request<B>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
        && matches!(request.uri().path(), "/health" | "/ready")
}

/// Puts `/v1` in front of a path that a client of OpenAI's asks for when its base URL lacks it. No file can
/// be meant: they are only fetched, and `/models` is a folder.
pub fn complete<B>(request: &mut http::Request<B>) {
    let path = request.uri().path();
    let is_ours = match *request.method() {
        Method::POST => matches!(path, "/embeddings" | "/search" | "/classify" | "/index"),
        Method::DELETE => path == "/index",
        Method::GET => path == "/models",
        _ => false,
    };
    if !is_ours {
        return;
    }
    let query = request
        .uri()
        .query()
        .map_or(String::new(), |query| format!("?{query}"));
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = format!("/v1{path}{query}").parse().ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

fn cors(origins: &[String]) -> CorsLayer {
    let origin = match origins {
        some if some.iter().any(|origin| origin == "*") => AllowOrigin::any(),
        some => AllowOrigin::list(
            some.iter()
                .filter_map(|origin| HeaderValue::from_str(origin).ok()),
        ),
    };
    CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        // Whichever a page of these origins asks for: clients send headers of their own, such as OpenAI's
        // `x-stainless-os`, and none of those that are not known here has an effect. No cookies are taken.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID, RETRY_AFTER, FINGERPRINT, NOTE])
        .max_age(Duration::from_secs(3600))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::openapi;
    use super::*;

    #[test]
    fn the_document_has_every_route_and_no_other() {
        let document: Value = serde_json::from_str(&openapi::json()).unwrap();
        let mut documented: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
        documented.sort();
        let mut routes: Vec<&str> = routes().into_iter().map(|(path, _)| path).collect();
        routes.sort_unstable();
        assert_eq!(documented, routes);
        // And which of them need a key.
        for (path, operations) in document["paths"].as_object().unwrap() {
            for operation in operations.as_object().unwrap().values() {
                assert_eq!(operation["security"] == json!([]), is_open(path), "{path}");
            }
        }
    }
}
