use std::os::unix::net::UnixStream as Blocking;

use tokio::io::DuplexStream;

use super::*;

/// The guest's end of the line, and the console that serves the other.
fn line() -> (UnixStream, Console, JoinHandle<()>) {
    let (guest, host) = Blocking::pair().unwrap();
    guest.set_nonblocking(true).unwrap();
    let (console, task) = Console::start(host, None).unwrap();
    (UnixStream::from_std(guest).unwrap(), console, task)
}

async fn client(console: &Console) -> DuplexStream {
    let (near, far) = tokio::io::duplex(128);
    assert!(console.attach(Box::new(far)).await);
    near
}

async fn hear(client: &mut DuplexStream, words: &str) {
    let mut heard = vec![0; words.len()];
    client.read_exact(&mut heard).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&heard), words);
}

#[tokio::test]
async fn a_late_client_hears_what_was_said_before_it_came() {
    let (mut guest, console, _task) = line();
    guest.write_all(b"booting\n").await.unwrap();
    let mut first = client(&console).await;
    hear(&mut first, "booting\n").await;
    guest.write_all(b"login: ").await.unwrap();
    hear(&mut first, "login: ").await;
    let mut late = client(&console).await;
    hear(&mut late, "booting\nlogin: ").await;
}

#[tokio::test]
async fn a_newer_client_takes_over() {
    let (mut guest, console, _task) = line();
    let mut older = client(&console).await;
    older.write_all(b"a").await.unwrap();
    let mut heard = [0; 1];
    guest.read_exact(&mut heard).await.unwrap();
    let mut newer = client(&console).await;
    let mut rest = Vec::new();
    older.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
    assert!(older.write_all(b"b").await.is_err());
    newer.write_all(b"c").await.unwrap();
    guest.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"c");
    guest.write_all(b"!").await.unwrap();
    hear(&mut newer, "!").await;
}

#[tokio::test]
async fn a_log_hears_all_beside_who_has_the_console() {
    let (mut guest, console, _task) = line();
    guest.write_all(b"booting\n").await.unwrap();
    let mut terminal = client(&console).await;
    let (mut log, far) = tokio::io::duplex(128);
    assert!(console.log(Box::new(far)).await);
    guest.write_all(b"login: ").await.unwrap();
    for listener in [&mut terminal, &mut log] {
        hear(listener, "booting\nlogin: ").await;
    }
    drop(guest);
    for mut listener in [terminal, log] {
        let mut rest = Vec::new();
        listener.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty());
    }
}

#[tokio::test]
async fn what_is_typed_waits_for_the_guest_and_arrives_whole() {
    let (mut guest, console, _task) = line();
    let mut client = client(&console).await;
    // More than all buffers on the way hold.
    let text: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
    let typed = text.clone();
    let typing = tokio::spawn(async move {
        client.write_all(&typed).await.unwrap();
        client
    });
    let mut heard = vec![0; text.len()];
    guest.read_exact(&mut heard).await.unwrap();
    assert!(heard == text);
    // The end of what is typed is not the end of listening.
    let mut client = typing.await.unwrap();
    client.shutdown().await.unwrap();
    guest.write_all(b"ok").await.unwrap();
    hear(&mut client, "ok").await;
}

#[tokio::test]
async fn who_does_not_read_holds_up_nobody_and_misses_the_oldest() {
    let (mut guest, console, _task) = line();
    let mut slow = client(&console).await;
    let words: Vec<u8> = (0..8 * HISTORY as u32).map(|i| (i % 251) as u8).collect();
    guest.write_all(&words).await.unwrap();
    // The guest was heard to its end: its echo comes back though nobody reads what it says.
    slow.write_all(b"?").await.unwrap();
    let mut heard = [0; 1];
    guest.read_exact(&mut heard).await.unwrap();
    drop(guest);
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).await.unwrap();
    assert!(rest.len() < words.len());
    assert!(words.ends_with(&rest[rest.len() - HISTORY..]));
}

#[tokio::test]
async fn the_last_words_are_heard() {
    let (mut guest, console, task) = line();
    let mut client = client(&console).await;
    guest.write_all(b"reboot: Power down\n").await.unwrap();
    drop(guest);
    hear(&mut client, "reboot: Power down\n").await;
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    task.await.unwrap();
    let (_near, far) = tokio::io::duplex(128);
    assert!(!console.attach(Box::new(far)).await);
}

#[test]
fn the_history_is_the_last_of_what_was_said() {
    let mut history = History::default();
    let mut all = Vec::new();
    for round in 0..200u32 {
        let said: Vec<u8> = (0..997).map(|i| (i * round % 253) as u8).collect();
        history.push(&said);
        all.extend(said);
        assert_eq!(history.said, all.len() as u64);
        let mut place = history.oldest();
        let mut kept = Vec::new();
        while place < history.said {
            let bytes = history.from(place);
            kept.extend_from_slice(bytes);
            place += bytes.len() as u64;
        }
        assert_eq!(kept, all[all.len().saturating_sub(HISTORY)..]);
    }
    assert!(history.bytes.capacity() <= 2 * HISTORY);
    assert!(history.from(history.said).is_empty());
}

#[tokio::test]
async fn a_log_that_is_expected_hears_a_machine_that_has_ended() {
    let (mut guest, host) = Blocking::pair().unwrap();
    let (console, task) = Console::start(host, Some(Duration::from_secs(60))).unwrap();
    std::io::Write::write_all(&mut guest, b"panic").unwrap();
    drop(guest);
    // Somebody else comes first and goes: it is still waited for.
    let mut client = client(&console).await;
    hear(&mut client, "panic").await;
    drop(client);
    let (mut log, far) = tokio::io::duplex(128);
    assert!(console.log(Box::new(far)).await);
    let mut heard = String::new();
    log.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "panic");
    task.await.unwrap();
}
