//! Ctrl-C and SIGTERM end a lab in order.

use std::mem::MaybeUninit;
use std::sync::mpsc::{self, Receiver};

use super::Result;
use super::guard::{GUARDS, finish};

/// The first signal arrives here.
pub fn receiver() -> Result<Receiver<()>> {
    let (sender, receiver) = mpsc::channel();
    on_signal(move |_| {
        let _ = sender.send(());
    })?;
    Ok(receiver)
}

/// The first signal removes the labs of this process and ends it.
pub fn exit_on_signal() -> Result<()> {
    on_signal(|signal| {
        let mut guards = GUARDS.lock().unwrap_or_else(|e| e.into_inner());
        guards.drain(..).for_each(finish);
        std::process::exit(128 + signal);
    })
}

/// To be called before any thread is started: they inherit the mask. (Children do not; the standard
/// library clears it for them.)
fn on_signal(act: impl FnOnce(i32) + Send + 'static) -> Result<()> {
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
    std::thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: both pointers are to live values of the right type.
        unsafe { libc::sigwait(&set, &mut signal) };
        act(signal);
    });
    Ok(())
}
