//! Signals that would end the process without a word: those of a file that shrinks while it is mapped, and of
//! a file that grows beyond the limit on sizes.
//!
//! A page of a mapped file that the file has no more, or that its disk cannot give, raises SIGBUS in
//! whichever thread touches it. The handler here says which file that was and ends with exit code 1. The
//! library knows the mappings ([`ernie_vil::native::mapping`]).

#[cfg(unix)]
pub use unix::prepare;

#[cfg(not(unix))]
pub fn prepare() {
    // There are no such signals here.
}

#[cfg(unix)]
mod unix {
    use std::mem::MaybeUninit;
    use std::ptr;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    use ernie_vil::native::mapping::{MappedFile, file_at};
    use libc::{c_int, c_void, sigaction, siginfo_t};

    /// What SIGBUS did before.
    static BEFORE: OnceLock<sigaction> = OnceLock::new();

    /// Whether a thread writes the message already.
    static EXPLAINED: AtomicBool = AtomicBool::new(false);

    /// Has a file that cannot grow further be an error of its writer (EFBIG), where SIGXFSZ would end the
    /// process, and installs the handler for mapped files that shrink.
    pub fn prepare() {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        install();
    }

    /// Installs the handler, once.
    fn install() {
        BEFORE.get_or_init(|| {
            let mut before = MaybeUninit::<sigaction>::zeroed();
            // SAFETY: the structures are those that the calls expect, zeroed before their fields are set. The
            // handler does only what a handler may.
            unsafe {
                // The handler reads `BEFORE`, which is set when this has returned: a signal in between finds
                // nothing there, and takes the default action.
                let mut action = MaybeUninit::<sigaction>::zeroed().assume_init();
                action.sa_sigaction =
                    on_bus_error as extern "C" fn(c_int, *mut siginfo_t, *mut c_void) as usize;
                // On the stack that the standard library keeps for such handlers.
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigemptyset(&mut action.sa_mask);
                libc::sigaction(libc::SIGBUS, &action, before.as_mut_ptr());
                before.assume_init()
            }
        });
    }

    extern "C" fn on_bus_error(signal: c_int, info: *mut siginfo_t, _: *mut c_void) {
        // SAFETY: the system gives a valid `info` to a handler with SA_SIGINFO.
        let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
        // Codes up to 0 are of signals that a process sent; they have no address.
        // SAFETY: the thread that reads the mapping is here, so the mapping stays.
        let explained = (code > 0).then(|| unsafe { file_at(address, explain) }).flatten();
        if explained.is_some() {
            // SAFETY: ends the process at once, without anything that a handler may not run.
            unsafe { libc::_exit(1) };
        }
        // Not of a mapping here: what was installed before decides. The instruction that raised the signal is
        // tried again and raises it again; one that was sent is sent once more. SAFETY: `sigaction`, `signal`
        // and `raise` are allowed in a handler.
        unsafe {
            match BEFORE.get() {
                Some(before) => libc::sigaction(signal, before, ptr::null_mut()),
                None => libc::signal(signal, libc::SIG_DFL) as c_int,
            };
            if code <= 0 {
                libc::raise(signal);
            }
        }
    }

    /// Writes the message, without allocating.
    fn explain(file: MappedFile<'_>) {
        if EXPLAINED.swap(true, Ordering::Relaxed) {
            // Another thread read such a page too, and is about to end the process.
            loop {
                // SAFETY: `pause` takes nothing, and is allowed in a handler.
                unsafe { libc::pause() };
            }
        }
        let (mut a, mut b) = ([0; 20], [0; 20]);
        match file.length_now {
            Some(now) if now < file.length => say(&[
                b"error: ",
                file.name,
                b" was cut from ",
                decimal(file.length, &mut a),
                b" to ",
                decimal(now, &mut b),
                b" bytes while it was being read\n",
            ]),
            _ => say(&[
                b"error: ",
                file.name,
                b" cannot be read any more: its disk failed, or it was changed meanwhile\n",
            ]),
        }
    }

    /// Writes to standard error; what cannot be written is lost.
    fn say(parts: &[&[u8]]) {
        for part in parts {
            // SAFETY: `write` takes any bytes and is allowed in a handler.
            unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
        }
    }

    fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
        let mut first = digits.len();
        loop {
            first -= 1;
            digits[first] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return &digits[first..];
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn numbers_are_written_without_allocating() {
            for number in [0, 7, 10, 1_234_567_890, u64::MAX] {
                assert_eq!(decimal(number, &mut [0; 20]), number.to_string().as_bytes());
            }
        }
    }
}
