//! What goes wrong with a request, as OpenAI's interface words it, and the one place where it becomes a status.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::request::Problem;

/// Why a request has no result.
#[derive(Debug)]
pub enum ApiError {
    /// The body is not what it should be.
    Request(Problem),
    /// The `Content-Type` is another.
    MediaType,
    /// The body is longer than it may be, in bytes.
    TooLarge(usize),
    /// The body did not arrive in time.
    BodyTimeout,
    /// The body broke off.
    Broken(String),
    Unauthorised,
    NotFound(String),
    MethodNotAllowed,
    /// Too much is waiting already; try again in so many seconds.
    Busy {
        what: &'static str,
        seconds: u64,
    },
    /// The model is being loaded, or the server is about to stop.
    NotReady,
    /// The result was not there in time.
    Timeout,
    /// The index has as many embeddings as it may have.
    IndexFull(usize),
    /// The change could not be brought to the disk, and was not made.
    NotWritten(String),
    /// A fault of the server.
    Internal(String),
}

impl ApiError {
    pub fn request(code: &'static str, param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Request(Problem {
            code,
            param: Some(param.into()),
            message: message.into(),
        })
    }

    pub fn status(&self) -> StatusCode {
        match self {
            Self::Request(problem) if problem.code == "model_not_found" => StatusCode::NOT_FOUND,
            Self::Request(_) | Self::Broken(_) => StatusCode::BAD_REQUEST,
            Self::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Unauthorised => StatusCode::UNAUTHORIZED,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::NotReady => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::IndexFull(_) | Self::NotWritten(_) => StatusCode::INSUFFICIENT_STORAGE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The reason as a short stable word, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Request(problem) => problem.code,
            Self::MediaType => "unsupported_media_type",
            Self::TooLarge(_) => "body_too_large",
            Self::BodyTimeout => "body_timeout",
            Self::Broken(_) => "body_incomplete",
            Self::Unauthorised => "invalid_api_key",
            Self::NotFound(_) => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Busy { .. } => "busy",
            Self::NotReady => "not_ready",
            Self::Timeout => "timeout",
            Self::IndexFull(_) => "index_full",
            Self::NotWritten(_) => "index_not_written",
            Self::Internal(_) => "internal",
        }
    }

    /// OpenAI's broader classes.
    fn class(&self) -> &'static str {
        match self.status() {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Request(problem) => problem.message.clone(),
            Self::MediaType => "expected a body with 'Content-Type: application/json'".into(),
            Self::TooLarge(limit) => {
                format!("the body is too long, expected at most {limit} bytes (--max-body)")
            }
            Self::BodyTimeout => "the body did not arrive in time (--read-timeout)".into(),
            Self::Broken(error) => format!("the body broke off: {error}"),
            Self::Unauthorised => "expected 'Authorization: Bearer KEY' with a key of this server".into(),
            Self::NotFound(path) => format!("there is nothing at {path}; /docs lists what there is"),
            Self::MethodNotAllowed => "this address takes another method; /docs lists them".into(),
            Self::Busy { what, seconds } => {
                format!("too many {what} are waiting already, try again in {seconds} s")
            }
            Self::NotReady => "the model is not loaded yet, or the server is about to stop".into(),
            Self::Timeout => "the result was not there in time (--timeout)".into(),
            Self::IndexFull(most) => {
                format!("the index would have more than {most} embeddings (--max-index); nothing was added")
            }
            Self::NotWritten(error) => {
                format!("the index could not be written, and nothing was changed: {error}")
            }
            Self::Internal(error) => error.clone(),
        }
    }
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self::Request(problem)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let param = match &self {
            Self::Request(problem) => problem.param.as_deref(),
            _ => None,
        };
        let (message, code) = (self.message(), self.code());
        if self.status() == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(message, "internal error");
        }
        let body = json!({
            "error": { "message": message, "type": self.class(), "param": param, "code": code },
        });
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self {
            Self::Busy { seconds, .. } => {
                headers.insert(RETRY_AFTER, seconds.into());
            }
            Self::NotReady => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Self::Unauthorised => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response.extensions_mut().insert(Refusal(code));
        response
    }
}

/// Left in a response's extensions, for the log and the metrics.
#[derive(Debug, Clone, Copy)]
pub struct Refusal(pub &'static str);
