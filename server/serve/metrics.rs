//! Counters and histograms in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::lanes::{LANES, lane_name};
use super::queue::Observer;

/// Upper ends of the classes of times, in seconds.
const TIMES: [f64; 16] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Upper ends of the classes of batch sizes.
const SIZES: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

pub struct Histogram {
    ends: &'static [f64],
    /// One more than `ends`: what is above the last one.
    counts: Vec<AtomicU64>,
    /// In millionths.
    sum: AtomicU64,
}

impl Histogram {
    fn new(ends: &'static [f64]) -> Self {
        Self {
            ends,
            counts: (0..=ends.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    pub fn observe(&self, value: f64) {
        let class = self.ends.partition_point(|&end| end < value);
        self.counts[class].fetch_add(1, Ordering::Relaxed);
        self.sum
            .fetch_add((value * 1e6).round() as u64, Ordering::Relaxed);
    }

    pub fn time(&self, time: Duration) {
        self.observe(time.as_secs_f64());
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut total = 0;
        for (end, count) in self.ends.iter().zip(&self.counts) {
            total += count.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{end}\"}} {total}");
        }
        total += self.counts[self.ends.len()].load(Ordering::Relaxed);
        let braces = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{labels}}}")
        };
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {total}");
        let _ = writeln!(
            out,
            "{name}_sum{braces} {}",
            self.sum.load(Ordering::Relaxed) as f64 / 1e6
        );
        let _ = writeln!(out, "{name}_count{braces} {total}");
    }
}

pub struct Metrics {
    /// By path and status; both are of a known few.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    rejections: Mutex<BTreeMap<&'static str, u64>>,
    pub request_time: Histogram,
    pub decode: Histogram,
    pub tokenize: Histogram,
    queue: [Histogram; LANES],
    inference: [Histogram; LANES],
    batch: [Histogram; LANES],
    abandoned: [AtomicU64; LANES],
    /// Open connections.
    pub connections: AtomicU64,
}

/// What is measured when it is asked for.
pub struct Now {
    pub ready: bool,
    pub waiting: [usize; LANES],
    pub buffered: usize,
    pub index: usize,
}

impl Metrics {
    pub fn new() -> Self {
        let times = || Histogram::new(&TIMES);
        Self {
            requests: Mutex::default(),
            rejections: Mutex::default(),
            request_time: times(),
            decode: times(),
            tokenize: times(),
            queue: std::array::from_fn(|_| times()),
            inference: std::array::from_fn(|_| times()),
            batch: std::array::from_fn(|_| Histogram::new(&SIZES)),
            abandoned: std::array::from_fn(|_| AtomicU64::new(0)),
            connections: AtomicU64::new(0),
        }
    }

    /// A request was answered.
    pub fn request(&self, path: &'static str, status: u16, time: Duration, refusal: Option<&'static str>) {
        let locked = self.requests.lock();
        *locked
            .unwrap_or_else(PoisonError::into_inner)
            .entry((path, status))
            .or_default() += 1;
        self.request_time.time(time);
        if let Some(code) = refusal {
            let locked = self.rejections.lock();
            *locked
                .unwrap_or_else(PoisonError::into_inner)
                .entry(code)
                .or_default() += 1;
        }
    }

    pub fn text(&self, now: &Now) -> String {
        let mut out = String::new();
        let head = |out: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        head(
            &mut out,
            "ernie_vil_requests_total",
            "counter",
            "Requests answered.",
        );
        for ((path, status), count) in self
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            let _ = writeln!(
                out,
                "ernie_vil_requests_total{{path=\"{path}\",status=\"{status}\"}} {count}"
            );
        }
        let help = "Requests refused, by the error's code.";
        head(&mut out, "ernie_vil_rejections_total", "counter", help);
        for (code, count) in self
            .rejections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            let _ = writeln!(out, "ernie_vil_rejections_total{{code=\"{code}\"}} {count}");
        }
        let single = [
            (
                "request",
                &self.request_time,
                "From a request's head to its response's.",
            ),
            (
                "decode",
                &self.decode,
                "Base64 and image file to the crop that the model sees, an image.",
            ),
            ("tokenize", &self.tokenize, "Captions to token ids, a request."),
        ];
        for (stage, histogram, help) in single {
            let name = format!("ernie_vil_{stage}_seconds");
            head(&mut out, &name, "histogram", help);
            histogram.write(&mut out, &name, "");
        }
        let by_lane = [
            ("queue_seconds", &self.queue, "Waiting for the model, an item."),
            ("inference_seconds", &self.inference, "The model's work, a batch."),
            ("batch_size", &self.batch, "Items computed together."),
        ];
        for (what, histograms, help) in by_lane {
            let name = format!("ernie_vil_{what}");
            head(&mut out, &name, "histogram", help);
            for (lane, histogram) in histograms.iter().enumerate() {
                histogram.write(&mut out, &name, &format!("lane=\"{}\"", lane_name(lane)));
            }
        }
        let help = "Items dropped because their client had gone.";
        head(&mut out, "ernie_vil_abandoned_total", "counter", help);
        for (lane, count) in self.abandoned.iter().enumerate() {
            let (lane, count) = (lane_name(lane), count.load(Ordering::Relaxed));
            let _ = writeln!(out, "ernie_vil_abandoned_total{{lane=\"{lane}\"}} {count}");
        }
        head(
            &mut out,
            "ernie_vil_queue_items",
            "gauge",
            "Items waiting for the model.",
        );
        for (lane, count) in now.waiting.iter().enumerate() {
            let _ = writeln!(
                out,
                "ernie_vil_queue_items{{lane=\"{}\"}} {count}",
                lane_name(lane)
            );
        }
        let gauges = [
            (
                "ready",
                u64::from(now.ready),
                "1 when the model is loaded and warm.",
            ),
            (
                "buffered_bytes",
                now.buffered as u64,
                "Bodies of requests and answers held in memory.",
            ),
            ("index_embeddings", now.index as u64, "Embeddings in the index."),
            (
                "connections",
                self.connections.load(Ordering::Relaxed),
                "Open connections.",
            ),
        ];
        for (what, value, help) in gauges {
            let name = format!("ernie_vil_{what}");
            head(&mut out, &name, "gauge", help);
            let _ = writeln!(out, "{name} {value}");
        }
        out
    }
}

impl Observer for Metrics {
    fn waited(&self, lane: usize, time: Duration) {
        self.queue[lane].time(time);
    }

    fn computed(&self, lane: usize, items: usize, time: Duration) {
        self.inference[lane].time(time);
        self.batch[lane].observe(items as f64);
    }

    fn abandoned(&self, lane: usize, items: usize) {
        self.abandoned[lane].fetch_add(items as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_cumulative() {
        let histogram = Histogram::new(&SIZES);
        for value in [1.0, 2.0, 2.0, 1000.0] {
            histogram.observe(value);
        }
        let mut text = String::new();
        histogram.write(&mut text, "n", "lane=\"a\"");
        let line = |wanted: &str| text.lines().any(|line| line == wanted);
        assert!(line("n_bucket{lane=\"a\",le=\"1\"} 1"), "{text}");
        assert!(line("n_bucket{lane=\"a\",le=\"2\"} 3"), "{text}");
        assert!(line("n_bucket{lane=\"a\",le=\"256\"} 3"), "{text}");
        assert!(line("n_bucket{lane=\"a\",le=\"+Inf\"} 4"), "{text}");
        assert!(line("n_sum{lane=\"a\"} 1005"), "{text}");
    }
}
