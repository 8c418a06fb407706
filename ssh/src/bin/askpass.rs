//! Passes a prompt of `ssh` on. The `cellferry` program does this by itself; tests and benchmarks use this one.

fn main() {
    std::process::exit(cellferry_ssh::askpass_main().unwrap_or(2));
}
