//! Arguments → configuration → node → driver. Everything else is in the library.

fn main() -> std::process::ExitCode {
    killick::cli::main()
}
