//! Memory that two ranks of one machine share. What is large goes through it, and only word of it over the connection: the
//! system neither copies it nor finds memory for it.
//!
//! A ring for each direction. One side alone writes to it and one alone reads; how far each has come are two counters. What
//! finds no room goes over the connection, so that nobody ever waits for room.
//!
//! The memory is a file without a name or a folder: it counts as that of the rank that made it, not as room in `/dev/shm`, of
//! which containers have little, and however a rank ends, nothing is left of it. Its length is sealed: whoever touches what
//! another process has cut off is ended by the system.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use memmap2::MmapRaw;
#[cfg(target_os = "linux")]
use nix::fcntl::{FcntlArg, SealFlag, fcntl};

/// What is smaller goes over the connection: one call of the system brings it and the word of it.
pub(super) const LEAST: usize = 1 << 16;
/// Bytes of a ring: several chunks of a reduction, and little enough to stay in a cache.
const RING: usize = 2 << 20;
/// In front of the rings: the proof, and the counters, each on cache lines of its own.
const FRONT: usize = 4096;
const WHOLE: usize = FRONT + 2 * RING;
/// Bytes that show that both have the same memory before them.
const PROOF: usize = 32;
/// An offer: process, open file, proof.
const OFFER: usize = 8 + PROOF;

/// One direction.
struct Ring {
    memory: Arc<MmapRaw>,
    which: usize,
    /// Bytes that this side has written, or read.
    at: u64,
}

/// How far a side has come.
#[derive(Clone, Copy)]
enum Counter {
    Written,
    Read,
}

impl Ring {
    #[expect(unsafe_code, reason = "counters lie in memory that another process has too")]
    fn counter(&self, of: Counter) -> &AtomicU64 {
        let place = 256 * (1 + self.which) + 128 * (of as usize);
        // SAFETY: the place is within the front of a mapping of `WHOLE` bytes, which begins at a page and lives as long as
        // the ring, of a file that nobody can shorten; both sides touch it by atomic operations alone.
        unsafe { AtomicU64::from_ptr(self.memory.as_mut_ptr().add(place).cast()) }
    }

    /// Goes over the places of the next `len` bytes, at most those of a ring: where they lie, and which of them.
    fn pieces(&mut self, len: usize, mut each: impl FnMut(*mut u8, std::ops::Range<usize>)) {
        let mut done = 0;
        while done < len {
            let place = (self.at % RING as u64) as usize;
            let piece = (len - done).min(RING - place);
            each(self.memory.as_mut_ptr().wrapping_add(FRONT + self.which * RING + place), done..done + piece);
            (done, self.at) = (done + piece, self.at + piece as u64);
        }
    }
}

/// Where one side puts what it sends.
pub(super) struct Outlet(Ring);

impl Outlet {
    /// Puts the parts there, one after the other; if there is no room for them now, nothing.
    #[expect(unsafe_code, reason = "writes to memory that another process has too")]
    pub fn put(&mut self, parts: &[&[u8]]) -> bool {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let taken = self.0.at.checked_sub(self.0.counter(Counter::Read).load(Ordering::Acquire));
        // A peer that has read more than was written is none to trust with more.
        if taken.and_then(|taken| taken.checked_add(len as u64)).is_none_or(|all| all > RING as u64) {
            return false;
        }
        for part in parts {
            self.0.pieces(part.len(), |to, which| {
                let from = &part[which];
                // SAFETY: the piece is within the ring, and its peer reads these places only once it has heard that they
                // are written.
                unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
            });
        }
        self.0.counter(Counter::Written).store(self.0.at, Ordering::Release);
        true
    }
}

/// Where one side finds what it is sent.
pub(super) struct Inlet(Ring);

impl Inlet {
    /// Takes what comes next.
    ///
    /// # Errors
    /// It is not there.
    #[expect(unsafe_code, reason = "reads memory that another process has too")]
    pub fn take(&mut self, to: &mut [u8]) -> io::Result<()> {
        let there = self.0.counter(Counter::Written).load(Ordering::Acquire).checked_sub(self.0.at);
        if to.len() > RING || there.is_none_or(|there| there < to.len() as u64) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a peer announced what it has not written"));
        }
        self.0.pieces(to.len(), |from, which| {
            let to = &mut to[which];
            // SAFETY: the piece is within the ring, and written: a peer that keeps to the counters does not touch it until
            // it hears that it was read. One that does not can change the bytes and, since the length is sealed, nothing else.
            unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) }
        });
        self.0.counter(Counter::Read).store(self.0.at, Ordering::Release);
        Ok(())
    }
}

/// What one side has of the memory.
pub(super) struct Shared {
    pub outlet: Outlet,
    pub inlet: Inlet,
}

impl Shared {
    /// The side that writes to the ring of that number.
    fn new(memory: MmapRaw, own: usize) -> Self {
        let memory = Arc::new(memory);
        let ring = |which| Ring { memory: memory.clone(), which, at: 0 };
        Self { outlet: Outlet(ring(own)), inlet: Inlet(ring(1 - own)) }
    }

    /// Offers memory to a rank at the other end of a connection, if it is `wanted` and that is on this machine. `salt` is known
    /// to both.
    ///
    /// # Errors
    /// The connection has failed. That there is no memory, or that the other cannot reach it, is none.
    pub fn offer(stream: &mut TcpStream, salt: &[u8], wanted: bool) -> io::Result<Option<Self>> {
        let here = stream.local_addr()?.ip() == stream.peer_addr()?.ip();
        let made = (wanted && here).then(|| make(salt).ok()).flatten();
        let mut offer = [0; OFFER];
        if let Some(made) = &made {
            offer = made.offer();
        }
        stream.write_all(&offer)?;
        let mut taken = [0];
        stream.read_exact(&mut taken)?;
        Ok(made.filter(|_| taken == [1]).map(|made| Self::new(made.memory, 0)))
    }

    /// Takes what the other end offers, if it can be reached.
    ///
    /// # Errors
    /// The connection has failed.
    pub fn accept(stream: &mut TcpStream) -> io::Result<Option<Self>> {
        let mut offer = [0; OFFER];
        stream.read_exact(&mut offer)?;
        let memory = if offer == [0; OFFER] { None } else { open(&offer).ok() };
        stream.write_all(&[u8::from(memory.is_some())])?;
        Ok(memory.map(|memory| Self::new(memory, 1)))
    }
}

/// Memory that was made for an offer. It is gone with the last process that has it open.
struct Made {
    memory: MmapRaw,
    file: File,
    proof: [u8; PROOF],
}

#[cfg(target_os = "linux")]
impl Made {
    fn offer(&self) -> [u8; OFFER] {
        use std::os::fd::AsRawFd;
        let mut offer = [0; OFFER];
        offer[..4].copy_from_slice(&std::process::id().to_le_bytes());
        offer[4..8].copy_from_slice(&self.file.as_raw_fd().to_le_bytes());
        offer[8..].copy_from_slice(&self.proof);
        offer
    }
}

/// `MFD_NOEXEC_SEAL` of Linux 6.3: what is in the memory will never be run.
#[cfg(target_os = "linux")]
const NEVER_RUN: u32 = 8;

/// What nobody can do to the memory any more, whoever has it open: change its length, or the seals.
#[cfg(target_os = "linux")]
const SEALED: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);

/// Why memory that is offered is not taken.
#[cfg(target_os = "linux")]
#[derive(Debug, thiserror::Error)]
enum Refused {
    /// The process or the number does not name the memory that the offer is of.
    #[error("the offer names another file")]
    Other,
    /// Its length may change, and touching what is cut off ends a process.
    #[error("the length of the offered memory is not sealed")]
    Unsealed,
    /// It holds other rings than these, or none.
    #[error("the offered memory has {0} bytes instead of {whole}", whole = WHOLE)]
    Length(u64),
    /// The system does not give it.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// A file that is in no folder. With `vm.memfd_noexec=2` a system makes none that may be run; older ones do not know the word.
#[cfg(target_os = "linux")]
fn unnamed(name: &str) -> io::Result<File> {
    use nix::{
        errno::Errno,
        sys::memfd::{MFdFlags, memfd_create},
    };
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let made = match memfd_create(name, flags | MFdFlags::from_bits_retain(NEVER_RUN)) {
        Err(Errno::EINVAL) => memfd_create(name, flags),
        made => made,
    };
    Ok(File::from(made?))
}

#[cfg(target_os = "linux")]
fn make(salt: &[u8]) -> io::Result<Made> {
    static MADE: AtomicU64 = AtomicU64::new(0);
    // What `/proc` shows it as.
    let name = format!("tl-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
    let mut file = unnamed(&name)?;
    let when = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let proof = *blake3::hash(&[salt, name.as_bytes(), &when.as_nanos().to_le_bytes()].concat()).as_bytes();
    // All of it is written: a place that the system has no memory for would end the process that touches it.
    let mut front = vec![0; WHOLE];
    front[..PROOF].copy_from_slice(&proof);
    file.write_all(&front)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SEALED))?;
    Ok(Made { memory: MmapRaw::map_raw(&file)?, file, proof })
}

/// Opens the file of another process by its number there.
#[cfg(target_os = "linux")]
fn open(offer: &[u8; OFFER]) -> Result<MmapRaw, Refused> {
    let number = |at: usize| u32::from_le_bytes([offer[at], offer[at + 1], offer[at + 2], offer[at + 3]]);
    let path = format!("/proc/{}/fd/{}", number(0), number(4));
    // Before it is opened, which may wait for ever where it is something else.
    if !std::fs::metadata(&path).is_ok_and(|file| file.is_file()) {
        return Err(Refused::Other);
    }
    let mut file = File::options().read(true).write(true).open(&path)?;
    // First the seals: a length that was seen before them may have changed since. A file on a disk knows none.
    let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map_err(|_| Refused::Other)?;
    if !SealFlag::from_bits_truncate(seals).contains(SEALED) {
        return Err(Refused::Unsealed);
    }
    let length = file.metadata()?.len();
    if length != WHOLE as u64 {
        return Err(Refused::Length(length));
    }
    let mut proof = [0; PROOF];
    file.read_exact(&mut proof)?;
    if proof != offer[8..] {
        return Err(Refused::Other);
    }
    Ok(MmapRaw::map_raw(&file)?)
}

#[cfg(not(target_os = "linux"))]
impl Made {
    fn offer(&self) -> [u8; OFFER] {
        [0; OFFER]
    }
}

#[cfg(not(target_os = "linux"))]
fn make(_: &[u8]) -> io::Result<Made> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
fn open(_: &[u8; OFFER]) -> io::Result<MmapRaw> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
#[cfg(target_os = "linux")]
pub(super) mod tests {
    use super::*;

    /// Two ends of one memory.
    pub fn pair() -> (Shared, Shared) {
        let made = make(b"salt").unwrap();
        let other = open(&made.offer()).unwrap();
        (Shared::new(made.memory, 0), Shared::new(other, 1))
    }

    fn bytes(seed: usize, len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251 + seed) as u8).collect()
    }

    #[test]
    fn what_is_put_comes_out_in_order_on_either_side_however_often_the_ring_turns() {
        let (mut one, mut two) = pair();
        for turn in 0..40 {
            let sent = bytes(turn, RING / 3 + turn * 977);
            let (left, right) = sent.split_at(turn * 1000);
            for _ in 0..2 {
                let (from, to) = (&mut one, &mut two);
                // Two messages are under way at a time.
                assert!(from.outlet.put(&[left, right]) && from.outlet.put(&[&sent[..5], &[], &sent[..9]]));
                for want in [sent.clone(), [&sent[..5], &sent[..9]].concat()] {
                    let mut got = vec![0; want.len()];
                    to.inlet.take(&mut got).unwrap();
                    assert!(got == want, "turn {turn}");
                }
                // And the other way.
                std::mem::swap(&mut one, &mut two);
            }
        }
    }

    #[test]
    fn what_has_no_room_is_not_put_and_what_was_not_put_is_not_there() {
        let (mut one, mut two) = pair();
        let (half, mut got) = (bytes(1, RING / 2), vec![0; RING / 2]);
        assert!(one.outlet.put(&[&half]) && one.outlet.put(&[&half]) && !one.outlet.put(&[&half[..1]]));
        assert!(one.inlet.take(&mut got[..1]).is_err(), "the other direction is another ring");
        two.inlet.take(&mut got).unwrap();
        assert!(!one.outlet.put(&[&half, &half[..1]]), "all of it, or nothing");
        assert!(one.outlet.put(&[&half]));
        two.inlet.take(&mut got).unwrap();
        two.inlet.take(&mut got).unwrap();
        assert!(got == half && two.inlet.take(&mut got[..1]).is_err());
        assert!(two.inlet.take(&mut vec![0; RING + 1]).is_err());
    }

    #[test]
    fn counters_of_a_peer_that_lies_do_no_harm() {
        let (mut one, mut two) = pair();
        two.inlet.0.counter(Counter::Read).store(u64::MAX, Ordering::Release);
        assert!(!one.outlet.put(&[b"more was read than was written"]));
        one.outlet.0.counter(Counter::Written).store(u64::MAX, Ordering::Release);
        assert!(two.inlet.take(&mut vec![0; RING]).is_ok(), "any bytes, and none outside the ring");
        two.inlet.0.at = 5;
        one.outlet.0.counter(Counter::Written).store(4, Ordering::Release);
        assert!(two.inlet.take(&mut [0]).is_err());
    }

    #[test]
    fn the_memory_lies_in_no_folder_and_no_program_inherits_it() {
        use std::os::fd::AsRawFd;
        let made = make(b"salt").unwrap();
        let of_process = |what: &str| format!("/proc/self/{what}/{}", made.file.as_raw_fd());
        let place = std::fs::read_link(of_process("fd")).unwrap();
        assert!(place.to_string_lossy().starts_with("/memfd:tl-"), "{}", place.display());
        let flags = std::fs::read_to_string(of_process("fdinfo")).unwrap();
        let flags = flags.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        // That of a file which is closed where another program begins, in octal digits.
        assert_eq!(u32::from_str_radix(flags, 8).unwrap() & 0o2_000_000, 0o2_000_000);
    }

    #[test]
    fn the_memory_is_never_run_where_the_system_can_promise_that_and_is_there_where_it_cannot() {
        use std::os::unix::fs::PermissionsExt;

        use nix::sys::memfd::{MFdFlags, memfd_create};
        let runs = |file: &File| file.metadata().unwrap().permissions().mode() & 0o111 != 0;
        let promised = memfd_create("tl-test", MFdFlags::from_bits_retain(NEVER_RUN)).is_ok();
        let made = make(b"salt").unwrap();
        assert!(!promised || !runs(&made.file));
    }

    #[test]
    fn nobody_who_has_the_memory_open_can_change_its_length_or_the_seals() {
        use std::os::fd::AsRawFd;
        let made = make(b"salt").unwrap();
        let path = format!("/proc/self/fd/{}", made.file.as_raw_fd());
        let again = File::options().write(true).open(path).unwrap();
        for file in [&made.file, &again] {
            for len in [0, WHOLE as u64 - 1, WHOLE as u64 + 1] {
                assert!(file.set_len(len).is_err(), "{len} bytes");
            }
            assert!(fcntl(file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).is_err());
        }
        assert_eq!(made.file.metadata().unwrap().len(), WHOLE as u64);
        assert!(open(&made.offer()).is_ok());
    }

    #[test]
    fn memory_of_another_length_or_of_one_that_may_change_is_not_taken() {
        use std::os::fd::AsRawFd;
        // The bytes of the proof are those of the offer, whatever else is wrong.
        let taken = |len: usize, seals: SealFlag| {
            let mut file = unnamed("tl-test").unwrap();
            file.write_all(&vec![7; len]).unwrap();
            fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
            let mut offer = [7; OFFER];
            offer[..4].copy_from_slice(&std::process::id().to_le_bytes());
            offer[4..8].copy_from_slice(&file.as_raw_fd().to_le_bytes());
            open(&offer)
        };
        assert!(taken(WHOLE, SEALED).is_ok());
        for missing in [SealFlag::F_SEAL_SHRINK, SealFlag::F_SEAL_GROW, SealFlag::F_SEAL_SEAL] {
            let refused = taken(WHOLE, SEALED.difference(missing));
            assert!(matches!(refused, Err(Refused::Unsealed)), "{missing:?}: {refused:?}");
        }
        for len in [0, WHOLE - 1, WHOLE + 1] {
            let refused = taken(len, SEALED);
            assert!(matches!(refused, Err(Refused::Length(found)) if found == len as u64), "{len}: {refused:?}");
        }
    }

    #[test]
    fn another_file_is_not_taken_for_the_memory() {
        use std::os::fd::AsRawFd;
        let made = make(b"salt").unwrap();
        let mut offer = made.offer();
        offer[20] ^= 1;
        assert!(open(&offer).is_err());
        let file = tempfile::tempfile().unwrap();
        offer[4..8].copy_from_slice(&file.as_raw_fd().to_le_bytes());
        assert!(open(&offer).is_err());
        offer[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(open(&offer).is_err());
    }
}
