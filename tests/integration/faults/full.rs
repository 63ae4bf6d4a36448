//! No room: producers are told so, delivery goes on, and it heals by itself once there is room.

use std::{
    fs,
    io::{self, Write as _},
};

use super::{LocalRouter, Producers, Setup, all_arrive, mapped, trigger};
use crate::support::{Answer, Consumer, PATIENCE, Volume, eventually};

const MIB: u64 = 1024 * 1024;

/// A router of a single Trigger, whose Sink fails until further notice.
fn start(setup: impl FnOnce(Setup) -> Setup) -> (LocalRouter, Consumer) {
    let consumer = Consumer::start();
    consumer.answer(Answer::status(503));
    let setup = setup(Setup::new(&trigger("any", ""), &[mapped("any", &consumer)]));
    (setup.start(), consumer)
}

/// Waits until producers are told again that there is no room.
#[track_caller]
fn wait_until_full(producers: &Producers) {
    let before = producers.refused_with(507);
    eventually(PATIENCE * 2, || match producers.refused_with(507) - before {
        0..20 => Err(format!("{} were accepted", producers.count())),
        _ => Ok(()),
    });
}

#[track_caller]
fn check_problem(producers: &Producers, reason: &str) {
    let refusal = producers.last_refusal().unwrap();
    assert_eq!(refusal.status, 507);
    assert_eq!(refusal.headers["content-type"], "application/problem+json");
    assert!(refusal.headers.contains_key("retry-after"));
    let problem = refusal.json();
    assert_eq!(problem["status"], 507);
    assert_eq!(problem["reason"], reason);
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("the event was not stored"), "{detail}");
}

/// It was full and works again: everything that was acknowledged arrives, and nothing else is counted.
#[track_caller]
fn check_healed(router: &LocalRouter, consumer: &Consumer, producers: Producers) {
    producers.wait_for_more(50);
    let refused = producers.refused_with(507);
    let acknowledged = producers.finish();
    let arrivals = all_arrive(consumer, &acknowledged);
    router.wait_until_all_are("any", "delivered", acknowledged.len());
    assert_eq!(
        arrivals.events(),
        acknowledged.len(),
        "what was rejected was not stored"
    );
    eprintln!(
        "{} acknowledged and delivered, {refused} times rejected for want of room",
        acknowledged.len()
    );
}

/// A volume for this test, or word that it cannot be run here.
fn volume_for(test: &str) -> Option<Volume> {
    Volume::mount(192)
        .inspect_err(|reason| {
            // Past what keeps the output of a test that succeeds from being seen.
            let _ = writeln!(io::stderr(), "skipped: {test}: no volume to fill: {reason}");
        })
        .ok()
}

#[test]
fn a_full_disk_is_said_delivery_goes_on_and_space_heals_it() {
    let Some(volume) = volume_for("a_full_disk_is_said_delivery_goes_on_and_space_heals_it") else {
        return;
    };
    let (router, consumer) = start(|setup| setup.data(volume.path()));
    // The reserve of 32 MiB and a little.
    let ballast = volume.fill_but(40 * MIB);
    let producers = Producers::with_data(&router.url(), 8 * 1024);
    wait_until_full(&producers);
    check_problem(&producers, "log_full");
    consumer.answer(Answer::status(204));
    let so_far = producers.acknowledged();
    all_arrive(&consumer, &so_far);
    wait_until_full(&producers);
    fs::remove_file(ballast).unwrap();
    check_healed(&router, &consumer, producers);
}

#[test]
fn a_share_at_its_limit_is_said_and_what_is_delivered_makes_room() {
    let (router, consumer) = start(|setup| {
        setup
            .argument("--log-size=2MiB")
            .argument("--retention-size=1KiB")
    });
    let producers = Producers::with_data(&router.url(), 8 * 1024);
    wait_until_full(&producers);
    check_problem(&producers, "quota");
    consumer.answer(Answer::status(204));
    check_healed(&router, &consumer, producers);
}

#[test]
fn a_configuration_that_cannot_be_written_waits_until_it_can() {
    let Some(volume) = volume_for("a_configuration_that_cannot_be_written_waits_until_it_can") else {
        return;
    };
    let (consumer, late) = (Consumer::start(), Consumer::start());
    consumer.answer(Answer::status(503));
    let services = [mapped("any", &consumer), mapped("late", &late)];
    let router = Setup::new(&trigger("any", ""), &services)
        .data(volume.path())
        .start();
    assert_eq!(router.post("t", "before", &[]).status, 202);
    let ballast = volume.fill_but(0);
    let applied = router.times_applied();
    router.change(&[trigger("any", ""), trigger("late", "")].concat());
    let waits = |line: &str| line.contains("cannot apply the new configuration") && line.contains("No space");
    router.process.wait_for_line(PATIENCE, waits);

    assert_eq!(router.post("t", "refused", &[]).status, 507);
    let refused = |line: &str| line.contains("events are rejected with 507");
    router.process.wait_for_line(PATIENCE, refused);
    consumer.answer(Answer::status(204));
    consumer.wait_for(1);
    assert_eq!(
        router.times_applied(),
        applied,
        "what could not be kept is not in force"
    );

    fs::remove_file(ballast).unwrap();
    router.wait_until_applied_after(applied);
    assert_eq!(router.post("t", "after", &[]).status, 202);
    late.wait_for(1);
    consumer.wait_for(2);
    let told = router.process.lines();
    assert_eq!(
        told.iter().filter(|line| waits(line)).count(),
        1,
        "it is told once"
    );
}
