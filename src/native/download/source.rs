//! What a server says of the file that it sends: which version it is, and which part of it.

use serde::{Deserialize, Serialize};
use ureq::Body;
use ureq::http::Response;
use ureq::http::header::{self, HeaderMap, HeaderName};

/// Which version of which file is being fetched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Source {
    pub(super) url: String,
    pub(super) length: Option<u64>,
    pub(super) etag: Option<String>,
    pub(super) last_modified: Option<String>,
}

impl Source {
    pub(super) fn new(url: &str, response: &Response<Body>) -> Self {
        Self {
            url: url.to_owned(),
            length: response.body().content_length(),
            etag: text(response.headers(), header::ETAG),
            last_modified: text(response.headers(), header::LAST_MODIFIED),
        }
    }

    /// The length of the whole file of which a part has come, where it is the part of this version from
    /// `first` on.
    ///
    /// Not every server knows If-Range, and one that does not sends a part of whatever it has. So the part
    /// itself has to say of which version it is.
    pub(super) fn continued(
        &self,
        first: u64,
        response: &Response<Body>,
    ) -> Result<Option<u64>, &'static str> {
        let headers = response.headers();
        let Some(range) = content_range(headers).filter(|range| range.first == first) else {
            return Err("the server sent another part than the one asked for");
        };
        let pairs = [
            (&self.etag, text(headers, header::ETAG)),
            (&self.last_modified, text(headers, header::LAST_MODIFIED)),
        ];
        let mut is_named = false;
        for (known, found) in pairs {
            if let (Some(known), Some(found)) = (known, found) {
                if *known != found {
                    return Err("the server sent a part of another version");
                }
                is_named = true;
            }
        }
        if !is_named {
            return Err("the server sent a part and does not say of which version");
        }
        let whole = range.whole.or(self.length);
        let fits = range.last.is_none_or(|last| {
            let length = last.checked_sub(first).and_then(|length| length.checked_add(1));
            let sent = response.body().content_length();
            length.is_some_and(|length| sent.is_none_or(|sent| sent == length))
                && whole.is_none_or(|whole| last < whole)
        });
        match fits && self.length.is_none_or(|length| whole == Some(length)) {
            true => Ok(whole),
            false => Err("the server sent a part of a file of another length"),
        }
    }

    /// What names the version in If-Range, where a weak ETag is not allowed.
    pub(super) fn version(&self) -> Option<&str> {
        let strong = self.etag.as_deref().filter(|etag| etag.starts_with('"'));
        strong.or(self.last_modified.as_deref())
    }
}

pub(super) fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// A `Content-Range: bytes 5-9/10`.
struct ContentRange {
    first: u64,
    /// Where it can be read; what counts is where the part begins.
    last: Option<u64>,
    /// The length of the whole, `None` for `*`.
    whole: Option<u64>,
}

fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    let range = text(headers, header::CONTENT_RANGE)?;
    let (bytes, whole) = range.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = bytes.split_once('-')?;
    Some(ContentRange {
        first: first.parse().ok()?,
        last: last.parse().ok(),
        whole: match whole {
            "*" => None,
            whole => Some(whole.parse().ok()?),
        },
    })
}
