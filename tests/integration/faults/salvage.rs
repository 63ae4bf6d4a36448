//! An event log that is gone or damaged, and what a person on call does about it.

use std::{fs, path::Path, process::Command};

use super::{
    LocalRouter, Setup, is_long, mapped,
    producers::post_event,
    storage::{files_below, flip, newest_journal, suspended, written},
    trigger,
};
use crate::support::{Consumer, PATIENCE, Scratch, eventually};

const EVENTS: usize = 40;

/// A router whose Trigger is suspended, with events of 2 KB.
fn with_events() -> LocalRouter {
    let router = suspended().start();
    for id in 0..EVENTS {
        let answer = post_event(&router.url(), &id.to_string(), "k", data_of(id));
        assert_eq!(answer.unwrap().status, 202);
    }
    router
}

fn data_of(id: usize) -> Vec<u8> {
    format!("<{id}>")
        .repeat(2000 / format!("<{id}>").len())
        .into_bytes()
}

fn delivering(data: &Path, consumer: &Consumer) -> LocalRouter {
    Setup::new(&trigger("any", ""), &[mapped("any", consumer)])
        .data(data)
        .launch()
}

/// What a command ended with.
#[derive(Debug)]
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

fn weir_log(what: &str, directories: &[&Path]) -> Ended {
    let output = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["log", what])
        .args(directories)
        .output()
        .unwrap();
    Ended {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn a_log_that_is_gone_is_told_and_not_begun_anew() {
    let mut router = with_events();
    router.process.terminate();
    let log = router.data().join("log");
    for is_empty in [false, true] {
        fs::remove_dir_all(&log).unwrap();
        if is_empty {
            fs::create_dir(&log).unwrap();
        }
        let consumer = Consumer::start();
        let mut refused = delivering(router.data(), &consumer);
        assert_eq!(refused.process.wait_for_exit(PATIENCE).code(), Some(1));
        let lines = refused.process.lines();
        let told = lines.last().unwrap();
        assert!(
            told.contains("is missing")
                && told.contains("--accept-empty-log")
                && told.contains("configuration.json"),
            "{told}"
        );
        assert!(!log.join("store").exists());

        let mut accepted = Setup::new(&trigger("any", ""), &[mapped("any", &consumer)])
            .data(router.data())
            .argument("--accept-empty-log")
            .start();
        let said = |line: &str| line.contains("starting with an empty one");
        accepted.process.wait_for_line(PATIENCE, said);
        assert_eq!(accepted.post("t", "new", &[]).status, 202);
        consumer.wait_for(1);
        accepted.process.terminate();
        // Without it from then on.
        let mut again = delivering(router.data(), &consumer);
        again.wait_until_ready();
        again.process.terminate();
    }
}

/// One flipped bit in the journal stops all tenants; all but one event is saved.
#[test]
fn what_is_whole_of_a_damaged_log_is_salvaged_and_delivered() {
    let mut router = with_events();
    router.process.terminate();
    let whole = weir_log("check", &[router.data()]);
    assert_eq!(whole.code, 0, "{whole:?}");
    assert!(whole.stdout.contains("the log is intact"), "{whole:?}");

    let (journal, _) = newest_journal(router.data());
    let damaged = data_of(7);
    let bytes = fs::read(&journal).unwrap();
    let place = bytes
        .windows(damaged.len())
        .position(|window| window == damaged)
        .unwrap();
    flip(&journal, place as u64 + 100, 3);
    let consumer = Consumer::start();
    let mut refused = delivering(router.data(), &consumer);
    assert_eq!(refused.process.wait_for_exit(PATIENCE).code(), Some(1));

    let checked = weir_log("check", &[router.data()]);
    assert_eq!(checked.code, 1, "{checked:?}");
    let lost = format!(
        "shop/default: {EVENTS} records at offsets 0 to {}, LOST 1 of them: offset 7",
        EVENTS - 1
    );
    assert!(checked.stdout.contains(&lost), "{checked:?}");
    assert!(
        checked.stdout.contains("DAMAGED") && checked.stderr.contains("weir log salvage"),
        "{checked:?}"
    );

    let (target, before) = (Scratch::new(), fs::read(&journal).unwrap());
    let out = target.path().join("out");
    let salvaged = weir_log("salvage", &[router.data(), &out]);
    assert_eq!(salvaged.code, 0, "{salvaged:?}");
    assert!(salvaged.stdout.contains("1 records are lost"), "{salvaged:?}");
    assert!(
        fs::read(&journal).unwrap() == before,
        "the damaged log is as it was"
    );
    let again = weir_log("salvage", &[router.data(), &out]);
    assert!(
        again.code == 1 && again.stderr.contains("is not empty"),
        "{again:?}"
    );

    let router = delivering(&out, &consumer);
    router.wait_until_ready();
    consumer.wait_for(EVENTS - 1);
    router.wait_until_all_are("any", "delivered", EVENTS - 1);
    assert_eq!(router.metric(&["weir_trigger_events_missed_total{"]), Some(1));
    consumer.look(|received| {
        for message in received {
            let id: usize = message.header("ce-id").unwrap().parse().unwrap();
            assert!(id != 7 && message.body == data_of(id), "{id}");
        }
    });
    assert_eq!(router.post("t", "new", &[]).status, 202);
    consumer.wait_for(EVENTS);
    let in_use = weir_log("check", &[&out]);
    assert!(
        in_use.code == 1 && in_use.stderr.contains("another process has it open"),
        "{in_use:?}"
    );
}

/// Bits anywhere: what the check calls whole is delivered whole, and what is salvaged of the rest is delivered but for
/// what was said to be lost.
#[test]
fn flipped_bits_anywhere_are_salvaged() {
    let mut router = with_events();
    router.process.terminate();
    let mut files = Vec::new();
    files_below(&router.data().join("log/store"), &mut files);
    files.sort();
    for round in 0..if is_long() { 200 } else { 6 } {
        let (file, _) = &files[round * 7 % files.len()];
        let written = written(&fs::read(file).unwrap());
        let (at, bit) = (fastrand::u64(0..written), fastrand::u8(0..8));
        let data = super::storage::copy_of(router.data());
        let file = data.path().join(file.strip_prefix(router.data()).unwrap());
        flip(&file, at, bit);
        let what = format!("bit {bit} of byte {at} in {}", file.display());
        let target = Scratch::new();
        let out = target.path().join("out");
        let checked = weir_log("check", &[data.path()]);
        let salvaged = weir_log("salvage", &[data.path(), &out]);
        assert_eq!(salvaged.code, 0, "{what}: {salvaged:?}");
        let lost: usize = salvaged
            .stdout
            .lines()
            .find_map(|line| line.split_once(" records are lost.")?.0.parse().ok())
            .unwrap_or_else(|| panic!("{what}: {salvaged:?}"));
        assert!(checked.code == 1 || lost == 0, "{what}: {checked:?}");
        let consumer = Consumer::start();
        let router = delivering(&out, &consumer);
        router.wait_until_ready();
        // A broker whose name is lost is nobody's.
        if !salvaged.stdout.contains("weir-salvage/") {
            eventually(PATIENCE, || {
                let arrived = consumer.look(|received| received.len());
                if arrived == EVENTS - lost {
                    Ok(())
                } else {
                    Err(format!(
                        "{what}: {arrived} arrived, {lost} were lost: {}",
                        salvaged.stdout
                    ))
                }
            });
        }
    }
}
