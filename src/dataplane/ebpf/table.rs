//! One map of the kernel, by bpf(2) itself: a list is read in pieces, from a key on, which the
//! iterators of aya cannot do.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use aya::maps::{Map, MapData};

use super::layout::{Plain, octets_of, octets_of_mut};

const LOOKUP: libc::c_long = 1;
const UPDATE: libc::c_long = 2;
const DELETE: libc::c_long = 3;
const NEXT: libc::c_long = 4;

/// `union bpf_attr` as the calls on elements read it.
#[repr(C)]
#[derive(Default)]
struct Attr {
    fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[derive(Debug)]
pub struct Table {
    fd: OwnedFd,
    key_len: usize,
    value_len: usize,
    size: u32,
}

impl Table {
    pub fn new(map: Map) -> io::Result<Self> {
        let data = match map {
            Map::Array(data) | Map::HashMap(data) | Map::LpmTrie(data) | Map::PerCpuArray(data) => {
                data
            }
            _ => return Err(io::Error::other("a map is of an unexpected kind")),
        };
        Self::of(&data)
    }

    fn of(data: &MapData) -> io::Result<Self> {
        let info = data.info().map_err(io::Error::other)?;
        Ok(Self {
            fd: data.fd().as_fd().try_clone_to_owned()?,
            key_len: info.key_size() as usize,
            value_len: info.value_size() as usize,
            size: info.max_entries(),
        })
    }

    /// Whether it is a map of this layout and size, and not one that an older killick has pinned.
    pub fn fits(&self, key_len: usize, value_len: usize, size: u32) -> bool {
        (self.key_len, self.value_len, self.size) == (key_len, value_len, size)
    }

    fn call(&self, command: libc::c_long, key: *const u8, value: *mut u8) -> io::Result<()> {
        let fd = u32::try_from(self.fd.as_raw_fd()).expect("a descriptor is not negative");
        let attr =
            Attr { fd, pad: 0, key: key.addr() as u64, value: value.addr() as u64, flags: 0 };
        // SAFETY: the callers below hand in buffers of the lengths that the map has.
        let rc =
            unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attr, size_of::<Attr>()) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn checked<'a>(&self, key: &'a [u8], value: usize) -> &'a [u8] {
        assert!(key.len() == self.key_len && value == self.value_len, "a map of another layout");
        key
    }

    pub fn find<T: Plain>(&self, key: &[u8]) -> io::Result<Option<T>> {
        let mut value = T::default();
        let octets = octets_of_mut(&mut value);
        let key = self.checked(key, octets.len());
        match self.call(LOOKUP, key.as_ptr(), octets.as_mut_ptr()) {
            Ok(()) => Ok(Some(value)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn set<T: Plain>(&self, key: &[u8], value: &T) -> io::Result<()> {
        let octets = octets_of(value);
        let key = self.checked(key, octets.len());
        // The kernel only reads the value.
        self.call(UPDATE, key.as_ptr(), octets.as_ptr().cast_mut())
    }

    /// Removing what is not there succeeds.
    pub fn remove(&self, key: &[u8]) -> io::Result<()> {
        let key = self.checked(key, self.value_len);
        match self.call(DELETE, key.as_ptr(), std::ptr::null_mut()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The key behind this one; the first for `None`, and for a key that is gone.
    pub fn next(&self, after: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        let key = match after {
            Some(key) => self.checked(key, self.value_len).as_ptr(),
            None => std::ptr::null(),
        };
        let mut next = vec![0; self.key_len];
        match self.call(NEXT, key, next.as_mut_ptr()) {
            Ok(()) => Ok(Some(next)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The values of all processors.
    pub fn find_of_each_cpu<T: Plain>(&self, key: &[u8], cpus: usize) -> io::Result<Vec<T>> {
        let key = self.checked(key, size_of::<T>());
        assert!(size_of::<T>().is_multiple_of(8), "the kernel rounds each value up to 8 octets");
        let mut values = vec![T::default(); cpus];
        self.call(LOOKUP, key.as_ptr(), values.as_mut_ptr().cast())?;
        Ok(values)
    }
}
