//! Ctrl-C and SIGTERM end a lab in order.

use std::mem::MaybeUninit;
use std::sync::mpsc::{self, Receiver};

use super::Result;
use super::guard::{GUARDS, finish};

/// A second signal, or one that nobody waits for, removes the labs and exits.
pub struct Signals {
    first: Receiver<()>,
}

impl Signals {
    /// To be called before any thread is started: they inherit the mask. (Children do not; the
    /// standard library clears it for them.)
    pub fn catch() -> Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `sigemptyset` initialises the set, the others read it.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                libc::sigaddset(&mut set, signal);
            }
            if libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
                return Err("cannot block signals".into());
            }
            set
        };
        let (sender, first) = mpsc::sync_channel(0);
        std::thread::spawn(move || {
            let mut signal = 0;
            // SAFETY: both pointers are to live values of the right type.
            unsafe { libc::sigwait(&set, &mut signal) };
            // Somebody in `wait` takes it at once; otherwise nothing can be finished in order.
            if sender.try_send(()).is_err() {
                let mut guards = GUARDS.lock().unwrap_or_else(|e| e.into_inner());
                guards.drain(..).for_each(finish);
                std::process::exit(128 + signal);
            }
        });
        Ok(Self { first })
    }

    /// Until a signal comes.
    pub fn wait(&self) {
        let _ = self.first.recv();
    }
}
