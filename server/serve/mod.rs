//! `ernie-vil serve`: the model over HTTP.
//!
//! Three layers that know nothing of each other's insides: HTTP ([`http`], [`listener`] with [`descriptors`], [`files`], with bodies read by
//! [`request`]), the batching [`queue`], and the model ([`engine`]). [`service`] is where they meet, with the index
//! that is kept by [`store`].

mod descriptors;
mod engine;
mod error;
mod files;
mod http;
mod listener;
mod metrics;
mod openapi;
mod queue;
mod request;
mod service;
mod store;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use ernie_vil::image::Limits;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tracing::level_filters::LevelFilter;

use crate::cli::{self, LogFormat};
use crate::model::{self, Model};
use engine::{CAPTIONS, Engine, IMAGES, LANES};
use files::Folder;
use http::App;
use metrics::Metrics;
use queue::{LaneOptions, Queue};
use service::Service;
use store::Store;

/// Where the demo page is looked for, where nothing is said.
const WEB_ROOT: &str = "www/dist";
/// Threads that read and write connections; the work is done elsewhere.
const MOST_SERVING: usize = 4;

pub fn run(args: &cli::Serve, global: &cli::Global) -> Result<()> {
    start_log(args.log_format, global.quiet);
    let lanes = lanes(args)?;
    let threads = rayon::current_num_threads();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("decode {i}"))
        .panic_handler(|_| tracing::error!("a fault while a request was prepared"))
        .build()
        .context("starting the threads")?;
    let (pool, metrics) = (Arc::new(pool), Arc::new(Metrics::new()));
    let app = Arc::new(App::new(
        http_options(args)?,
        metrics.clone(),
        pool.clone(),
        args.max_buffered as usize,
    ));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.min(MOST_SERVING))
        .enable_all()
        .build()
        .context("starting the server")?;
    let listener = runtime
        .block_on(TcpListener::bind(&args.listen))
        .with_context(|| format!("listening on {}", args.listen))?;
    let address = listener.local_addr().context("the address")?;
    // The first line, by which a program that started this one learns the port.
    println!("listening on http://{address}");
    std::io::stdout().flush().context("standard output")?;

    let (failed, failure) = oneshot::channel();
    let loader = load(args, global, app.clone(), pool, lanes, failed)?;
    let options = listener::Options {
        most: descriptors::connections(args.max_connections as usize),
        idle: seconds(args.read_timeout),
        drain: seconds(args.drain),
    };
    let mut load_error = None;
    let stop = async {
        tokio::select! {
            () = signal() => tracing::info!("stopping: requests that were begun are finished"),
            error = failed_load(failure, &app) => load_error = Some(error),
        }
        app.stop();
        // Whoever asks again does not want to wait.
        tokio::spawn(async {
            signal().await;
            std::process::exit(1);
        });
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
    for worker in workers {
        let _ = worker.join();
    }
    service.store.close();
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

fn http_options(args: &cli::Serve) -> Result<http::Options> {
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
        max_pixels: args.max_pixels,
        timeout: seconds(args.timeout),
        read_timeout: seconds(args.read_timeout),
        api_keys: args.api_key.iter().map(|key| key.trim().to_owned()).collect(),
        cors_origins: args.cors_origin.clone(),
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
    pool: Arc<rayon::ThreadPool>,
    lanes: [LaneOptions; LANES],
    failed: oneshot::Sender<anyhow::Error>,
) -> Result<JoinHandle<Workers>> {
    let (folder, devices) = (args.model.clone(), args.device.each());
    // What is to be known of the model is in the log.
    let global = cli::Global {
        quiet: true,
        ..*global
    };
    let limits = Limits {
        max_bytes: args.max_body as usize,
        max_pixels: args.max_pixels,
    };
    let max_wait = Duration::from_secs_f64(args.max_wait / 1e3);
    let index = store::Options {
        path: args.index.clone(),
        dtype: args.index_type.map(Into::into),
        most: args.max_index,
    };
    let task = move || -> Result<Workers> {
        let start = Instant::now();
        let engine = Engine::new(Model::load(&folder, &devices, &global)?, limits);
        let config = engine.config();
        let store = Store::open(index, config.image.width(), &config.fingerprint)?;
        let service = Arc::new(Service {
            adapter: devices.iter().find_map(|args| model::adapter(args.device)),
            engine,
            queue: Queue::new(&lanes, max_wait),
            store,
            metrics: app.metrics.clone(),
            looking: Semaphore::new(pool.current_num_threads()),
            pool,
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

/// Ends when the process is asked to stop.
async fn signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}
