//! Unix sockets of the daemon.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Listens at `path` with these permissions, non-blocking. What a killed daemon left there is
/// replaced; a living one is not, and neither is anything that is no socket.
pub fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory)
            .map_err(|e| named(e, "cannot make the directory", directory))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            let exists = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(named(exists, "will not replace what is no socket:", path));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            let in_use = io::Error::from(io::ErrorKind::AddrInUse);
            return Err(named(in_use, "another daemon answers at", path));
        }
        Ok(_) => {
            std::fs::remove_file(path).map_err(|e| named(e, "cannot replace", path))?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(|e| named(e, "cannot listen at", path))?;
    // Until here nobody but the owner can connect: that needs the right to write, which no usual
    // umask leaves to others.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|e| named(e, "cannot set the permissions of", path))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn named(error: io::Error, what: &str, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let directory = std::env::temp_dir().join(format!("killick-socket-{}", std::process::id()));
        let path = directory.join("sub/api.sock");
        let first = bind(&path, 0o600).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(bind(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        bind(&path, 0o660).unwrap();
        let file = directory.join("file");
        std::fs::write(&file, "precious").unwrap();
        assert_eq!(bind(&file, 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
