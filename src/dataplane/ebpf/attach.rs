//! Programs onto interfaces, so that they stay there when this process ends, and are replaced
//! without a gap when the next one begins.
//!
//! A link of the kernel (tcx from Linux 6.6 on, and XDP) is pinned in the file system of BPF and
//! finds its next program by that name. On an older kernel the program is a filter of the `clsact`
//! queueing discipline, which stays by itself; a pin of the program marks that it is ours.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use aya::Ebpf as Object;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, qdisc_add_clsact};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType, Xdp, XdpFlags};
use aya::util::KernelVersion;

use super::OpenError;

/// Of our filters in `clsact`, so that the next process replaces them: a number nobody else uses.
const PRIORITY: u16 = 4341;
const HANDLE: u32 = 1;

const BPF_FS_MAGIC: u32 = 0xcafe_4a11;
const SYS_FS_BPF: &str = "/sys/fs/bpf";

/// What an interface is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Towards sources: packets are put into tunnels (FE_I).
    Inside,
    /// Of the underlay: packets are taken out of tunnels (FE_E).
    Underlay,
    /// Where the routes of mobile prefixes lead in the kernel. What goes there by no fault of an
    /// entry (this node's own packets, and the fragments of what was too big) is put into tunnels.
    Punt,
}

/// Where in the path of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    Tc,
    /// By the driver, or before the rest of the kernel where the driver cannot. Faster than tc, which
    /// is attached too and takes what XDP leaves. The interfaces of the underlay must be able to
    /// send frames of XDP.
    Xdp,
}

/// How it came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    Tc,
    XdpNative,
    XdpGeneric,
}

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("there is no interface {0:?}")]
    NoLink(String),
    #[error(
        "XDP is not possible on {link}: neither by the driver ({native}) nor generic ({generic})"
    )]
    Xdp { link: String, native: String, generic: String },
    #[error("XDP is for interfaces with Ethernet frames, which the punt device is not")]
    XdpPunt,
    #[error("another interface with XDP has the place of {0}: detach that, or use tc")]
    Place(String),
    #[error("cannot attach to {link}: {error}")]
    Other { link: String, error: String },
}

impl AttachError {
    pub(in super::super) fn other(link: &str, error: impl std::error::Error) -> Self {
        Self::Other { link: link.to_owned(), error: whole(&error) }
    }
}

/// The error with its causes: those of aya say the reason in the last one.
pub(in super::super) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

pub(super) const fn tc_program(role: Role) -> &'static str {
    match role {
        Role::Inside => "encap_tc",
        Role::Underlay => "decap_tc",
        Role::Punt => "encap_out",
    }
}

const fn xdp_program(role: Role) -> Option<&'static str> {
    match role {
        Role::Inside => Some("encap_xdp"),
        Role::Underlay => Some("decap_xdp"),
        Role::Punt => None,
    }
}

const fn direction(role: Role) -> TcAttachType {
    match role {
        Role::Inside | Role::Underlay => TcAttachType::Ingress,
        Role::Punt => TcAttachType::Egress,
    }
}

/// Makes the directory, on the file system of BPF; mounts that when it is not there.
pub(in super::super) fn prepare(directory: &Path) -> Result<(), OpenError> {
    let error = |error: io::Error| OpenError::Pin { path: directory.to_owned(), error };
    let mount_at =
        if directory.starts_with(SYS_FS_BPF) { Path::new(SYS_FS_BPF) } else { directory };
    if mount_at == directory {
        fs::create_dir_all(directory).map_err(error)?;
    }
    let is_bpf = |path: &Path| file_system(path).is_ok_and(|magic| magic == BPF_FS_MAGIC);
    if !is_bpf(mount_at) {
        mount_bpf(mount_at).map_err(error)?;
    }
    fs::create_dir_all(directory).map_err(error)
}

fn c_path(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt as _;
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

fn file_system(path: &Path) -> io::Result<u32> {
    let path = c_path(path)?;
    // SAFETY: zeroes are a valid value of this structure of numbers.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The magic is 32 bits on every architecture, the field is not.
    Ok(stat.f_type as u32)
}

fn mount_bpf(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: all strings end with a NUL; there are no options.
    let rc = unsafe {
        libc::mount(c"bpf".as_ptr(), path.as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null())
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[derive(Debug)]
pub(in super::super) struct Links {
    directory: PathBuf,
    tcx: bool,
}

impl Links {
    /// `clsact`: by filters even where the kernel has links for tc.
    pub(in super::super) fn new(directory: PathBuf, clsact: bool) -> Self {
        let newer = KernelVersion::current().is_ok_and(|v| v >= KernelVersion::new(6, 6, 0));
        Self { directory, tcx: newer && !clsact }
    }

    pub(super) fn attach(
        &self,
        object: &mut Object,
        link: &str,
        role: Role,
        hook: Hook,
    ) -> Result<Attached, AttachError> {
        if ifindex(link) == 0 {
            return Err(AttachError::NoLink(link.to_owned()));
        }
        // First what takes the packets that XDP leaves.
        self.attach_program(object, link, tc_program(role), direction(role))
            .map_err(|e| AttachError::other(link, e))?;
        match (hook, xdp_program(role)) {
            (Hook::Tc, Some(program)) => {
                // It may have been otherwise before a restart.
                for kind in ["xdp", "xdpgeneric"] {
                    let pin = self.pin(kind, program, link);
                    remove(&pin).map_err(|e| AttachError::other(link, e))?;
                }
                Ok(Attached::Tc)
            }
            (Hook::Tc, None) => Ok(Attached::Tc),
            (Hook::Xdp, Some(program)) => self.attach_xdp(object, link, program),
            (Hook::Xdp, None) => Err(AttachError::XdpPunt),
        }
    }

    /// One program of tc; `name` is that in the object, and finds it again.
    pub(in super::super) fn attach_program(
        &self,
        object: &mut Object,
        link: &str,
        name: &str,
        direction: TcAttachType,
    ) -> Result<(), ProgramError> {
        let program: &mut SchedClassifier =
            object.program_mut(name).ok_or(ProgramError::NotLoaded)?.try_into()?;
        if self.tcx {
            let pin = self.pin("tcx", name, link);
            if let Some(old) = pinned(&pin)? {
                if let Ok(old) = SchedClassifierLink::try_from(old)
                    && let Ok(id) = program.attach_to_link(old)
                {
                    program.take_link(id)?; // the pin keeps it
                    return Ok(());
                }
                // Of an interface that is gone: this one has the name now.
                remove(&pin)?;
            }
            let options = TcAttachOptions::TcxOrder(LinkOrder::default());
            let id = program.attach_with_options(link, direction, options)?;
            let made = FdLink::try_from(program.take_link(id)?).map_err(io::Error::other)?;
            made.pin(&pin).map_err(io::Error::other)?;
            return Ok(());
        }
        match qdisc_add_clsact(link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        let marker = self.pin("clsact", name, link);
        let old = SchedClassifierLink::attached(link, direction, PRIORITY, HANDLE)?;
        let id = if marker.exists() {
            program.attach_to_link(old).ok()
        } else {
            std::mem::forget(old); // dropping it would detach
            None
        };
        let id = match id {
            Some(id) => id,
            None => {
                let options = NlOptions { priority: PRIORITY, handle: HANDLE };
                program.attach_with_options(link, direction, TcAttachOptions::Netlink(options))?
            }
        };
        std::mem::forget(program.take_link(id)?);
        remove(&marker)?;
        program.pin(&marker).map_err(io::Error::other)?;
        Ok(())
    }

    fn attach_xdp(
        &self,
        object: &mut Object,
        link: &str,
        name: &str,
    ) -> Result<Attached, AttachError> {
        let other = |e: ProgramError| AttachError::other(link, e);
        let program: &mut Xdp = object
            .program_mut(name)
            .ok_or(ProgramError::NotLoaded)
            .and_then(TryInto::try_into)
            .map_err(other)?;
        for (kind, attached) in [("xdp", Attached::XdpNative), ("xdpgeneric", Attached::XdpGeneric)]
        {
            let pin = self.pin(kind, name, link);
            let Some(old) = pinned(&pin).map_err(|e| AttachError::other(link, e))? else {
                continue;
            };
            if let Ok(old) = old.try_into()
                && let Ok(id) = program.attach_to_link(old)
            {
                program.take_link(id).map_err(other)?;
                return Ok(attached);
            }
            remove(&pin).map_err(|e| AttachError::other(link, e))?;
        }
        let (id, kind, attached) = match program.attach(link, XdpFlags::DRV_MODE) {
            Ok(id) => (id, "xdp", Attached::XdpNative),
            Err(native) => match program.attach(link, XdpFlags::SKB_MODE) {
                Ok(id) => (id, "xdpgeneric", Attached::XdpGeneric),
                Err(generic) => {
                    return Err(AttachError::Xdp {
                        link: link.to_owned(),
                        native: whole(&native),
                        generic: whole(&generic),
                    });
                }
            },
        };
        let made = program.take_link(id).map_err(other)?;
        let made = FdLink::try_from(made).map_err(|e| AttachError::other(link, e))?;
        made.pin(self.pin(kind, name, link)).map_err(|e| AttachError::other(link, e))?;
        Ok(attached)
    }

    /// Detaches all that is ours in this role; nothing being there is fine.
    pub(super) fn detach(&self, link: &str, role: Role) -> io::Result<()> {
        for kind in ["xdp", "xdpgeneric"] {
            if let Some(name) = xdp_program(role) {
                remove(&self.pin(kind, name, link))?;
            }
        }
        self.detach_program(link, tc_program(role), direction(role))
    }

    pub(in super::super) fn detach_program(
        &self,
        link: &str,
        name: &str,
        direction: TcAttachType,
    ) -> io::Result<()> {
        remove(&self.pin("tcx", name, link))?;
        let marker = self.pin("clsact", name, link);
        if marker.exists() {
            if ifindex(link) != 0 {
                drop(SchedClassifierLink::attached(link, direction, PRIORITY, HANDLE)?);
            }
            remove(&marker)?;
        }
        Ok(())
    }

    /// The interfaces that something of ours is attached to, from before a restart too.
    pub(super) fn list(&self) -> io::Result<Vec<(String, Role)>> {
        let mut found = Vec::new();
        for (link, program) in self.programs()? {
            for role in [Role::Inside, Role::Underlay, Role::Punt] {
                if tc_program(role) == program || xdp_program(role) == Some(&program) {
                    found.push((link.clone(), role));
                }
            }
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Interfaces, each with a program of ours.
    pub(in super::super) fn programs(&self) -> io::Result<Vec<(String, String)>> {
        let mut found = Vec::new();
        for file in fs::read_dir(&self.directory)? {
            let name = file?.file_name();
            let mut parts = name.to_str().unwrap_or_default().splitn(3, ':');
            // What has no such name is a map.
            if let (Some(_kind), Some(program), Some(link)) =
                (parts.next(), parts.next(), parts.next())
            {
                found.push((decode(link), program.to_owned()));
            }
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    fn pin(&self, kind: &str, program: &str, link: &str) -> PathBuf {
        self.directory.join(format!("{kind}:{program}:{}", encode(link)))
    }
}

/// The file system of BPF keeps names with dots to itself.
fn encode(link: &str) -> String {
    link.replace('%', "%25").replace('.', "%2E")
}

fn decode(name: &str) -> String {
    name.replace("%2E", ".").replace("%25", "%")
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn pinned(path: &Path) -> io::Result<Option<FdLink>> {
    if !path.exists() {
        return Ok(None);
    }
    PinnedLink::from_pin(path).map(|link| Some(link.into())).map_err(io::Error::other)
}

/// 0 for a name that no interface has.
pub(in super::super) fn ifindex(link: &str) -> u32 {
    let Ok(name) = CString::new(link) else { return 0 };
    // SAFETY: the string ends with a NUL.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

/// Its Ethernet address.
pub(super) fn mac_of(link: &str) -> io::Result<[u8; 6]> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // SAFETY: an ifreq is plain data, all zero is valid.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    if link.len() >= ifreq.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in ifreq.ifr_name.iter_mut().zip(link.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the pointer is to a live value, and this request takes one of its kind.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut ifreq) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the request has filled in this variant.
    let address = unsafe { ifreq.ifr_ifru.ifru_hwaddr };
    if address.sa_family != libc::ARPHRD_ETHER {
        return Err(io::Error::other("not an interface with Ethernet frames"));
    }
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(address.sa_data) {
        *to = from.cast_unsigned();
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_found_again_by_the_name_of_its_pin() {
        for link in ["eth0", "eth0.100", "a%2E", "veth-1@x"] {
            let name = encode(link);
            assert!(!name.contains('.'));
            assert_eq!(decode(&name), link);
        }
    }
}
