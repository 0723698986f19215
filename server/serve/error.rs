//! What goes wrong with a request, as OpenAI's interface words it, and the one place where it becomes a status.

use axum::body::Body;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
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
    /// The body is compressed, in this way.
    Encoded(String),
    /// The request was sent to a name under which this server does not answer, or to none.
    Misdirected(String),
    /// The answer would be longer than it may be, in bytes.
    AnswerTooLong {
        most: usize,
        /// What makes it long.
        param: &'static str,
    },
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
    /// The index would hold more than it may: of what.
    IndexFull(String),
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
            Self::MediaType | Self::Encoded(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Misdirected(_) => StatusCode::MISDIRECTED_REQUEST,
            Self::AnswerTooLong { .. } => StatusCode::BAD_REQUEST,
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
            Self::Encoded(_) => "unsupported_encoding",
            Self::Misdirected(_) => "host_not_allowed",
            Self::AnswerTooLong { .. } => "answer_too_long",
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
            Self::Encoded(how) => format!(
                "the body is compressed ({how}), expected it as it is: the only Content-Encoding that is taken is identity"
            ),
            Self::Misdirected(host) if host.is_empty() => {
                "the request names no host, expected 'Host: localhost' or another name of this server (--allowed-hosts)".into()
            }
            Self::Misdirected(host) => format!(
                "the request was sent to the host {host:?}, under which this server does not answer: a server on a loopback address \
                 answers to localhost, 127.0.0.1 and [::1], and to what --allowed-hosts (ERNIE_VIL_ALLOWED_HOSTS) names"
            ),
            Self::AnswerTooLong { most, param } => {
                let advice = match *param {
                    "k" => "ask for fewer hits (k), in fewer inputs or with shorter labels",
                    _ => "ask for fewer embeddings, or for 'encoding_format': 'base64'",
                };
                format!(
                    "{param}: the answer would be too long, expected at most {most} bytes (--max-answer, and a quarter of \
                     --max-buffered): {advice}"
                )
            }
            Self::TooLarge(limit) => {
                format!("the body is too long, expected at most {limit} bytes (--max-body)")
            }
            Self::BodyTimeout => "the body did not arrive in time (--read-timeout)".into(),
            Self::Broken(error) => format!("the body broke off: {error}"),
            Self::Unauthorised => "expected 'Authorization: Bearer KEY' with a key of this server".into(),
            Self::NotFound(path) => match meant(path) {
                Some(meant) => format!("there is nothing at {path}, but at {meant}; /docs lists what there is"),
                None => format!("there is nothing at {path}; /docs lists what there is"),
            },
            Self::MethodNotAllowed => "this address takes another method; /docs lists them".into(),
            Self::Busy { what, seconds } => {
                format!("too many {what} are waiting already, try again in {seconds} s")
            }
            Self::NotReady => "the model is not loaded yet, or the server is about to stop".into(),
            Self::Timeout => "the result was not there in time (--timeout)".into(),
            Self::IndexFull(most) => {
                format!("the index would have more than {most}; nothing was added")
            }
            Self::NotWritten(error) => {
                format!("the index could not be written, and nothing was changed: {error}")
            }
            Self::Internal(error) => error.clone(),
        }
    }
}

/// The address that a path is close to: with a slash too many, with `/v1` twice, or without it.
fn meant(path: &str) -> Option<String> {
    let trimmed = path.trim_end_matches('/');
    let inner = trimmed.strip_prefix("/v1/v1/").or(trimmed.strip_prefix("/v1/"));
    let rest = inner.or(trimmed.strip_prefix('/'))?;
    let is_model = rest
        .strip_prefix("models/")
        .is_some_and(|name| !name.is_empty() && !name.contains('/'));
    let meant = format!("/v1/{rest}");
    let known = is_model || matches!(rest, "embeddings" | "search" | "classify" | "index" | "models");
    (known && meant != path).then_some(meant)
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
            Self::AnswerTooLong { param, .. } => Some(*param),
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
            Self::Encoded(_) => {
                headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_nearly_right_is_named() {
        for (path, expected) in [
            ("/v1/embeddings/", Some("/v1/embeddings")),
            ("/v1/v1/embeddings", Some("/v1/embeddings")),
            ("/embeddings", Some("/v1/embeddings")),
            ("/models/scenes", Some("/v1/models/scenes")),
            ("/v1/models/other", None),
            ("/v1/chat/completions", None),
            ("/models/base/config.json", None),
            ("/", None),
        ] {
            assert_eq!(meant(path).as_deref(), expected, "{path}");
        }
    }
}
