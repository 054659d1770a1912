//! The filter: one JSON argument, log-mel frames on stdin, JSON lines on stdout, diagnostics on stderr.

#[cfg(target_os = "wasi")]
fn main() {
    use guest::{events::Events, features::Features, nn::NnModel, options::Argument, transcribe::transcribe, Result};
    use std::io;

    let run = || -> Result<()> {
        let argument = Argument::parse(std::env::args().nth(1).as_deref())?;
        let mut model = NnModel::load(&argument.model, &argument.dims)?;
        let mut features = Features::new(io::stdin().lock(), argument.dims.n_mels);
        let mut events = Events::new(io::stdout().lock());
        transcribe(&argument, &mut model, &mut features, &mut events)
    };
    if let Err(error) = run() {
        eprintln!("guest: {error}");
        std::process::exit(1);
    }
}

#[cfg(not(target_os = "wasi"))]
fn main() {
    eprintln!("guest: runs only as WebAssembly, under a host that has wasi_ephemeral_nn");
    std::process::exit(1);
}
