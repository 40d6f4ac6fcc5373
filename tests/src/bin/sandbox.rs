//! The processes of the sandbox: the same mains as `tlctl`'s, from a program that tests can find.

fn main() -> std::process::ExitCode {
    tl_client::cli::main()
}
