//! A disk that fails or has lost something: what was acknowledged is there, or the router says that it is not.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use bytes::Bytes;

use super::{LocalRouter, Setup, arrivals::id_of, is_long, mapped, producers::post_event, trigger};
use crate::support::{Consumer, PATIENCE, Process, Scratch, eventually};

/// The events that were acknowledged, with their data.
type Acknowledged = BTreeMap<String, Bytes>;

/// Data that do not compress, the same for the same id.
fn data_of(id: u64, length: usize) -> Bytes {
    let mut data = vec![0; length];
    fastrand::Rng::with_seed(id).fill(&mut data);
    data.into()
}

/// Posts until an answer is no 202 or there are enough; gives what was acknowledged.
fn post_until_it_fails(router: &LocalRouter, events: u64, length: usize) -> Acknowledged {
    let mut acknowledged = Acknowledged::new();
    for id in 0..events {
        let data = data_of(id, length);
        match post_event(&router.url(), &id.to_string(), "k", data.clone()) {
            Ok(response) if response.status == 202 => acknowledged.insert(id.to_string(), data),
            _ => break,
        };
    }
    acknowledged
}

/// A Trigger whose events wait, so that nothing but them is in the log.
pub(super) fn suspended() -> Setup {
    let manifest = trigger("any", "").replace("spec:", "spec:\n  suspend: true");
    Setup::new(&manifest, &[])
}

/// A router on the data of one that had the Trigger suspended, which now delivers.
fn delivering(data: &Path, consumer: &Consumer) -> LocalRouter {
    Setup::new(&trigger("any", ""), &[mapped("any", consumer)])
        .data(data)
        .launch()
}

/// The journal that is written to, and how much of it is written; zeros follow.
pub(super) fn newest_journal(data: &Path) -> (PathBuf, u64) {
    let files = fs::read_dir(data.join("log/store")).unwrap();
    let journal = files
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jnl"))
        .max()
        .unwrap();
    let written = written(&fs::read(&journal).unwrap());
    (journal, written)
}

/// Up to the last byte that is not zero.
pub(super) fn written(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1) as u64
}

pub(super) fn copy_of(data: &Path) -> Scratch {
    let copy = Scratch::new();
    let status = Command::new("cp")
        .args(["-a", "--"])
        .arg(data.join("."))
        .arg(copy.path())
        .status();
    assert!(status.unwrap().success());
    copy
}

/// What a router makes of data that may be damaged.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// Every acknowledged event arrived.
    Everything,
    /// It did not start, and said why.
    Refused(String),
    /// It said what it could not read.
    Said(String),
}

/// Whether a line tells of damage in this directory.
fn tells_of_damage(line: &str, data: &Path) -> bool {
    let log = data.join("log").display().to_string();
    line.contains(&format!("the event log in {log} is damaged: "))
        || line.contains(&format!("cannot open the event log in {log}: "))
}

/// Waits for one of the outcomes. Anything else, above all an event that is missing without a word, is an error.
#[track_caller]
fn outcome(
    damage: &str,
    router: &mut LocalRouter,
    consumer: &Consumer,
    acknowledged: &Acknowledged,
) -> Outcome {
    let data = router.data().to_owned();
    eventually(PATIENCE, || {
        let arrived = consumer.look(|received| {
            let mut arrived = std::collections::BTreeSet::new();
            for message in received {
                let id = id_of(message);
                if let Some(data) = acknowledged.get(&id) {
                    assert!(message.body == data, "{damage}: {id} arrived with other data");
                    arrived.insert(id);
                }
            }
            arrived.len()
        });
        if arrived == acknowledged.len() {
            return Ok(Outcome::Everything);
        }
        let ended = !router.process.is_running();
        let lines = router.process.lines();
        let said = lines.iter().find(|line| tells_of_damage(line, &data));
        match said {
            Some(line) if ended => Ok(Outcome::Refused(line.clone())),
            Some(line) => Ok(Outcome::Said(line.clone())),
            None if ended => Err(format!("{damage}: it ended without telling of it: {lines:?}")),
            None => Err(format!(
                "{damage}: {arrived} of {} arrived, and nothing was said: {lines:?}",
                acknowledged.len()
            )),
        }
    })
}

#[test]
fn acknowledged_records_that_are_cut_off_are_missed() {
    let mut router = suspended().start();
    let acknowledged = post_until_it_fails(&router, 10, 300);
    assert_eq!(acknowledged.len(), 10);
    router.process.kill();
    for cut in [1, 9, 200] {
        let data = copy_of(router.data());
        let (journal, written) = newest_journal(data.path());
        let journal = File::options().write(true).open(journal).unwrap();
        journal.set_len(written - cut).unwrap();
        let consumer = Consumer::start();
        let mut router = delivering(data.path(), &consumer);
        let status = router.process.wait_for_exit(PATIENCE);
        assert_eq!(status.code(), Some(1));
        let Outcome::Refused(line) = outcome(
            &format!("{cut} bytes cut off"),
            &mut router,
            &consumer,
            &acknowledged,
        ) else {
            panic!("{cut} bytes were cut off, and it started");
        };
        assert!(
            line.contains("10 records were acknowledged and only 9 are left"),
            "{line}"
        );
    }
}

#[cfg(feature = "failpoints")]
#[test]
fn a_torn_record_that_was_not_acknowledged_is_no_damage() {
    let mut router = suspended()
        .fail_points("log-after-write=10*off->return(kill)")
        .start();
    let acknowledged = post_until_it_fails(&router, 20, 300);
    assert_eq!(acknowledged.len(), 10);
    router.wait_until_killed();
    for cut in [0, 1, 9, 200] {
        let data = copy_of(router.data());
        let (journal, written) = newest_journal(data.path());
        let journal = File::options().write(true).open(journal).unwrap();
        journal.set_len(written - cut).unwrap();
        let consumer = Consumer::start();
        let mut router = delivering(data.path(), &consumer);
        assert_eq!(
            outcome(
                &format!("{cut} bytes cut off"),
                &mut router,
                &consumer,
                &acknowledged
            ),
            Outcome::Everything
        );
        let answer = post_event(&router.url(), "more", "k", "");
        assert_eq!(answer.unwrap().status, 202);
        consumer.wait_until(PATIENCE, |received| {
            received.iter().any(|message| id_of(message) == "more")
        });
    }
}

/// As after a loss of power: the journal's file is as long as before, and a page in it was not written.
#[cfg(feature = "failpoints")]
#[test]
fn a_record_that_lacks_a_page_and_was_not_acknowledged_is_no_damage() {
    const PAGE: u64 = 4096;
    let mut router = suspended()
        .fail_points("log-after-write=10*off->return(kill)")
        .start();
    let acknowledged = post_until_it_fails(&router, 20, 20_000);
    assert_eq!(acknowledged.len(), 10);
    router.wait_until_killed();
    let (journal, written) = newest_journal(router.data());
    let journal = File::options().write(true).open(journal).unwrap();
    let page = written / PAGE - 1;
    journal.write_all_at(&[0; PAGE as usize], page * PAGE).unwrap();

    let consumer = Consumer::start();
    let mut router = delivering(router.data(), &consumer);
    assert_eq!(
        outcome("a page is missing", &mut router, &consumer, &acknowledged),
        Outcome::Everything
    );
    let cut = |line: &String| line.contains("the last commit was written only in part");
    assert!(router.process.lines().iter().any(cut));
    assert_eq!(post_event(&router.url(), "more", "k", "").unwrap().status, 202);
}

#[test]
fn a_configuration_that_cannot_be_read_is_replaced_by_the_next() {
    let mut router = suspended().start();
    let acknowledged = post_until_it_fails(&router, 10, 300);
    router.process.kill();
    let data = router.data().to_owned();
    let saved = data.join("configuration.json");
    let foreign = r#"{"revision":"r","triggers":[{"of":"another version"}]}"#;
    fs::write(&saved, foreign).unwrap();

    let alone = [
        "router",
        "--name=r",
        "--listen=127.0.0.1:0",
        "--admin=127.0.0.1:0",
        "--controller=http://127.0.0.1:9",
        &format!("--data={}", data.display()),
    ];
    let mut without_controller = Process::weir(alone).start();
    let url = format!("http://{}/shop/default", without_controller.address("ingress"));
    let answer = post_event(&url, "early", "k", "").unwrap();
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["reason"], "no_configuration");
    let told = |line: &String| line.contains("is not a routing configuration that this version can read");
    assert!(without_controller.lines().iter().any(told));
    without_controller.terminate();
    assert_eq!(fs::read_to_string(&saved).unwrap(), foreign);

    let consumer = Consumer::start();
    let mut router = delivering(&data, &consumer);
    router.wait_until_ready();
    assert_eq!(
        outcome("a foreign configuration", &mut router, &consumer, &acknowledged),
        Outcome::Everything
    );
    assert_ne!(fs::read_to_string(&saved).unwrap(), foreign);
}

/// The files of the event log's storage, with how much of each is written.
pub(super) fn files_below(folder: &Path, files: &mut Vec<(PathBuf, u64)>) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
        if entry.file_type().unwrap().is_dir() {
            files_below(&entry.path(), files);
        } else {
            let written = written(&fs::read(entry.path()).unwrap());
            if written > 0 {
                files.push((entry.path(), written));
            }
        }
    }
}

#[test]
fn a_flipped_bit_is_never_an_event_that_is_missing_without_a_word() {
    // Enough for a table beside the journal.
    let mut router = suspended().start();
    let acknowledged = post_until_it_fails(&router, 60, 100 * 1024);
    assert_eq!(acknowledged.len(), 60);
    router.process.terminate();
    let mut files = Vec::new();
    files_below(&router.data().join("log/store"), &mut files);
    files.sort();
    let tables = files
        .iter()
        .filter(|(path, _)| path.to_string_lossy().contains("/tables/"));
    assert!(tables.count() > 0, "{files:?}");

    let mut outcomes = BTreeMap::<&str, u32>::new();
    for round in 0..if is_long() { 150 } else { 12 } {
        let (file, written) = &files[round % files.len()];
        let (at, bit) = (fastrand::u64(0..*written), fastrand::u8(0..8));
        let data = copy_of(router.data());
        let file = data.path().join(file.strip_prefix(router.data()).unwrap());
        flip(&file, at, bit);
        let consumer = Consumer::start();
        let flipped = format!("bit {bit} of byte {at} in {}", file.display());
        let mut router = delivering(data.path(), &consumer);
        let found = outcome(&flipped, &mut router, &consumer, &acknowledged);
        let name = match found {
            Outcome::Everything => "changed nothing",
            Outcome::Refused(_) => "refused to start",
            Outcome::Said(line) => {
                eventually(PATIENCE, || {
                    if !router.process.is_running() || router.metrics_tell_of_damage("any") {
                        Ok(())
                    } else {
                        Err(format!("{flipped}: the metrics do not tell of: {line}"))
                    }
                });
                "said what cannot be read"
            }
        };
        *outcomes.entry(name).or_default() += 1;
    }
    eprintln!("flipped bits: {outcomes:?}");
}

pub(super) fn flip(file: &Path, at: u64, bit: u8) {
    let file = File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
}

#[cfg(feature = "failpoints")]
#[test]
fn a_failed_fsync_ends_the_router_and_nobody_was_told_that_it_worked() {
    let consumer = Consumer::start();
    let mut router = Setup::new(&trigger("any", ""), &[mapped("any", &consumer)])
        .fail_points("log-before-fsync=60*off->return(the disk is gone)")
        .start();
    let producers = super::Producers::start(&router.url());
    let status = router.process.wait_for_exit(PATIENCE);
    assert_eq!(status.code(), Some(1));
    let lines = router.process.lines();
    let reason = "weir: the event log failed and is closed: an fsync failed";
    let last = lines.last().unwrap();
    assert!(
        last.contains(reason) && last.contains("the disk is gone"),
        "{last}"
    );
    // What was being written was not fsynced, and whoever had posted it got no 202.
    let (told, durable) = (producers.count() as u64, acknowledged_by_the_log(router.data()));
    assert!(told <= durable, "{told} were acknowledged, {durable} are durable");
    router.restart();
    producers.wait_for_more(50);
    super::all_arrive(&consumer, &producers.finish());
}

/// How many records the log has acknowledged, as it noted beside them, in two copies.
#[cfg(feature = "failpoints")]
fn acknowledged_by_the_log(data: &Path) -> u64 {
    let noted = fs::read(data.join("log/acknowledged")).unwrap();
    let copy = |at: usize| u64::from_le_bytes(noted[at..at + 8].try_into().unwrap());
    copy(0).max(copy(512))
}
