//! `ernie-vil serve`: the model over HTTP.
//!
//! Three layers that know nothing of each other's insides: HTTP ([`http`], [`listener`] with [`connections`]
//! and [`descriptors`], [`hosts`],
//! [`files`], with bodies read by [`request`]), the batching [`queue`] behind the threads for [`decoding`], and the model ([`engine`]).
//! [`service`] is where they meet, with the index that is kept by [`store`] and the [`labels`] that were asked for of late. [`memory`]
//! is what requests and answers share.

mod connections;
mod decoding;
mod descriptors;
mod engine;
mod error;
mod files;
mod hosts;
mod http;
mod labels;
mod lanes;
mod listener;
mod memory;
mod metrics;
mod openapi;
mod queue;
mod request;
mod service;
mod store;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tracing::level_filters::LevelFilter;

use crate::cli::{self, LogFormat};
use crate::print::{self, outln};
use crate::{builtin, images};
use decoding::Decoders;
use engine::Engine;
use files::Folder;
use hosts::Hosts;
use http::App;
use labels::Labels;
use lanes::{CAPTIONS, IMAGES, LANES};
use listener::Taking;
use memory::Memory;
use metrics::Metrics;
use queue::{LaneOptions, Queue};
use service::Service;
use store::Store;

/// Where the demo page is looked for, where nothing is said.
const WEB_ROOT: &str = "www/dist";
/// Threads that read and write connections; the work is done elsewhere.
const MOST_SERVING: usize = 4;

/// For the index to be saved when the server has stopped. Nothing is lost where that is too short: the log
/// has it all.
const SAVING: Duration = Duration::from_secs(60);
/// For the threads that compute to end after that.
const ENDING: Duration = Duration::from_secs(5);

/// Threads that compute beside the model's: each kind of work has its own, so that none of it waits for
/// another.
struct Threads {
    /// For searches.
    search: Arc<rayon::ThreadPool>,
    /// For reading bodies and putting answers together.
    texts: Arc<rayon::ThreadPool>,
    decoders: Decoders,
}

impl Threads {
    fn start(count: usize) -> Result<Self> {
        let pool = |name: &'static str| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(count)
                .thread_name(move |i| format!("{name} {i}"))
                .panic_handler(|_| tracing::error!("a fault while a request was worked on"))
                .build();
            pool.map(Arc::new).context("starting the threads")
        };
        Ok(Self {
            search: pool("search")?,
            texts: pool("texts")?,
            decoders: Decoders::new(count).context("starting the threads")?,
        })
    }
}

pub fn run(args: &cli::Serve, global: &cli::Global) -> Result<()> {
    start_log(args.log_format, global.quiet);
    let lanes = lanes(args)?;
    let count = rayon::current_num_threads();
    let (threads, metrics) = (Threads::start(count)?, Arc::new(Metrics::new()));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(count.min(MOST_SERVING))
        .enable_all()
        .build()
        .context("starting the server")?;
    let listener = runtime
        .block_on(TcpListener::bind(&args.listen))
        .with_context(|| format!("listening on {}", args.listen))?;
    let address = listener.local_addr().context("the address")?;
    check_key(args, address)?;
    let app = Arc::new(App::new(
        http_options(args, address)?,
        metrics.clone(),
        threads.texts.clone(),
        Arc::new(Memory::new(args.max_buffered as usize, args.max_answer as usize)),
    ));
    let stopped = signals()?;
    // The first line, by which a program that started this one learns the port.
    let said = outln!("listening on http://{address}").and_then(|()| print::flush());
    // Where nobody reads that any more the server is of use all the same.
    if said.as_ref().is_err_and(|error| !error.is::<print::Closed>()) {
        return said;
    }

    let (failed, failure) = oneshot::channel();
    let loader = load(args, global, app.clone(), threads, lanes, failed)?;
    let most = args.max_connections as usize;
    let (places, spare) = descriptors::connections(most, connections::spare(most));
    let options = listener::Options {
        places,
        spare,
        idle: seconds(args.read_timeout),
        taking: Taking {
            stall: seconds(args.read_timeout),
            rate: u32::try_from(args.min_rate).unwrap_or(u32::MAX),
            total: seconds(args.answer_timeout),
        },
        drain: seconds(args.drain),
    };
    let mut load_error = None;
    let stop = async {
        tokio::select! {
            _ = stopped => tracing::info!("stopping: requests that were begun are finished"),
            error = failed_load(failure, &app) => load_error = Some(error),
        }
        app.stop();
    };
    let drained = runtime.block_on(async {
        let router = http::router(app.clone());
        listener::serve(listener, router, metrics, &options, stop).await
    });
    if !drained {
        tracing::warn!("requests were broken off that took longer than --drain");
    }
    runtime.shutdown_background();
    if let Some(error) = load_error {
        return Err(error);
    }
    let Some(service) = app.loaded() else {
        // Loading is not waited for: no request was served, and opening an index changes no record of it that is whole.
        return Ok(());
    };
    let workers = loader.join().map_err(|_| anyhow!("loading the model failed"))?;
    service.queue.close();
    // First what is to be kept. Neither that nor the end of the process waits for a thread that computes:
    // what was asked for is given up, and an image that is decoded for ever is nobody's.
    let store = service.clone();
    let saved = within(SAVING, move || store.store.close());
    let ended = within(ENDING, move || {
        for worker in workers {
            let _ = worker.join();
        }
    });
    if !ended {
        tracing::warn!("what was still being computed is given up");
    }
    if !saved {
        bail!(
            "the index was not saved within {} s; nothing is lost, as its log has every change",
            SAVING.as_secs()
        );
    }
    Ok(())
}

/// Does a task on a thread of its own. Returns whether it has ended in time.
fn within(time: Duration, task: impl FnOnce() + Send + 'static) -> bool {
    let (done, ended) = std::sync::mpsc::channel();
    let thread = thread::Builder::new().name("stopping".into()).spawn(move || {
        task();
        let _ = done.send(());
    });
    thread.is_ok() && ended.recv_timeout(time).is_ok()
}

/// Refuses to be open to everybody unless that was said.
fn check_key(args: &cli::Serve, address: SocketAddr) -> Result<()> {
    if !args.api_key.is_empty() || address.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    ensure!(
        args.no_api_key,
        "listening on {address} without a key: everyone who reaches this address could use the server and change its index. Give \
         --api-key (ERNIE_VIL_API_KEY), listen on 127.0.0.1, or say --no-api-key (ERNIE_VIL_NO_API_KEY=1) where that is meant"
    );
    tracing::warn!(
        "listening on {address} without a key (--no-api-key): everyone who reaches this address can use the server and change its \
         index"
    );
    Ok(())
}

/// Why loading failed, once it has.
async fn failed_load(failure: oneshot::Receiver<anyhow::Error>, app: &App) -> anyhow::Error {
    match failure.await {
        Ok(error) => error,
        Err(_) if app.loaded().is_none() => anyhow!("loading the model failed"),
        Err(_) => std::future::pending().await,
    }
}

fn start_log(format: LogFormat, quiet: bool) {
    let level = if quiet {
        LevelFilter::WARN
    } else {
        LevelFilter::INFO
    };
    let log = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        // Where standard error is closed or full, telling so there would end the thread.
        .log_internal_errors(false)
        .with_target(false);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

fn seconds(number: u32) -> Duration {
    Duration::from_secs(number.into())
}

fn lanes(args: &cli::Serve) -> Result<[LaneOptions; LANES]> {
    ensure!(
        args.queue >= args.max_items,
        "--queue is {}, expected at least --max-items, {}: a full request would never find room",
        args.queue,
        args.max_items
    );
    let capacity = args.queue as usize;
    let mut lanes = [LaneOptions { capacity, batch: 1 }; LANES];
    lanes[CAPTIONS].batch = args.caption_batch as usize;
    lanes[IMAGES].batch = args.image_batch as usize;
    Ok(lanes)
}

fn http_options(args: &cli::Serve, address: SocketAddr) -> Result<http::Options> {
    let folder = |path: &PathBuf| Folder::open(path).with_context(|| path.display().to_string());
    let default_root = PathBuf::from(WEB_ROOT);
    let web_root = match &args.web_root {
        Some(path) => Some(folder(path)?),
        None => Folder::open(&default_root).ok(),
    };
    ensure!(
        args.api_key.iter().all(|key| !key.trim().is_empty()),
        "--api-key is empty, expected a key"
    );
    for origin in &args.cors_origin {
        let is_origin = origin == "*"
            || origin
                .split_once("://")
                .is_some_and(|(_, host)| !host.is_empty() && !host.contains(['/', '*', ' ']));
        ensure!(
            is_origin && origin.is_ascii(),
            "--cors-origin is {origin:?}, expected one such as https://example.org, or *"
        );
    }
    Ok(http::Options {
        max_body: args.max_body as usize,
        max_items: args.max_items as usize,
        max_text: args.max_text as usize,
        max_prompts: args.max_prompts as usize,
        max_pixels: args.max_pixels,
        timeout: seconds(args.timeout),
        read_timeout: seconds(args.read_timeout),
        api_keys: args.api_key.iter().map(|key| key.trim().to_owned()).collect(),
        cors_origins: args.cors_origin.clone(),
        hosts: Hosts::new(address, &args.listen, &args.allowed_hosts)?,
        web_root,
        models: args.models_dir.as_ref().map(folder).transpose()?,
        web_root_hint: args.web_root.clone().unwrap_or(default_root),
    })
}

/// The threads that compute, once there are any.
type Workers = Vec<JoinHandle<()>>;

/// Loads the model and the index on a thread of its own: meanwhile the server says that it is alive.
fn load(
    args: &cli::Serve,
    global: &cli::Global,
    app: Arc<App>,
    threads: Threads,
    lanes: [LaneOptions; LANES],
    failed: oneshot::Sender<anyhow::Error>,
) -> Result<JoinHandle<Workers>> {
    let (folder, devices) = (args.model.clone(), args.device.each());
    // What is to be known of the model is in the log.
    let global = cli::Global {
        quiet: true,
        ..*global
    };
    let limits = images::server_limits(args);
    let max_wait = Duration::from_secs_f64(args.max_wait / 1e3);
    let index = store::Options {
        path: args.index.clone(),
        dtype: args.index_type.map(Into::into),
        limits: store::Limits {
            embeddings: args.max_index,
            id_bytes: args.max_ids as usize,
        },
        salvage: args.salvage_index,
    };
    let task = move || -> Result<Workers> {
        let start = Instant::now();
        let engine = Engine::new(builtin::load(&folder, &devices, &global)?, limits);
        let config = engine.config();
        let store = Store::open(index, config.image.width(), &config.fingerprint)?;
        let labels = Labels::new(config.text.width);
        let service = Arc::new(Service {
            adapter: devices.iter().find_map(|options| options.device.adapter()),
            engine,
            queue: Queue::new(&lanes, max_wait),
            store,
            metrics: app.metrics.clone(),
            decoders: threads.decoders,
            looking: Arc::new(Semaphore::new(threads.search.current_num_threads())),
            pool: threads.search,
            texts: threads.texts,
            memory: app.memory.clone(),
            labels,
        });
        // Each worker warms up for itself: a card's memory belongs to the thread that uses it.
        let (warm, warmed) = std::sync::mpsc::channel();
        let worker = |device: usize| {
            let (service, warm) = (service.clone(), warm.clone());
            let name = format!("model {device}");
            std::thread::Builder::new().name(name).spawn(move || {
                let done = service.engine.warm_up(device, &lanes);
                let is_ready = done.is_ok();
                let _ = warm.send(done);
                drop(warm);
                if is_ready {
                    service.queue.work(&*service.metrics, |_, batch| {
                        let computed = service.engine.compute(device, &batch);
                        computed.map_err(|error| format!("{error:#}"))
                    });
                }
            })
        };
        let devices = service.engine.devices();
        let workers = (0..devices).map(worker).collect::<Result<_, _>>()?;
        drop(warm);
        for _ in 0..devices {
            // Where one has ended by a fault, its thread has said which.
            warmed
                .recv()
                .context("the model failed while it was warmed up")??;
        }
        let config = service.engine.config();
        tracing::info!(
            model = config.name,
            fingerprint = config.fingerprint,
            note = config.note,
            device = service.engine.device_names(),
            adapter = service.adapter,
            embeddings = service.store.len(),
            seconds = start.elapsed().as_secs_f64(),
            "ready"
        );
        app.ready(service);
        Ok(workers)
    };
    let thread = std::thread::Builder::new()
        .name("loader".into())
        .spawn(move || match task() {
            Ok(workers) => workers,
            Err(error) => {
                // Where nobody listens any more the server has stopped already.
                let _ = failed.send(error);
                Vec::new()
            }
        })?;
    Ok(thread)
}

/// Receives something when the process is asked to stop. Asked again, it ends at once: whoever does that does
/// not want to wait.
///
/// A thread of its own sees to that, which nothing else can hold up.
fn signals() -> Result<oneshot::Receiver<()>> {
    let (first, stopped) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the server")?;
    // From here on signals do not end the process by themselves.
    let signals = runtime.block_on(async { Signals::new() }).context("signals")?;
    let wait = async move {
        let mut signals = signals;
        signals.next().await;
        let _ = first.send(());
        signals.next().await;
        end();
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || runtime.block_on(wait))
        .context("starting the threads")?;
    Ok(stopped)
}

/// Ends the process without anything that could wait for a thread.
fn end() {
    #[cfg(unix)]
    // SAFETY: the call ends the process, and touches no memory of it.
    unsafe {
        libc::_exit(1)
    }
    #[cfg(not(unix))]
    std::process::exit(1)
}

/// What asks the process to stop.
#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}
