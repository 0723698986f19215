//! How many tests ran, by the closing lines of the test runners and by what skipped tests record.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Add;

/// Tests by how they ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// That did as they should.
    pub passed: u64,
    /// That failed, ran out of time or could not be run.
    pub failed: u64,
    /// That were not run.
    pub skipped: u64,
}

/// A test that could not run here, or not all of it, as it recorded itself (`tests/support/skip.rs`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    /// With its crate and module.
    pub test: String,
    pub reason: String,
    /// Nothing was tested.
    pub whole: bool,
}

/// What the tests of a step reported.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Report {
    pub counts: Counts,
    pub skips: Vec<Skip>,
}

impl Report {
    /// Takes what a test runner counted and what tests recorded. The runner counts a skipped test as passed,
    /// since it returned.
    pub fn new(counts: Counts, recorded: &str) -> Self {
        let skips = skips(recorded);
        let whole = skips.iter().filter(|skip| skip.whole).count() as u64;
        let whole = whole.min(counts.passed);
        let counts = Counts {
            passed: counts.passed - whole,
            skipped: counts.skipped + whole,
            ..counts
        };
        Self { counts, skips }
    }

    pub fn add(&mut self, other: Self) {
        self.counts = self.counts + other.counts;
        self.skips.extend(other.skips);
    }
}

/// The skips in the lines that tests recorded, by the tests' names. A test may record more than one, as it
/// runs its parts: it counts once, with the first reason.
fn skips(recorded: &str) -> Vec<Skip> {
    let mut skips: BTreeMap<&str, (&str, bool)> = BTreeMap::new();
    for line in recorded.lines() {
        let (rest, whole) = match line.strip_prefix("PARTLY ") {
            Some(rest) => (rest, false),
            None => (line, true),
        };
        let Some((test, reason)) = rest
            .strip_prefix("SKIPPED ")
            .and_then(|rest| rest.split_once(": "))
        else {
            continue;
        };
        match skips.get_mut(test) {
            Some((first, is_whole)) if whole && !*is_whole => (*first, *is_whole) = (reason, true),
            Some(_) => {}
            None => {
                skips.insert(test, (reason, whole));
            }
        }
    }
    let skip = |(test, (reason, whole)): (&str, (&str, bool))| Skip {
        test: test.to_owned(),
        reason: reason.to_owned(),
        whole,
    };
    skips.into_iter().map(skip).collect()
}

impl fmt::Display for Report {
    /// The tests that were skipped with their reasons, a line each, and the counts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (whole, heading) in [
            (true, "Tests that could not run here:"),
            (false, "Tests that ran in part:"),
        ] {
            let mut heading = Some(heading);
            for skip in self.skips.iter().filter(|skip| skip.whole == whole) {
                if let Some(heading) = heading.take() {
                    writeln!(f, "{heading}")?;
                }
                writeln!(f, "  {}: {}", skip.test, skip.reason)?;
            }
        }
        self.counts.fmt(f)
    }
}

/// Finds the counts in a line that a test runner printed.
pub type Reader = fn(&str) -> Option<Counts>;

/// The closing line of cargo-nextest: `Summary [0.1s] 3 tests run: 3 passed, ...`.
///
/// Not that of the test program under it, which is shown where a test failed.
pub fn of_nextest(line: &str) -> Option<Counts> {
    let line = plain(line);
    let report = line
        .trim_start()
        .strip_prefix("Summary [")?
        .split_once(" run: ")?
        .1;
    Some(counts(report))
}

/// The closing line of a test program under `cargo test`: `test result: ok. 3 passed; ...`.
pub fn of_cargo_test(line: &str) -> Option<Counts> {
    let line = plain(line);
    let report = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    Some(counts(report))
}

/// One of the closing lines of `node --test` with its TAP reporter: `# pass 3`.
pub fn of_node(line: &str) -> Option<Counts> {
    let (outcome, number) = line.trim_end().strip_prefix("# ")?.split_once(' ')?;
    let number = number.parse().ok()?;
    let mut counts = Counts::default();
    match outcome {
        "pass" => counts.passed = number,
        "fail" | "cancelled" => counts.failed = number,
        "skipped" | "todo" => counts.skipped = number,
        _ => return None,
    }
    Some(counts)
}

fn counts(report: &str) -> Counts {
    let mut counts = Counts::default();
    for part in report.split([',', ';']) {
        let Some((number, outcome)) = part.trim().split_once(' ') else {
            continue;
        };
        let Ok(number) = number.parse::<u64>() else {
            continue;
        };
        match outcome.trim() {
            "passed" => counts.passed += number,
            "skipped" | "ignored" | "filtered out" => counts.skipped += number,
            "measured" => {}
            // Nextest has several words for it: failed, exec failed, timed out.
            _ => counts.failed += number,
        }
    }
    counts
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// The line without colours and without what stands in parentheses, which goes into detail.
fn plain(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut until = None;
    for character in line.chars() {
        match (until, character) {
            (None, '\x1b') => until = Some('m'),
            (None, '(') => until = Some(')'),
            (None, _) => plain.push(character),
            (Some(end), _) if end == character => until = None,
            (Some(_), _) => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(reader: Reader, line: &str) -> String {
        reader(line).map_or("none".into(), |counts| counts.to_string())
    }

    #[test]
    fn nextest() {
        assert_eq!(
            counted(
                of_nextest,
                "     Summary [   0.123s] 12 tests run: 12 passed, 0 skipped\n"
            ),
            "12 passed, 0 failed, 0 skipped"
        );
        assert_eq!(
            counted(
                of_nextest,
                "Summary [  31.0s] 7/9 tests run: 3 passed (1 slow, 1 flaky), 2 failed, 1 timed out, 1 exec failed, 4 skipped"
            ),
            "3 passed, 4 failed, 4 skipped"
        );
        assert_eq!(
            counted(
                of_nextest,
                "\x1b[32;1m     Summary\x1b[0m [   0.001s] \x1b[1m1\x1b[0m test run: \x1b[1m1\x1b[0m \x1b[32;1mpassed\x1b[0m, \x1b[1m0\x1b[0m \x1b[33;1mskipped\x1b[0m\n"
            ),
            "1 passed, 0 failed, 0 skipped"
        );
    }

    #[test]
    fn cargo_test() {
        assert_eq!(
            counted(
                of_cargo_test,
                "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s\n"
            ),
            "3 passed, 0 failed, 3 skipped"
        );
        assert_eq!(
            counted(
                of_cargo_test,
                "test result: \x1b[31mFAILED\x1b[0m. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s"
            ),
            "3 passed, 2 failed, 0 skipped"
        );
    }

    #[test]
    fn other_lines() {
        let lines = [
            "",
            "running 3 tests",
            "test result",
            "all doctests ran in 0.54s; 3 passed",
            "Summary of 3 passed",
        ];
        for line in lines {
            assert_eq!(counted(of_nextest, line), "none", "{line}");
            assert_eq!(counted(of_cargo_test, line), "none", "{line}");
        }
    }

    #[test]
    fn a_test_that_recorded_a_skip_has_not_passed() {
        let counts = Counts {
            passed: 5,
            failed: 1,
            skipped: 2,
        };
        let recorded = "SKIPPED it::text::a: no file: not found (os error 2)\n\
                        PARTLY SKIPPED it::towers::b: no GPU\n\
                        PARTLY SKIPPED it::towers::b: no other GPU\n\
                        PARTLY SKIPPED cli::c: no second disk\n\
                        SKIPPED cli::c: no disk\n\
                        SKIPPED it::text::a: again\n\
                        something else\n";
        let report = Report::new(counts, recorded);
        assert_eq!(report.counts.to_string(), "3 passed, 1 failed, 4 skipped");
        assert_eq!(
            report.to_string(),
            "Tests that could not run here:\n  \
               cli::c: no disk\n  \
               it::text::a: no file: not found (os error 2)\n\
             Tests that ran in part:\n  \
               it::towers::b: no GPU\n\
             3 passed, 1 failed, 4 skipped"
        );
        // Where nothing was recorded the runner's counts stand.
        assert_eq!(Report::new(counts, "").to_string(), counts.to_string());
        // A test that is skipped and fails all the same is a failed one.
        let failed = Counts {
            failed: 1,
            ..Counts::default()
        };
        assert_eq!(Report::new(failed, "SKIPPED it::a: b").counts, failed);
    }

    #[test]
    fn what_a_failed_test_printed_under_nextest() {
        let line = "    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 8 filtered out";
        assert_eq!(counted(of_nextest, line), "none");
    }
}
