//! Progress on the terminal.

use std::fmt::Write;
use std::time::Duration;

use ernie_vil::native;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

#[cfg(feature = "train")]
use crate::print::note;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, shown as KiB, MiB and so on.
    Bytes,
    /// Things, by the plural of their name: `"pairs"`.
    Items(&'static str),
}

/// A line on stderr with the count, the rate and the time left; nothing where stderr is not a
/// terminal. It disappears when this is dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    unit: Unit,
}

impl Progress {
    /// Shows progress under `label`, unless `quiet`.
    pub fn new(label: &str, unit: Unit, quiet: bool) -> Self {
        let target = match quiet {
            true => ProgressDrawTarget::hidden(),
            false => ProgressDrawTarget::stderr(),
        };
        Self::on(target, label, unit)
    }

    fn on(target: ProgressDrawTarget, label: &str, unit: Unit) -> Self {
        let bar = ProgressBar::with_draw_target(None, target)
            .with_style(style(unit, false))
            .with_prefix(label.to_owned());
        if !bar.is_hidden() {
            // Keeps the clock going while nothing arrives.
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        Self { bar, unit }
    }

    /// How many were counted.
    #[cfg(test)]
    pub fn done(&self) -> u64 {
        self.bar.position()
    }

    /// Writes a line above the bar, or where there is none to stderr.
    #[cfg(feature = "train")]
    pub fn print(&self, line: impl AsRef<str>) {
        self.bar.suspend(|| note!("{}", line.as_ref()));
    }

    /// Runs `print`, which may write to the terminal, with the line out of its way.
    #[cfg(test)]
    pub fn around<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }
}

impl native::Progress for Progress {
    fn set_total(&self, total: Option<u64>) {
        self.bar.set_style(style(self.unit, total.is_some()));
        match total {
            Some(total) => self.bar.set_length(total),
            None => self.bar.unset_length(),
        }
    }

    /// What is done already counts neither for the rate nor for the time left.
    fn start_at(&self, done: u64) {
        self.bar.set_position(done);
        self.bar.reset_eta();
    }

    fn add(&self, more: u64) {
        self.bar.inc(more);
    }

    /// Shows it behind the label.
    fn note(&self, note: &str) {
        self.bar.set_message(note.to_owned());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(unit: Unit, total: bool) -> ProgressStyle {
    let template = match (unit, total) {
        (Unit::Bytes, true) => {
            "{prefix} [{bar:24}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left {msg}".into()
        }
        (Unit::Bytes, false) => "{prefix} {binary_bytes}, {binary_bytes_per_sec}, {elapsed} {msg}".into(),
        (Unit::Items(items), true) => {
            format!("{{prefix}} [{{bar:24}}] {{human_pos}} of {{human_len}} {items}, {{rate}}, {{eta}} left {{msg}}")
        }
        (Unit::Items(items), false) => {
            format!("{{prefix}} {{human_pos}} {items}, {{rate}}, {{elapsed}} {{msg}}")
        }
    };
    ProgressStyle::with_template(&template)
        .expect("the templates above are well formed")
        .with_key("rate", |state: &ProgressState, out: &mut dyn Write| {
            // A line that cannot be written is not worth stopping for.
            let _ = write!(out, "{:.1}/s", state.per_sec());
        })
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use ernie_vil::native::Progress as _;
    use indicatif::TermLike;

    use super::*;

    /// A terminal of one line that remembers everything it showed.
    #[derive(Debug, Clone, Default)]
    struct Terminal(Arc<Mutex<Vec<String>>>);

    impl Terminal {
        fn progress(&self, unit: Unit) -> Progress {
            Progress::on(
                ProgressDrawTarget::term_like(Box::new(self.clone())),
                "embed",
                unit,
            )
        }

        fn shown(&self) -> String {
            self.0.lock().unwrap().join("\n")
        }
    }

    impl TermLike for Terminal {
        fn width(&self) -> u16 {
            120
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push(text.to_owned());
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            self.write_str("<cleared>")
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn shows_count_rate_and_time_left() {
        let terminal = Terminal::default();
        let progress = terminal.progress(Unit::Items("pairs"));
        progress.set_total(Some(12_000));
        progress.start_at(1_000);
        progress.add(2_500);
        assert_eq!(progress.done(), 3_500);
        progress.around(|| ());
        let shown = terminal.shown();
        assert!(shown.contains("embed [=======>"), "{shown}");
        assert!(shown.contains("3,500 of 12,000 pairs, "), "{shown}");
        assert!(shown.contains("/s, ") && shown.contains(" left"), "{shown}");

        progress.note("(waiting)");
        progress.around(|| ());
        assert!(terminal.shown().contains("(waiting)"));
        drop(progress);
        assert!(
            terminal.shown().trim_end().ends_with("<cleared>"),
            "{}",
            terminal.shown()
        );
    }

    #[test]
    fn shows_bytes_and_an_unknown_total() {
        let terminal = Terminal::default();
        let progress = terminal.progress(Unit::Bytes);
        progress.add(3 << 20);
        progress.around(|| ());
        assert!(
            terminal.shown().contains("embed 3.00 MiB, "),
            "{}",
            terminal.shown()
        );
        progress.set_total(Some(6 << 20));
        progress.around(|| ());
        assert!(
            terminal.shown().contains("3.00 MiB of 6.00 MiB, "),
            "{}",
            terminal.shown()
        );
        let items = Terminal::default();
        let progress = items.progress(Unit::Items("pairs"));
        progress.add(7);
        progress.around(|| ());
        assert!(items.shown().contains("embed 7 pairs, "), "{}", items.shown());
    }

    #[test]
    fn counts_quietly() {
        let progress = Progress::new("embed", Unit::Items("pairs"), true);
        assert!(progress.bar.is_hidden());
        progress.set_total(Some(5));
        progress.add(2);
        assert_eq!(progress.done(), 2);
        assert_eq!(progress.around(|| 7), 7);
    }
}
