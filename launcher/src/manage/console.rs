//! `nacelle console`: this terminal as a running machine's console.

use tokio::io::copy_bidirectional;

use super::client::Client;
use crate::Result;
use crate::http::socket;
use crate::terminal::Terminal;

/// Gives this process's standard input and output to the console of the machine `name` until it ends, another
/// terminal takes it, or Ctrl-] is typed. The machine goes on.
///
/// # Errors
/// When the machine does not run, or refuses.
pub fn run(name: &str) -> Result<()> {
    super::runtime()?.block_on(async {
        let mut console = Client::new(&socket::directory(), name)?.console().await?;
        let (mut socket, mut terminal) = Terminal::open()?.attach();
        let left = tokio::select! {
            _ = copy_bidirectional(&mut console, &mut socket) => false,
            _ = terminal.next() => true,
        };
        drop(socket);
        terminal.finish().await;
        if left {
            log::info!("{name} goes on; come back by nacelle console {name}");
        }
        Ok(())
    })
}
