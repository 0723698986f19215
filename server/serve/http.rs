//! HTTP: addresses, keys, limits and the forms of requests and responses.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, EXPECT, RETRY_AFTER,
};
use axum::http::{self, HeaderMap, HeaderName, HeaderValue, Method, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ernie_vil::classify::TEMPLATES;
use http_body_util::BodyExt;
use rayon::ThreadPool;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::error::{ApiError, Refusal};
use super::files::Folder;
use super::hosts::Hosts;
use super::memory::{Answer, Held, Memory};
use super::metrics::{Metrics, Now};
use super::openapi;
use super::request::{Add, Classify, Embed, Encoding, Item, Limits, Remove, Search};
use super::service::{self, ENTRY, ENVELOPE, Embedded, Hit, Service, label_name, matrix};

/// A longer body is parsed beside the threads that serve.
const LONG_BODY: usize = 16 << 10;
/// So is a longer response put together, as far as its length is known beforehand.
const LONG_RESPONSE: usize = 96 << 10;
/// Bytes of a float32 as a JSON number and the comma behind it, at most.
const NUMBER: usize = 16;
/// What is still read of a body that was refused, so that the client comes to read why.
const LINGER: usize = 4 << 20;
const LINGER_TIME: Duration = Duration::from_secs(2);

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

/// Gives every request an id, writes it into the log and counts it.
async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
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

async fn check_host(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let checked = app
        .options
        .hosts
        .check(request.version(), request.uri(), request.headers());
    match checked {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

async fn authorise(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
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
    // A client that still sends does not see the answer, and a connection that is closed while bytes come in is reset.
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
async fn handle<T: Send + 'static, F: Future<Output = Reply>>(
    app: Arc<App>,
    request: Request,
    parse: fn(&[u8], &Limits) -> Result<T, super::request::Problem>,
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

/// The model's name or its fingerprint, or nothing.
fn check_model(service: &Service, model: Option<&str>) -> Result<(), ApiError> {
    let config = service.engine.config();
    match model {
        Some(model) if model != config.name && model != config.fingerprint => Err(ApiError::request(
            "model_not_found",
            "model",
            format!(
                "model: this server has \"{}\" (fingerprint {}), expected that or nothing",
                config.name, config.fingerprint
            ),
        )),
        _ => Ok(()),
    }
}

async fn embeddings(State(app): State<Arc<App>>, request: Request) -> Reply {
    handle(app, request, Embed::parse, async |app, service, body, held| {
        check_model(&service, body.model.as_deref())?;
        let config = service.engine.config();
        for (i, item) in body.input.iter().enumerate() {
            let own = match item {
                Item::Text(_) => config.text.width,
                _ => config.image.width(),
            };
            if let Some(wanted) = body.dimensions
                && wanted != own as u64
            {
                return Err(ApiError::request(
                    "invalid_value",
                    "dimensions",
                    format!("dimensions: {wanted}, but input[{i}] becomes {own} values, which cannot be fewer or more"),
                ));
            }
        }
        let encoding = body.encoding;
        // It is known beforehand how long the answer will be, and whether there is memory for it.
        let mut answer = app.memory.answer("input");
        answer.add(ENVELOPE)?;
        for item in &body.input {
            let values = match item {
                Item::Text(_) => config.text.width,
                _ => config.image.width(),
            };
            answer.add(ENTRY + vector_bytes(values, encoding))?;
        }
        let embedded = service.embed(body.input, "input", &held).await?;
        let usage = usage(&embedded);
        let write = move |out: &mut String, i: usize, vector: &Vec<f32>| {
            out.push_str(&format!("{{\"object\":\"embedding\",\"index\":{i},\"embedding\":"));
            write_vector(out, vector, encoding);
            out.push('}');
        };
        list(&app, &service, embedded.vectors, answer, usage, write).await
    })
    .await
}

/// Bytes of a vector in an answer, at most.
fn vector_bytes(values: usize, encoding: Encoding) -> usize {
    match encoding {
        Encoding::Float => values * NUMBER,
        Encoding::Base64 => (4 * values).div_ceil(3) * 4,
    }
}

fn write_vector(out: &mut String, vector: &[f32], encoding: Encoding) {
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

fn usage(embedded: &Embedded) -> Value {
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
async fn list<T: Send + 'static>(
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

async fn search(State(app): State<Arc<App>>, request: Request) -> Reply {
    handle(app, request, Search::parse, async |app, service, body, held| {
        check_model(&service, body.model.as_deref())?;
        service.check_comparable(&body.input, "input")?;
        let embedded = service.embed(body.input, "input", &held).await?;
        let usage = usage(&embedded);
        let dimensions = service.engine.config().image.width();
        let (found, answer) = service
            .search(matrix(embedded.vectors, dimensions, "input")?, body.k, held)
            .await?;
        let write = |out: &mut String, i: usize, hits: &Vec<Hit>| {
            let hits: Vec<Value> = hits
                .iter()
                .map(|hit| json!({"id": hit.id, "score": hit.score}))
                .collect();
            out.push_str(&json!({"object": "search_result", "index": i, "hits": hits}).to_string());
        };
        list(&app, &service, found, answer, usage, write).await
    })
    .await
}

async fn classify(State(app): State<Arc<App>>, request: Request) -> Reply {
    handle(app, request, Classify::parse, async |app, service, body, held| {
        check_model(&service, body.model.as_deref())?;
        service.check_comparable(&body.input, "input")?;
        // What the labels are called in the answer, where they came with the question.
        let names: Option<Vec<String>> = body.labels.as_ref().map(|labels| {
            let name = |(i, label): (usize, &Item)| match label {
                Item::Text(text) => text.clone(),
                _ => i.to_string(),
            };
            labels.iter().enumerate().map(name).collect()
        });
        let names = names.map(Arc::new);
        let dimensions = service.engine.config().image.width();
        let mut embedded = service.embed(body.input, "input", &held).await?;
        let labels = match body.labels {
            None => None,
            Some(labels) => {
                service.check_comparable(&labels, "labels")?;
                let of_labels = service.label_vectors(labels, &body.templates, &held).await?;
                embedded.tokens.extend(of_labels.tokens);
                embedded.patches += of_labels.patches;
                let labels = matrix(of_labels.vectors, dimensions, "labels")?;
                names.clone().map(|names| (labels, names))
            }
        };
        let usage = usage(&embedded);
        let queries = matrix(embedded.vectors, dimensions, "input")?;
        let scale = body
            .temperature
            .map_or(service.engine.config().scale(), f64::recip);
        let (found, answer) = service.classify(queries, labels, body.k, scale, held).await?;
        let write = move |out: &mut String, i: usize, hits: &Vec<(Hit, f32)>| {
            let label = |hit: &Hit, share: f32| {
                let name = label_name(names.as_deref().map(Vec::as_slice), &hit.id);
                json!({"label": name, "score": hit.score, "probability": share})
            };
            let labels: Vec<Value> = hits.iter().map(|(hit, share)| label(hit, *share)).collect();
            out.push_str(&json!({"object": "classification", "index": i, "labels": labels}).to_string());
        };
        list(&app, &service, found, answer, usage, write).await
    })
    .await
}

async fn index(State(app): State<Arc<App>>) -> Reply {
    let service = app.service()?;
    Ok(with_model(&app, json_response(index_json(service).to_string())))
}

fn index_json(service: &Service) -> Value {
    let config = service.engine.config();
    json!({
        "object": "index",
        "size": service.store.len(),
        "dimensions": config.image.width(),
        "dtype": service.store.dtype().to_string(),
        "fingerprint": config.fingerprint,
        "persisted": service.store.persisted(),
    })
}

async fn add(State(app): State<Arc<App>>, request: Request) -> Reply {
    handle(app, request, Add::parse, async |app, service, body, held| {
        check_model(&service, body.model.as_deref())?;
        service.check_comparable(&body.items, "items")?;
        let embedded = service.embed(body.items, "items", &held).await?;
        let vectors = matrix(embedded.vectors, service.engine.config().image.width(), "items")?;
        let changed = service.store.add(body.ids, vectors, held).await?;
        Ok(with_model(&app, change(&service, changed)))
    })
    .await
}

async fn remove(State(app): State<Arc<App>>, request: Request) -> Reply {
    handle(app, request, Remove::parse, async |app, service, body, held| {
        let changed = service.store.remove(body.ids, held).await?;
        Ok(with_model(&app, change(&service, changed)))
    })
    .await
}

fn change(service: &Service, changed: super::store::Changed) -> Response {
    let value = json!({
        "object": "index.change",
        "added": changed.added,
        "replaced": changed.replaced,
        "removed": changed.removed,
        "size": changed.size,
        "persisted": service.store.persisted(),
    });
    json_response(value.to_string())
}

async fn models(State(app): State<Arc<App>>) -> Reply {
    let value = json!({ "object": "list", "data": [model_json(&app, app.service()?)] });
    Ok(with_model(&app, json_response(value.to_string())))
}

async fn model(State(app): State<Arc<App>>, name: Result<Path<String>, PathRejection>) -> Reply {
    let service = app.service()?;
    // What cannot be decoded is no model's name.
    let name = name.map_or_else(|_| String::new(), |Path(name)| name);
    check_model(service, Some(&name))?;
    let model = model_json(&app, service).to_string();
    Ok(with_model(&app, json_response(model)))
}

fn model_json(app: &App, service: &Service) -> Value {
    let config = service.engine.config();
    let created = app
        .started
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    json!({
        "id": config.name,
        "object": "model",
        "created": created,
        "owned_by": "ernie-vil",
        "fingerprint": config.fingerprint,
        "note": config.note,
    })
}

async fn info(State(app): State<Arc<App>>) -> Reply {
    let service = app.service()?;
    let config = service.engine.config();
    let value = json!({
        "name": config.name,
        "note": config.note,
        "structure": config.structure(),
        "fingerprint": config.fingerprint,
        "version": env!("CARGO_PKG_VERSION"),
        "device": service.engine.device_names(),
        "adapter": service.adapter,
        "dimensions": { "text": config.text.width, "image": config.image.width() },
        "max_text_tokens": config.max_text_tokens,
        "logit_scale": config.scale(),
        "templates": TEMPLATES,
        "image_size": config.image.image_size(),
        "vocab_size": config.text.vocab_size,
        "parameters": config.image.parameters() + config.text.parameters(),
        "index": index_json(service),
        "limits": {
            "body_bytes": app.options.max_body,
            "items": app.options.max_items,
            "text_bytes": app.options.max_text,
            "prompts": app.options.max_prompts,
            "answer_bytes": app.memory.longest(),
            "pixels": app.options.max_pixels,
            "seconds": app.options.timeout.as_secs(),
        },
    });
    Ok(with_model(&app, json_response(value.to_string())))
}

async fn ready(State(app): State<Arc<App>>) -> Reply {
    app.service()?;
    if app.stopping.load(Ordering::Relaxed) {
        return Err(ApiError::NotReady);
    }
    Ok("ready\n".into_response())
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let service = app.service.get();
    let now = Now {
        ready: service.is_some() && !app.stopping.load(Ordering::Relaxed),
        waiting: service.map_or_else(Default::default, |service| service::waiting(&service.queue)),
        buffered: app.memory.held(),
        index: service.map_or(0, |service| service.store.len()),
    };
    let mut response = app.metrics.text(&now).into_response();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

async fn openapi_json() -> Response {
    json_response(openapi::json())
}

async fn docs() -> Response {
    page(openapi::page())
}

/// A page that may load nothing but has its own style.
fn page(html: String) -> Response {
    let mut response = Html(html).into_response();
    let policy =
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'");
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    response
}

/// Whatever is no endpoint is a file.
async fn file(State(app): State<Arc<App>>, request: Request) -> Reply {
    let (method, headers) = (request.method(), request.headers());
    let path = request.uri().path();
    let not_found = || {
        let start: String = path.chars().take(200).collect();
        ApiError::NotFound(start)
    };
    if path.starts_with("/v1/") {
        return Err(not_found());
    }
    if method != Method::GET && method != Method::HEAD {
        let mut response = ApiError::MethodNotAllowed.into_response();
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(response);
    }
    if let (Some(models), Some(inner)) = (&app.options.models, path.strip_prefix("/models"))
        && inner.starts_with('/')
        && let Some(response) = models.respond(inner, method, headers).await
    {
        return Ok(response);
    }
    if let Some(root) = &app.options.web_root
        && let Some(response) = root.respond(path, method, headers).await
    {
        return Ok(response);
    }
    if path != "/" {
        return Err(not_found());
    }
    let hint = openapi::escaped(&app.options.web_root_hint.display().to_string());
    Ok(page(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>ernie-vil</title><h1>ernie-vil</h1>\
         <p>The server runs: <a href=/docs>its interface</a>, <a href=/info>its model</a>.</p>\
         <p>The demo page is not here. <code>cargo xtask demo --no-serve</code> builds it in <code>www/dist</code>, and \
         <code>ernie-vil serve --web-root www/dist</code> serves it (it was looked for in <code>{hint}</code>).</p></html>\n"
    )))
}

fn json_response(body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Says in the head which model answered, and what its users have to know of it.
fn with_model(app: &App, mut response: Response) -> Response {
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

#[cfg(test)]
mod tests {
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
