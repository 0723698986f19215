//! `cargo xtask fuzz`: random bytes for the parsers, and valid files that were changed by their structure.
//!
//! With `mutate` in front it needs no fuzzer: `tests/fuzz_targets.rs` then changes the files that a fuzzer
//! starts from, for the given time.

use std::fs;
use std::io;
use std::path::Path;

use crate::Failure;
use crate::command::{cargo, program, root, run as run_command, succeeds};

#[path = "../../fuzz/src/recorded.rs"]
mod recorded;

use recorded::RECORDED;

/// No input is longer: long ones are slow and find no more.
const LONGEST: u64 = 64 << 10;
/// Seconds a target is fuzzed, where the command line does not say.
const SECONDS: u64 = 60;
/// Seconds that one input may take.
const SLOWEST: u64 = 20;

pub fn run(arguments: &[&str]) -> Result<(), Failure> {
    if let ["mutate", rest @ ..] = arguments {
        let (targets, seconds) = parse(rest).map_err(Failure::Usage)?;
        return mutate(&targets, seconds);
    }
    let (targets, seconds) = parse(arguments).map_err(Failure::Usage)?;
    if !succeeds(cargo(&["fuzz", "--version"])) {
        let message = "cargo-fuzz is not installed. 'cargo install cargo-fuzz --locked' does so.";
        return Err(Failure::Failed(message.into()));
    }
    let nightly = succeeds(program("rustup", &["run", "nightly", "cargo", "--version"]));
    if !nightly {
        println!("There is no nightly toolchain, so that the address sanitizer is left out.");
    }
    let prepared = copy_lock_file().and_then(|()| targets.iter().try_for_each(|target| copy_seeds(target)));
    prepared.map_err(|error| Failure::Failed(format!("The seeds could not be copied: {error}")))?;

    let mut failed = Vec::new();
    for target in targets {
        let limits = [
            format!("-max_total_time={seconds}"),
            format!("-max_len={LONGEST}"),
            format!("-timeout={SLOWEST}"),
        ];
        let mut command = if nightly {
            program(
                "rustup",
                &["run", "nightly", "cargo", "fuzz", "run", target, "--"],
            )
        } else {
            cargo(&["fuzz", "run", "--sanitizer", "none", target, "--"])
        };
        if run_command(command.args(limits)).is_err() {
            failed.push(target);
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    let failed = failed.join(", ");
    Err(Failure::Failed(format!(
        "Failed: {failed}. The inputs are in fuzz/artifacts/."
    )))
}

/// Without a fuzzer.
fn mutate(targets: &[&str], seconds: u64) -> Result<(), Failure> {
    let mut command = cargo(&[
        "test",
        "--release",
        "--test",
        "fuzz_targets",
        "changed",
        "--",
        "--nocapture",
    ]);
    command
        .env("ERNIE_VIL_FUZZ_TARGETS", targets.join(","))
        .env("ERNIE_VIL_FUZZ_SECONDS", seconds.to_string());
    run_command(&mut command).map_err(|_| Failure::Failed("Some inputs broke a promise; see above.".into()))
}

/// The targets to fuzz, and for how many seconds each.
fn parse<'a>(arguments: &[&'a str]) -> Result<(Vec<&'a str>, u64), String> {
    let (target, seconds) = match *arguments {
        [] => (None, None),
        [one] if one.starts_with(|first: char| first.is_ascii_digit()) => (None, Some(one)),
        [target] => (Some(target), None),
        [target, seconds] => (Some(target), Some(seconds)),
        [_, _, other, ..] => return Err(format!("'fuzz' takes no '{other}'.")),
    };
    let known = || RECORDED.iter().map(|&(name, _)| name);
    let targets = match target {
        None => known().collect(),
        Some(target) if known().any(|name| name == target) => vec![target],
        Some(other) => {
            let known: Vec<_> = known().collect();
            return Err(format!("There is no target '{other}', but {}.", known.join(", ")));
        }
    };
    let seconds = match seconds.map(str::parse) {
        None => SECONDS,
        Some(Ok(seconds)) if seconds > 0 => seconds,
        Some(_) => return Err("SECONDS is a whole number, 1 or more.".into()),
    };
    Ok((targets, seconds))
}

/// Gives the fuzz targets, which are a workspace of their own, the main one's versions of the
/// dependencies.
fn copy_lock_file() -> io::Result<()> {
    let (from, to) = (root().join("Cargo.lock"), root().join("fuzz/Cargo.lock"));
    let changed = fs::metadata(&from)?.modified()?;
    let copied = fs::metadata(&to).and_then(|metadata| metadata.modified());
    if !copied.is_ok_and(|copied| copied >= changed) {
        // Contents alone: the copy's time is now.
        fs::write(to, fs::read(from)?)?;
    }
    Ok(())
}

/// Copies what a target starts from into its corpus; returns how many files that are.
fn copy_seeds(target: &str) -> io::Result<()> {
    let corpus = root().join("fuzz/corpus").join(target);
    fs::create_dir_all(&corpus)?;
    for (name, bytes) in seeds(target)? {
        fs::write(corpus.join(name), bytes)?;
    }
    Ok(())
}

/// What a target starts from: names without folders, and contents.
fn seeds(target: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    let recorded = RECORDED.iter().find(|&&(name, _)| name == target);
    let endings = recorded.map_or(&[][..], |&(_, endings)| endings);
    if !endings.is_empty() {
        let fits = |path: &Path| {
            path.extension()
                .is_some_and(|ending| endings.iter().any(|&e| ending == e))
        };
        collect(&root().join("tests/goldens"), "golden", &fits, &mut found)?;
    }
    let own = root().join("fuzz/seeds").join(target);
    if own.is_dir() {
        collect(&own, "seed", &|_| true, &mut found)?;
    }
    Ok(found)
}

/// Finds the files in a folder and the folders in it that fit and are not too long.
fn collect(
    folder: &Path,
    prefix: &str,
    fits: &dyn Fn(&Path) -> bool,
    found: &mut Vec<(String, Vec<u8>)>,
) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{prefix}-{name}");
        if path.is_dir() {
            collect(&path, &name, fits, found)?;
        } else if fits(&path) && fs::metadata(&path)?.len() <= LONGEST {
            found.push((name, fs::read(&path)?));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_known_and_has_seeds() {
        let mut targets: Vec<String> = fs::read_dir(root().join("fuzz/fuzz_targets"))
            .unwrap()
            .map(|entry| {
                entry
                    .unwrap()
                    .path()
                    .file_stem()
                    .unwrap()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        targets.sort();
        assert!(
            targets.iter().eq(RECORDED.iter().map(|(name, _)| name)),
            "{targets:?}"
        );
        let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
        for target in &targets {
            assert!(
                manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")),
                "{target}"
            );
            let seeds = seeds(target).unwrap();
            assert!(!seeds.is_empty(), "{target}");
            let mut names: Vec<_> = seeds.iter().map(|(name, _)| name).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), seeds.len(), "{target}");
        }
    }

    #[test]
    fn command_lines() {
        assert_eq!(parse(&["pickle"]), Ok((vec!["pickle"], SECONDS)));
        assert_eq!(parse(&["pickle", "5"]), Ok((vec!["pickle"], 5)));
        let (targets, seconds) = parse(&["5"]).unwrap();
        assert_eq!((targets.len(), seconds), (RECORDED.len(), 5));
        for wrong in [
            &["nothing"][..],
            &["pickle", "0"],
            &["pickle", "long"],
            &["pickle", "5", "6"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
