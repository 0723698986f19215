//! The endpoints: what each does with a request that was read.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::UNIX_EPOCH;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::header::{ALLOW, CONTENT_TYPE};
use axum::http::{HeaderValue, Method};
use axum::response::{IntoResponse, Response};
use ernie_vil::classify::TEMPLATES;
use serde_json::{Value, json};

use super::super::error::ApiError;
use super::super::metrics::Now;
use super::super::openapi;
use super::super::request::{Add, Classify, Embed, Item, Remove, Search};
use super::super::service::{self, ENTRY, ENVELOPE, Hit, Service, label_name, matrix};
use super::super::store::Changed;
use super::answer::{json_response, list, page, usage, vector_bytes, with_model, write_vector};
use super::body::handle;
use super::{App, Reply};

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

pub(super) async fn embeddings(State(app): State<Arc<App>>, request: Request) -> Reply {
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

pub(super) async fn search(State(app): State<Arc<App>>, request: Request) -> Reply {
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

pub(super) async fn classify(State(app): State<Arc<App>>, request: Request) -> Reply {
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

pub(super) async fn index(State(app): State<Arc<App>>) -> Reply {
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

pub(super) async fn add(State(app): State<Arc<App>>, request: Request) -> Reply {
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

pub(super) async fn remove(State(app): State<Arc<App>>, request: Request) -> Reply {
    handle(app, request, Remove::parse, async |app, service, body, held| {
        let changed = service.store.remove(body.ids, held).await?;
        Ok(with_model(&app, change(&service, changed)))
    })
    .await
}

fn change(service: &Service, changed: Changed) -> Response {
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

pub(super) async fn models(State(app): State<Arc<App>>) -> Reply {
    let value = json!({ "object": "list", "data": [model_json(&app, app.service()?)] });
    Ok(with_model(&app, json_response(value.to_string())))
}

pub(super) async fn model(State(app): State<Arc<App>>, name: Result<Path<String>, PathRejection>) -> Reply {
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

pub(super) async fn info(State(app): State<Arc<App>>) -> Reply {
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

pub(super) async fn ready(State(app): State<Arc<App>>) -> Reply {
    app.service()?;
    if app.stopping.load(Ordering::Relaxed) {
        return Err(ApiError::NotReady);
    }
    Ok("ready\n".into_response())
}

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
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

pub(super) async fn openapi_json() -> Response {
    json_response(openapi::json())
}

pub(super) async fn docs() -> Response {
    page(openapi::page())
}

/// Whatever is no endpoint is a file.
pub(super) async fn file(State(app): State<Arc<App>>, request: Request) -> Reply {
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
