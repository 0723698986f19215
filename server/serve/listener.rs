//! Connections: how they are taken, how long they may do nothing, and how they end.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::Request;
use axum::http::header::{CONNECTION, HeaderValue};
use axum::response::IntoResponse;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::connections::{Connection, Connections};
use super::error::ApiError;
use super::http;
use super::metrics::Metrics;

/// A request's head has to fit in this.
const HEAD: usize = 64 << 10;
/// After a failure to take a connection, such as of too many open files.
const PAUSE: Duration = Duration::from_millis(50);
/// For a head that is on its way when the server is to stop.
const LAST_HEAD: Duration = Duration::from_secs(1);

pub struct Options {
    /// Requests that are worked on at a time, each on a connection of its own.
    pub places: usize,
    /// Connections beside these.
    pub spare: usize,
    /// For a request's head to arrive, and for the next request on a connection.
    pub idle: Duration,
    /// How a client has to take what it is sent.
    pub taking: Taking,
    /// For requests to end once the server is to stop.
    pub drain: Duration,
}

/// How a client has to take an answer.
#[derive(Debug, Clone, Copy)]
pub struct Taking {
    /// Without a byte.
    pub stall: Duration,
    /// After `stall`, so many bytes a second on average.
    pub rate: u32,
    /// All of it. A file is many answers in this: what is read of it at a time.
    pub total: Duration,
}

impl Taking {
    /// When it is too late, for an answer that was begun at `since`, of which `bytes` were taken, the last at
    /// `last`.
    fn deadline(&self, since: Instant, last: Instant, bytes: u64) -> Instant {
        let by_rate = self.stall + Duration::from_secs_f64(bytes as f64 / f64::from(self.rate));
        (last + self.stall).min(since + by_rate.min(self.total))
    }
}

/// Serves until `stop` is done, then lets what was begun end. Returns whether all of it did in time.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    metrics: Arc<Metrics>,
    options: &Options,
    stop: impl Future<Output = ()>,
) -> bool {
    let graceful = GracefulShutdown::new();
    let connections = Connections::new(options.places, options.spare, options.idle);
    let mut stop = std::pin::pin!(stop);
    loop {
        let next = async {
            let accepted = listener.accept().await;
            match accepted {
                Ok((stream, _)) => Ok((stream, connections.open().await)),
                Err(error) => Err(error),
            }
        };
        let next = tokio::select! {
            () = &mut stop => break,
            next = next => next,
        };
        let (stream, connection) = match next {
            Ok((stream, connection)) => (stream, Arc::new(connection)),
            Err(error) => {
                tracing::warn!(error = error.to_string(), "taking a connection");
                sleep(PAUSE).await;
                continue;
            }
        };
        // A response is one write: waiting for more to send with it would only delay it.
        let _ = stream.set_nodelay(true);
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(options.idle)
            .max_buf_size(HEAD)
            .serve_connection(
                TokioIo::new(Socket::new(stream, connection.clone(), options.taking)),
                answer(router.clone(), connection.clone(), metrics.clone()),
            );
        let served = graceful.watch(served);
        let metrics = metrics.clone();
        metrics.connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = served => ended,
                () = connection.closed() => Ok(()),
            };
            if let Err(error) = ended {
                tracing::debug!(error = error.to_string(), "connection");
            }
            metrics.connections.fetch_sub(1, Ordering::Relaxed);
            drop(connection);
        });
    }
    // From here on new connections are refused.
    drop(listener);
    let heads = async {
        sleep(LAST_HEAD).await;
        connections.close_idle();
        std::future::pending().await
    };
    tokio::select! {
        ended = timeout(options.drain, graceful.shutdown()) => ended.is_ok(),
        () = heads => false,
    }
}

/// Answers the requests of a connection by the router, each when it has its place.
fn answer(
    router: Router,
    connection: Arc<Connection>,
    metrics: Arc<Metrics>,
) -> impl Service<
    Request<Incoming>,
    Response = axum::response::Response,
    Error = Infallible,
    Future = impl Future<Output = Result<axum::response::Response, Infallible>> + Send,
> {
    service_fn(move |mut request: Request<Incoming>| {
        let (router, connection, metrics) = (router.clone(), connection.clone(), metrics.clone());
        async move {
            let response = match connection.begin(http::is_probe(&request)).await {
                Ok(()) => {
                    http::complete(&mut request);
                    TowerToHyperService::new(router).call(request).await?
                }
                Err(_) => {
                    let busy = ApiError::Busy {
                        what: "requests",
                        seconds: 1,
                    };
                    metrics.request("none", busy.status().as_u16(), Duration::ZERO, Some(busy.code()));
                    let mut response = busy.into_response();
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(CONNECTION, close);
                    response
                }
            };
            Ok(response.map(|body| Body::new(Watched { body, connection })))
        }
    })
}

/// An answer's body that tells its connection when it has been handed over.
struct Watched {
    body: Body,
    connection: Arc<Connection>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.connection.answered();
    }
}

/// A connection that fails when the client takes what it is sent too slowly, so that nobody holds a
/// response's memory by not reading it.
struct Socket {
    stream: TcpStream,
    connection: Arc<Connection>,
    taking: Taking,
    /// What is being written, until all that was handed over is.
    sending: Option<Sending>,
}

struct Sending {
    since: Instant,
    last: Instant,
    bytes: u64,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    fn new(stream: TcpStream, connection: Arc<Connection>, taking: Taking) -> Self {
        Self {
            stream,
            connection,
            taking,
            sending: None,
        }
    }

    fn watch(&mut self, context: &mut Context<'_>, poll: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let now = Instant::now();
        let sending = self.sending.get_or_insert_with(|| Sending {
            since: now,
            last: now,
            bytes: 0,
            timer: None,
        });
        let deadline = self.taking.deadline(sending.since, sending.last, sending.bytes);
        let late = || Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        match poll {
            Poll::Ready(Ok(bytes)) => {
                sending.bytes += bytes as u64;
                sending.last = now;
                // A client that takes a little now and then never lets the timer end.
                if now >= deadline { late() } else { poll }
            }
            Poll::Ready(Err(_)) => poll,
            Poll::Pending => {
                let timer = sending
                    .timer
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
                if timer.deadline() != deadline {
                    timer.as_mut().reset(deadline);
                }
                match timer.as_mut().poll(context) {
                    Poll::Ready(()) => late(),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.watch(context, poll)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.stream).poll_write_vectored(context, pieces);
        this.watch(context, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// HTTP asks for this when it has written all that it holds.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.stream).poll_flush(context);
        if let Poll::Ready(Ok(())) = poll {
            this.sending = None;
            this.connection.flushed();
        }
        poll
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_in_time() {
        let taking = Taking {
            stall: Duration::from_secs(10),
            rate: 1000,
            total: Duration::from_secs(60),
        };
        let since = Instant::now();
        let after = |seconds: u64| since + Duration::from_secs(seconds);
        // Nothing was taken yet, a little was taken late, and it comes along at the rate that it has to.
        assert_eq!(taking.deadline(since, since, 0), after(10));
        assert_eq!(taking.deadline(since, after(9), 1000), after(11));
        assert_eq!(taking.deadline(since, after(20), 25_000), after(30));
        assert_eq!(taking.deadline(since, after(55), 1 << 30), after(60));
    }
}
