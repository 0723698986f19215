//! Fetching one file over HTTP, so that a break costs no more than what had not arrived.
//!
//! The file grows as `<target>.part`. Where the server names the version it sends (a strong ETag or
//! a Last-Modified), `<target>.part.json` remembers that, and the next attempt, in this run or a
//! later one, asks for the rest of that version alone. A server that has another version by then,
//! or that cannot send a part, sends the whole, and the download starts over by itself. So it does where a
//! server sends a part all the same that is not of this version, or does not say of which it is.
//!
//! ```no_run
//! use ernie_vil::native::download::Download;
//! # fn main() -> ernie_vil::native::Result<()> {
//! let mut download = Download::new("https://example.org/model/config.json", "model/config.json");
//! download.max_bytes = 1 << 20;
//! download.use_proxy_of_environment();
//! let done = download.run(&())?;
//! println!("{} bytes, {} of them fetched earlier, sha256 {}", done.bytes, done.resumed, done.sha256);
//! # Ok(())
//! # }
//! ```

mod part;
mod source;
#[cfg(test)]
mod tests;

use std::io::Read;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use ureq::Agent;
use ureq::http::{StatusCode, header};
use ureq::tls::TlsConfig;

use super::error::{Context, bail, refused};
use super::progress::Progress;
use super::sums::{self, Seen};
use super::{Error, Result};
use part::Part;
use source::{Source, text};

/// A file has at most this many bytes, unless told otherwise: 4 GiB.
const MAX_BYTES: u64 = 4 << 30;
/// As many of the first bytes are shown to [`Download::check_start`].
const START_BYTES: usize = 512;
/// Whenever this much more has arrived than ever before, earlier failures are forgotten: a long
/// download over a poor line goes on, and a server that sends nothing new is given up.
const WORTH_BYTES: u64 = 1 << 20;
/// The pause between two attempts doubles up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// One response takes at most this long, whatever it sends.
const LONGEST_RESPONSE: Duration = Duration::from_secs(4 * 60 * 60);
const MAX_REDIRECTS: u32 = 5;
const BUFFER_BYTES: usize = 256 << 10;

/// A file to fetch.
#[derive(Debug, Clone)]
pub struct Download {
    /// `http://` or `https://`.
    pub url: String,
    /// Where the file goes; what lies there is replaced when the new one is complete.
    pub target: PathBuf,
    /// The whole file's SHA-256 in hexadecimal, where it is known.
    pub expected_sha256: Option<String>,
    /// What the same address gave before: something else is refused.
    pub seen: Option<Seen>,
    /// A larger file is refused.
    pub max_bytes: u64,
    /// Looks at the first 512 bytes (or all, where there are fewer) and says what is wrong with
    /// them: an error page must not pass for weights.
    pub check_start: fn(&[u8]) -> Result<(), String>,
    /// Failures in a row after which it is given up.
    pub attempts: u32,
    /// The pause after the first failure; it doubles with each further one.
    pub pause: Duration,
    /// Silence for this long is a broken connection.
    pub silence: Duration,
    proxy: Option<ureq::Proxy>,
    /// Whose certificates are accepted.
    tls: TlsConfig,
}

/// A file that was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downloaded {
    /// The file's size.
    pub bytes: u64,
    /// The whole file's SHA-256 in lower-case hexadecimal.
    pub sha256: String,
    /// How many of the bytes an earlier run had fetched.
    pub resumed: u64,
    /// The version that the server named, where it did.
    pub etag: Option<String>,
    /// Since when the server had it, where it said so.
    pub last_modified: Option<String>,
}

impl Download {
    /// A download with the usual limits, no expectation of the contents, and no proxy.
    pub fn new(url: impl Into<String>, target: impl Into<PathBuf>) -> Self {
        Self {
            url: url.into(),
            target: target.into(),
            expected_sha256: None,
            seen: None,
            max_bytes: MAX_BYTES,
            check_start: |_| Ok(()),
            attempts: 6,
            pause: Duration::from_secs(1),
            silence: Duration::from_secs(60),
            proxy: None,
            tls: TlsConfig::default(),
        }
    }

    /// Goes by the proxy that the environment names (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY` and so on).
    pub fn use_proxy_of_environment(&mut self) {
        self.proxy = ureq::Proxy::try_from_env();
    }

    /// Fetches the file. What has arrived stays for the next run where this one fails. The calling thread
    /// waits between two attempts.
    ///
    /// # Errors
    /// Names the URL. Broken connections, silence and the statuses 408, 429 and 5xx are tried
    /// again; another status, a file that is too large, whose start is wrong or whose SHA-256 is
    /// another, a redirect from `https://` to `http://`, and a full disk are errors at once.
    pub fn run(&self, progress: &dyn Progress) -> Result<Downloaded> {
        self.fetch(progress)
            .with_context(|| format!("downloading {}", self.url))
    }

    fn fetch(&self, progress: &dyn Progress) -> Result<Downloaded> {
        if let Some(sha256) = &self.expected_sha256
            && (sha256.len() != 64 || !sha256.bytes().all(|digit| digit.is_ascii_hexdigit()))
        {
            bail!("the expected SHA-256 is {sha256:?}, not 64 hexadecimal digits");
        }
        let agent = self.agent();
        let mut part = Part::open(self)?;
        let mut mark = part.length;
        let mut failures = 0;
        loop {
            let problem = match self.attempt(&agent, &mut part, progress) {
                Ok(()) => {
                    let resumed = part.resumed;
                    match part.check(self) {
                        Ok(sha256) => {
                            let bytes = part.length;
                            let source = part.commit()?;
                            return Ok(Downloaded {
                                bytes,
                                sha256,
                                resumed,
                                etag: source.etag,
                                last_modified: source.last_modified,
                            });
                        }
                        Err(problem) => {
                            part.restart()?;
                            // What an earlier run left may have been damaged since: once more
                            // without it.
                            if resumed == 0 {
                                return Err(problem);
                            }
                            problem
                        }
                    }
                }
                Err(Failure::Lasting(problem)) => return Err(problem),
                Err(Failure::Passing(problem)) => problem,
            };
            if part.length >= mark.saturating_add(WORTH_BYTES) {
                mark = part.length;
                failures = 0;
            }
            failures += 1;
            if failures >= self.attempts {
                return Err(problem.context(format!("given up, attempt {failures} of {}", self.attempts)));
            }
            let pause = self
                .pause
                .saturating_mul(1 << (failures - 1).min(16))
                .min(LONGEST_PAUSE);
            progress.note(&format!("({problem:#}; trying again in {} s)", pause.as_secs()));
            sleep(pause);
            progress.note("");
        }
    }

    fn agent(&self) -> Agent {
        Agent::config_builder()
            .proxy(self.proxy.clone())
            .tls_config(self.tls.clone())
            // What was asked for by https is not taken by http, wherever the server points.
            .https_only(self.is_https())
            .http_status_as_error(false)
            .max_redirects(MAX_REDIRECTS)
            // A connection kept for later may be dead by then.
            .max_idle_connections(0)
            // Offsets and lengths are those of the file, not of a compressed form of it.
            .accept_encoding("identity")
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(self.silence))
            .timeout_recv_response(Some(self.silence))
            .timeout_per_read(Some(self.silence))
            .timeout_recv_body(Some(LONGEST_RESPONSE))
            .build()
            .into()
    }

    /// Whether nobody on the way can read or change the file.
    pub fn is_https(&self) -> bool {
        let scheme = self.url.get(..8);
        scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
    }

    /// That the address gave another file before.
    fn changed(&self, seen: &Seen, found: &str) -> Error {
        Error::Changed(format!(
            "the file has changed since {}: it had {} bytes and the SHA-256 {}, now it has {found}. Either its publisher \
             has replaced it, or somebody on the way has",
            sums::day(seen.first_seen),
            seen.size,
            seen.sha256
        ))
    }

    /// Asks once for what is missing and takes what comes.
    fn attempt(&self, agent: &Agent, part: &mut Part, progress: &dyn Progress) -> Result<(), Failure> {
        if part.is_complete() {
            return Ok(());
        }
        let mut request = agent.get(&self.url);
        let mut ranged = false;
        if let (1.., Some(version)) = (part.length, part.source.version()) {
            request = request
                .header(header::RANGE, format!("bytes={}-", part.length))
                .header(header::IF_RANGE, version);
            ranged = true;
        }
        let mut response = request.call().map_err(Failure::of_request)?;
        match response.status() {
            StatusCode::OK => {
                part.start(Source::new(&self.url, &response), self)?;
            }
            StatusCode::PARTIAL_CONTENT if ranged => match part.source.continued(part.length, &response) {
                Ok(whole) => part.source.length = whole,
                Err(problem) => {
                    part.restart()?;
                    return Err(Failure::Passing(refused!("{problem}")));
                }
            },
            StatusCode::RANGE_NOT_SATISFIABLE if ranged => {
                part.restart()?;
                return Err(Failure::Passing(refused!(
                    "the server's file is shorter than what had arrived"
                )));
            }
            status => return Err(Failure::of_status(status)),
        }
        if let Some(encoding) =
            text(response.headers(), header::CONTENT_ENCODING).filter(|name| name != "identity")
        {
            part.restart()?;
            return Err(Failure::Lasting(refused!(
                "the server sent it compressed ({encoding}), unasked"
            )));
        }
        progress.set_total(part.source.length);
        progress.start_at(part.length);
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = body.read(&mut buffer).map_err(|error| {
                let of = part
                    .source
                    .length
                    .map(|length| format!(" of {length}"))
                    .unwrap_or_default();
                let error = Error::from(error);
                Failure::Passing(error.context(format!("broke off after {}{of} bytes", part.length)))
            })?;
            if read == 0 {
                break;
            }
            part.append(&buffer[..read], self)?;
            progress.add(read as u64);
        }
        match part.source.length {
            Some(length) if part.length < length => Err(Failure::Passing(refused!(
                "ended after {} of {length} bytes",
                part.length
            ))),
            _ => Ok(()),
        }
    }
}

/// Why an attempt failed.
enum Failure {
    /// Worth another attempt.
    Passing(Error),
    /// The same would happen again.
    Lasting(Error),
}

impl Failure {
    fn of_request(error: ureq::Error) -> Self {
        use std::io::ErrorKind::{InvalidData, InvalidInput};
        let passing = match &error {
            // A certificate that is not accepted comes as invalid data.
            ureq::Error::Io(error) => !matches!(error.kind(), InvalidData | InvalidInput),
            ureq::Error::Timeout(_)
            | ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::ConnectProxyFailed(_)
            | ureq::Error::Protocol(_) => true,
            _ => false,
        };
        if let ureq::Error::RequireHttpsOnly(url) = &error {
            return Self::Lasting(refused!(
                "the server redirects from https to {url}, where anybody on the way could change the file: refused"
            ));
        }
        let error = Error::Http(Box::new(error));
        match passing {
            true => Self::Passing(error),
            false => Self::Lasting(error),
        }
    }

    fn of_status(status: StatusCode) -> Self {
        let error = refused!("the server answered {status}");
        match status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Self::Passing(error),
            status if status.is_server_error() => Self::Passing(error),
            _ => Self::Lasting(error),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Lasting(error)
    }
}
