//! Mapped files, for the handler of a signal that would end the process without a word.
//!
//! A page of a mapped file that the file has no more, or that its disk cannot give, raises SIGBUS in
//! whichever thread touches it. This library installs no handler, since signals belong to the program. One
//! that wants to say what happened before it ends asks [`file_at`] for the file in which the address lies.
//! The mappings are in a table of atomics, since a handler may neither lock nor allocate.

#[cfg(unix)]
pub(crate) use unix::Watch;
#[cfg(unix)]
pub use unix::{MappedFile, file_at};

#[cfg(not(unix))]
pub(crate) use other::Watch;

#[cfg(unix)]
mod unix {
    use std::fs::File;
    use std::mem::MaybeUninit;
    use std::os::fd::AsRawFd;
    use std::path::Path;
    use std::ptr;
    use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering};

    /// Mappings that are known at a time. Programs hold a handful; of more, the last ones are not found.
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
        /// Watches over a mapping of `file`, whose path is its name.
        pub fn new(memory: &[u8], file: File, path: &Path) -> Self {
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

    /// A file that is mapped.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct MappedFile<'a> {
        /// Its path, as it is shown.
        pub name: &'a [u8],
        /// How many bytes it had when it was mapped.
        pub length: u64,
        /// How many bytes it has now, where that can be told.
        pub length_now: Option<u64>,
    }

    /// Gives the mapped file in which an address lies to `say`; nothing where no mapping is known there. It
    /// may be called in the handler of a signal: it neither locks nor allocates.
    ///
    /// # Safety
    /// What is mapped there has to stay so until `say` has returned, as it does while a thread that reads it
    /// is in the handler of the signal that this raised.
    pub unsafe fn file_at<T>(address: usize, say: impl FnOnce(MappedFile<'_>) -> T) -> Option<T> {
        let slot = slot_of(address)?;
        let name = slot.name.load(Ordering::Relaxed);
        // SAFETY: a mapping that is being read has its `Watch` still, and with it the name.
        let name = unsafe { std::slice::from_raw_parts(name, slot.name_length.load(Ordering::Relaxed)) };
        let mut now = MaybeUninit::<libc::stat>::zeroed();
        // SAFETY: `fstat` fills the structure, and is allowed in a handler.
        let length_now = unsafe {
            match libc::fstat(slot.file.load(Ordering::Relaxed), now.as_mut_ptr()) {
                0 => Some(now.assume_init().st_size as u64),
                _ => None,
            }
        };
        Some(say(MappedFile {
            name,
            length: slot.length.load(Ordering::Relaxed) as u64,
            length_now,
        }))
    }

    fn slot_of(address: usize) -> Option<&'static Slot> {
        SLOTS.iter().find(|slot| {
            let start = slot.start.load(Ordering::Acquire);
            start != 0 && address >= start && address - start < slot.length.load(Ordering::Relaxed)
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_mapping_is_known_by_its_addresses_until_it_is_dropped() {
            let (memory, file) = (vec![0; 100], tempfile::tempfile().unwrap());
            file.set_len(40).unwrap();
            let watch = Watch::new(&memory, file, Path::new("a file"));
            let start = memory.as_ptr() as usize;
            let expected = MappedFile {
                name: b"a file",
                length: 100,
                length_now: Some(40),
            };
            // SAFETY: the entry stays until the end of each call.
            let is_known = |address| unsafe { file_at(address, |file| file == expected) };
            for address in [start, start + 99] {
                assert_eq!(is_known(address), Some(true));
            }
            assert!(is_known(start + 100).is_none() && is_known(start - 1).is_none());
            drop(watch);
            assert!(is_known(start).is_none());
        }
    }
}

#[cfg(not(unix))]
mod other {
    use std::fs::File;
    use std::path::Path;

    /// There are no such signals here.
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
