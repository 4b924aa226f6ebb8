//! Says back what it hears, to peers that speak TLS. A renewed certificate is used within a minute, without a restart.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use shardwise::{Input, Protocol, Result, Shard, TlsServerConfig, Transport};

/// How often the files are read again.
const RELOAD_EVERY: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
struct Own {
    /// The certificate, and those that lead to its issuer, in PEM
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Its private key, in PEM
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

fn main() -> ExitCode {
    let (flags, own) =
        common::parse_or_exit::<Own>("Says back what it hears, to peers that speak TLS.", 7443);
    let server = flags.server_or_exit();
    // One for all shards, so that a session is resumed on whichever shard a client comes back to.
    let tls = match TlsServerConfig::from_files(&own.cert, &own.key) {
        Ok(tls) => tls,
        Err(error) => {
            let text = format!("error: --cert or --key: {error}");
            return common::Ending { code: 2, text }.into();
        }
    };
    reload_now_and_then(tls.clone());
    let server = server.with_tls(&tls);
    common::serve(flags.runtime(), async move |shard: Shard| {
        let listener = shard.listen(&server, || Echo)?;
        common::announce(&shard, &listener);
        Ok(())
    })
}

/// A bad file leaves the old certificate in its place. On a thread of its own, since reading files may take its time; it
/// ends with the process.
fn reload_now_and_then(tls: TlsServerConfig) {
    std::thread::spawn(move || {
        loop {
            // Woken now and then for nothing, it reads them once more.
            std::thread::park_timeout(RELOAD_EVERY);
            if let Err(error) = tls.reload() {
                common::output::complain(format!("the certificate stays as it is: {error}"));
            }
        }
    });
}

struct Echo;

impl Protocol for Echo {
    fn data_received(&mut self, transport: &Transport, input: &mut Input<'_>) -> Result<()> {
        transport.write(input.take())?;
        Ok(())
    }
}
