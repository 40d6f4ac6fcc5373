//! `tlctl`: see `--help`.

fn main() -> std::process::ExitCode {
    tl_client::cli::main()
}
