//! How many connections the process may have open, by the system's limit on its files.

/// Descriptors that are kept for what is no connection: the index and its log, the listener, files that are served,
/// a graphics card's driver.
const KEPT: usize = 128;

/// How many of `wanted` connections that are worked on there can be, and how many of `spare` beside them. The
/// process's limit is raised as far as they need it and the system allows; where that does not suffice, the
/// log says so.
pub fn connections(wanted: usize, spare: usize) -> (usize, usize) {
    let all = wanted.saturating_add(spare);
    // A connection that is sent a file has that open too.
    let Some(open) = raise(all.saturating_mul(2).saturating_add(KEPT)) else {
        return (wanted, spare);
    };
    let there = fit(all, open);
    if there < wanted {
        tracing::warn!(
            "--max-connections is {wanted}, but the process may have {open} files open (ulimit -n): at most {there} \
             connections at a time"
        );
    }
    share(there, wanted)
}

/// Connections that are worked on, of `wanted`, and what remains of those that there can be: an eighth at
/// least.
fn share(there: usize, wanted: usize) -> (usize, usize) {
    let places = wanted.min(there - there / 8).max(1);
    (places, there - places)
}

/// What fits beside the descriptors that are kept, of which there are no more than half.
fn fit(wanted: usize, open: usize) -> usize {
    wanted.min(open - KEPT.min(open / 2)).max(1)
}

/// Raises the limit on open files to `needed`, or as near to that as it goes. Returns what it is now, where it is known.
#[cfg(unix)]
fn raise(needed: usize) -> Option<usize> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call writes to the structure that it is given, and to nothing else.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return None;
    }
    let needed = libc::rlim_t::try_from(needed).unwrap_or(libc::RLIM_INFINITY);
    let wanted = needed.min(limit.rlim_max);
    if limit.rlim_cur < wanted {
        let raised = libc::rlimit {
            rlim_cur: wanted,
            ..limit
        };
        // SAFETY: the call reads the structure that it is given.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) } == 0 {
            limit = raised;
        }
    }
    Some(usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}

/// Other systems have no such limit.
#[cfg(not(unix))]
fn raise(_needed: usize) -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_files() {
        assert_eq!(fit(4096, 65_536), 4096);
        assert_eq!(fit(4096, 4096 + KEPT), 4096);
        assert_eq!(fit(4096, 1024), 1024 - KEPT);
        assert_eq!(fit(4096, 100), 50);
        assert_eq!(fit(10, 100), 10);
        assert_eq!((fit(10, 1), fit(10, 0)), (1, 1));
        assert_eq!(share(4608, 4096), (4032, 576));
        assert_eq!(share(6000, 4096), (4096, 1904));
        assert_eq!(share(172, 4096), (151, 21));
        assert_eq!(share(1, 4096), (1, 0));
    }
}
