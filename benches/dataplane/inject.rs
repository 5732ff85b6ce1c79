//! The injector and the counters: `inject.bpf.c` and its run by bpf(2).

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use aya::maps::{Array, PerCpuArray};
use aya::programs::{SchedClassifier, TcAttachType, Xdp, XdpFlags};
use aya::{Ebpf, Pod, include_bytes_aligned};

use super::Result;

static OBJECT: &[u8] = include_bytes_aligned!("inject.bpf.o");

/// Ethernet, IPv4 or IPv6, UDP, and some payload: the shortest frame of Ethernet.
pub const FRAME_LEN: usize = 64;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Config {
    pub count: u32,
    pub base: u32,
    pub tx: u32,
    pub sum: u32,
    pub v6: u32,
    pub port: u32,
    pub header: [u8; FRAME_LEN],
}
// SAFETY: words and octets, no padding.
unsafe impl Pod for Config {}

#[repr(C)]
#[derive(Clone, Copy)]
struct State {
    injected: u64,
    sunk: u64,
}
// SAFETY: double words.
unsafe impl Pod for State {}

pub struct Bench {
    object: Ebpf,
}

impl Bench {
    pub fn load(config: Config) -> Result<Self> {
        let mut object = Ebpf::load(OBJECT)?;
        let map = object.map_mut(".bss").ok_or("the object has no configuration")?;
        Array::<_, Config>::try_from(map)?.set(0, config, 0)?;
        for (_, program) in object.programs_mut() {
            match program {
                aya::programs::Program::Xdp(program) => program.load()?,
                aya::programs::Program::SchedClassifier(program) => program.load()?,
                _ => {}
            }
        }
        Ok(Self { object })
    }

    /// In the namespace of the caller, until this object is dropped.
    pub fn attach_xdp(&mut self, program: &str, link: &str) -> Result<()> {
        let program: &mut Xdp = self.object.program_mut(program).ok_or("no program")?.try_into()?;
        program.attach(link, XdpFlags::DRV_MODE)?;
        Ok(())
    }

    pub fn attach_sink(&mut self, link: &str) -> Result<()> {
        let program: &mut SchedClassifier =
            self.object.program_mut("sink_tc").ok_or("no program")?.try_into()?;
        program.attach(link, TcAttachType::Ingress)?;
        Ok(())
    }

    pub fn sunk(&self) -> Result<u64> {
        let map = self.object.map("STATE").ok_or("the object has no counters")?;
        let each = PerCpuArray::<_, State>::try_from(map)?.get(&0, 0)?;
        Ok(each.iter().map(|state| state.sunk).sum())
    }

    /// In the namespace of `ifindex`.
    pub fn inject(&self, ifindex: u32, packets: u32) -> Result<()> {
        let program: &Xdp = self.object.program("inject").ok_or("no program")?.try_into()?;
        let fd = program.fd()?.as_fd().as_raw_fd();
        run_live(fd, ifindex, packets)?;
        Ok(())
    }
}

const PROG_TEST_RUN: libc::c_long = 10;
const LIVE_FRAMES: u32 = 2;

/// `union bpf_attr` as `BPF_PROG_TEST_RUN` reads it.
#[repr(C)]
#[derive(Default)]
struct Attr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// `struct xdp_md`: from, to, metadata, ingress interface and queue, egress.
type XdpContext = [u32; 6];

fn run_live(fd: i32, ifindex: u32, packets: u32) -> io::Result<()> {
    let frame = [0_u8; FRAME_LEN];
    let len = u32::try_from(FRAME_LEN).expect("64");
    let context: XdpContext = [0, len, 0, ifindex, 0, 0];
    let attr = Attr {
        prog_fd: u32::try_from(fd).map_err(io::Error::other)?,
        data_size_in: len,
        data_in: frame.as_ptr().addr() as u64,
        repeat: packets,
        ctx_size_in: u32::try_from(size_of::<XdpContext>()).expect("24"),
        ctx_in: context.as_ptr().addr() as u64,
        flags: LIVE_FRAMES,
        batch_size: 64,
        ..Attr::default()
    };
    // SAFETY: all pointers are to live values of the lengths that are told.
    let rc =
        unsafe { libc::syscall(libc::SYS_bpf, PROG_TEST_RUN, &raw const attr, size_of::<Attr>()) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub fn pin_this_thread(cpu: usize) -> io::Result<()> {
    // SAFETY: a cpu_set_t is plain data, and CPU_SET stays inside it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        if libc::sched_setaffinity(0, size_of_val(&set), &raw const set) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Time on the wall, and of the processor: of this thread, in whose name most packets are handled,
/// and of the kernel's thread that takes what is too much at once.
pub struct Meter {
    deferred: Option<u32>,
    wall: Instant,
    own: Duration,
    kernel: Duration,
}

impl Meter {
    pub fn start(deferred: Option<u32>) -> Self {
        let kernel = deferred.map_or(Duration::ZERO, run_time);
        Self { deferred, wall: Instant::now(), own: thread_time(), kernel }
    }

    /// Wall, processor.
    pub fn stop(self) -> (Duration, Duration) {
        let wall = self.wall.elapsed();
        let own = thread_time() - self.own;
        let kernel = self.deferred.map_or(Duration::ZERO, run_time);
        (wall, own + kernel.saturating_sub(self.kernel))
    }
}

fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live value.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

fn run_time(process: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{process}/schedstat")).unwrap_or_default();
    let first = text.split_whitespace().next().and_then(|ns| ns.parse().ok());
    Duration::from_nanos(first.unwrap_or_default())
}

/// The kernel's thread for deferred packets of a processor.
pub fn find_deferred(cpu: usize) -> Option<u32> {
    let name = format!("ksoftirqd/{cpu}\n");
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let process = entry.file_name().to_str()?.parse().ok()?;
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        (comm == name).then_some(process)
    })
}
