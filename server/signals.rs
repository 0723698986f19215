//! Signals that would end the process without a word: those of a file that shrinks while it is mapped, and of
//! a file that grows beyond the limit on sizes.
//!
//! A page of a mapped file that the file has no more, or that its disk cannot give, raises SIGBUS in
//! whichever thread touches it. The handler here says which file that was and ends with exit code 1. It knows
//! the mappings by a table of atomics, since a handler may neither lock nor allocate.

#[cfg(unix)]
pub use unix::{Watch, prepare};

#[cfg(not(unix))]
pub use other::{Watch, prepare};

#[cfg(unix)]
mod unix {
    use std::fs::File;
    use std::mem::MaybeUninit;
    use std::os::fd::AsRawFd;
    use std::path::Path;
    use std::ptr;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering};

    use libc::{c_int, c_void, sigaction, siginfo_t};

    /// Mappings that the handler knows at a time. Commands hold a handful; of more, the last ones die without
    /// a message.
    const MOST: usize = 64;

    /// A mapping, for the handler.
    struct Slot {
        taken: AtomicBool,
        /// The first address; 0 where there is no mapping. Written last and cleared first.
        start: AtomicUsize,
        length: AtomicUsize,
        file: AtomicI32,
        name: AtomicPtr<u8>,
        name_length: AtomicUsize,
    }

    static SLOTS: [Slot; MOST] = [const {
        Slot {
            taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            length: AtomicUsize::new(0),
            file: AtomicI32::new(-1),
            name: AtomicPtr::new(ptr::null_mut()),
            name_length: AtomicUsize::new(0),
        }
    }; MOST];

    /// What SIGBUS did before.
    static BEFORE: OnceLock<sigaction> = OnceLock::new();

    /// Has a file that cannot grow further be an error of its writer (EFBIG), where SIGXFSZ would end the
    /// process.
    pub fn prepare() {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    }

    /// Keeps the handler's entry of a mapping. It has to be dropped before the mapping is.
    #[derive(Debug)]
    pub struct Watch {
        slot: Option<&'static Slot>,
        /// What the entry points to.
        _name: Box<[u8]>,
        _file: File,
    }

    impl std::fmt::Debug for Slot {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Slot")
                .field("start", &self.start)
                .finish_non_exhaustive()
        }
    }

    impl Watch {
        /// Watches over a mapping of `file`, whose path the message names.
        pub fn new(memory: &[u8], file: File, path: &Path) -> Self {
            install();
            let name: Box<[u8]> = path.display().to_string().into_bytes().into();
            let slot = SLOTS
                .iter()
                .find(|slot| !slot.taken.swap(true, Ordering::Acquire));
            if let Some(slot) = slot {
                slot.length.store(memory.len(), Ordering::Relaxed);
                slot.file.store(file.as_raw_fd(), Ordering::Relaxed);
                slot.name.store(name.as_ptr().cast_mut(), Ordering::Relaxed);
                slot.name_length.store(name.len(), Ordering::Relaxed);
                slot.start.store(memory.as_ptr() as usize, Ordering::Release);
            }
            Self {
                slot,
                _name: name,
                _file: file,
            }
        }
    }

    impl Drop for Watch {
        fn drop(&mut self) {
            if let Some(slot) = self.slot {
                slot.start.store(0, Ordering::Release);
                slot.taken.store(false, Ordering::Release);
            }
        }
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
        let slot = (code > 0).then(|| slot_of(address)).flatten();
        if let Some(slot) = slot {
            explain(slot);
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

    fn slot_of(address: usize) -> Option<&'static Slot> {
        SLOTS.iter().find(|slot| {
            let start = slot.start.load(Ordering::Acquire);
            start != 0 && address >= start && address - start < slot.length.load(Ordering::Relaxed)
        })
    }

    /// Writes the message, without allocating.
    fn explain(slot: &Slot) {
        let name = slot.name.load(Ordering::Relaxed);
        // SAFETY: a mapping that is being read has its `Watch` still, and with it the name.
        let name = unsafe { std::slice::from_raw_parts(name, slot.name_length.load(Ordering::Relaxed)) };
        let before = slot.length.load(Ordering::Relaxed) as u64;
        let mut now = MaybeUninit::<libc::stat>::zeroed();
        // SAFETY: `fstat` fills the structure, and is allowed in a handler.
        let size = unsafe {
            match libc::fstat(slot.file.load(Ordering::Relaxed), now.as_mut_ptr()) {
                0 => Some(now.assume_init().st_size as u64),
                _ => None,
            }
        };
        let (mut a, mut b) = ([0; 20], [0; 20]);
        match size {
            Some(size) if size < before => say(&[
                b"error: ",
                name,
                b" was cut from ",
                decimal(before, &mut a),
                b" to ",
                decimal(size, &mut b),
                b" bytes while it was being read\n",
            ]),
            _ => say(&[
                b"error: ",
                name,
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
        fn a_mapping_is_known_by_its_addresses_until_it_is_dropped() {
            let (memory, file) = (vec![0; 100], tempfile::tempfile().unwrap());
            let watch = Watch::new(&memory, file, Path::new("a file"));
            let start = memory.as_ptr() as usize;
            for address in [start, start + 99] {
                let slot = slot_of(address).unwrap();
                assert_eq!(slot.name_length.load(Ordering::Relaxed), "a file".len());
            }
            assert!(slot_of(start + 100).is_none() && slot_of(start - 1).is_none());
            drop(watch);
            assert!(slot_of(start).is_none());
        }

        #[test]
        fn numbers_are_written_without_allocating() {
            for number in [0, 7, 10, 1_234_567_890, u64::MAX] {
                assert_eq!(decimal(number, &mut [0; 20]), number.to_string().as_bytes());
            }
        }
    }
}

#[cfg(not(unix))]
mod other {
    use std::fs::File;
    use std::path::Path;

    /// There are no such signals here.
    pub fn prepare() {}

    #[derive(Debug)]
    pub struct Watch {
        _file: File,
    }

    impl Watch {
        pub fn new(_: &[u8], file: File, _: &Path) -> Self {
            Self { _file: file }
        }
    }
}
