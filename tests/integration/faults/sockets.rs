//! Sinks that hang hold connections, descriptors and memory: a bounded number, and others deliver.

use super::{LocalRouter, Setup, is_long, mapped, trigger};
use crate::support::{Answer, Consumer, PATIENCE, eventually};

const MIB: u64 = 1024 * 1024;
const MEMORY: u64 = 256 * MIB;

/// A router with some Triggers whose Sink hangs, each with as many attempts as one may have, and one that is well.
fn router_with_hanging(
    count: usize,
    setup: impl FnOnce(Setup) -> Setup,
) -> (LocalRouter, Consumer, Consumer) {
    let [hanging, well] = [(); 2].map(|()| Consumer::start());
    hanging.answer(Answer::Hang);
    let names: Vec<_> = (0..count).map(|number| format!("hanging-{number}")).collect();
    let services: Vec<_> = names
        .iter()
        .map(|name| mapped(name, &hanging))
        .chain([mapped("well", &well)])
        .collect();
    let triggers: String = names
        .iter()
        .map(|name| trigger(name, "concurrency: 1024, timeout: 10m"))
        .collect();
    let router = setup(Setup::new(&(triggers + &trigger("well", "")), &services)).start();
    (router, hanging, well)
}

/// Posts as many events as an attempt may be made of at once.
fn post_all(router: &LocalRouter) {
    for hundreds in 0..11 {
        let ids = hundreds * 100..(hundreds + 1) * 100;
        assert_eq!(router.post_batch("t", ids).status, 202);
    }
}

fn descriptors(router: &LocalRouter) -> usize {
    let path = format!("/proc/{}/fd", router.process.id());
    std::fs::read_dir(path).map_or(0, Iterator::count)
}

#[test]
fn sinks_that_hang_leave_descriptors_for_the_log_and_for_other_sinks() {
    const LIMIT: usize = 2048;
    let (mut router, hanging, well) = router_with_hanging(4, |setup| setup.open_files(LIMIT));
    for round in 1..=2 {
        post_all(&router);
        well.wait_for(round * 1100);
        eventually(PATIENCE, || {
            let put_off = router.metric(&["weir_trigger_attempts_put_off_total", "hanging-0"]);
            match put_off {
                Some(count) if count > 0 => Ok(()),
                _ => Err(format!(
                    "no attempt is postponed, {} descriptors",
                    descriptors(&router)
                )),
            }
        });
        let held = descriptors(&router);
        assert!(held < LIMIT * 3 / 4, "{held} descriptors");
        assert_eq!(router.post("t", &format!("after-{round}"), &[]).status, 202);
        well.wait_for(round * 1100 + 1);
        if round == 1 {
            // What is not settled begins again, and so do the others.
            router.kill_and_restart();
            well.answer(Answer::status(204));
        }
    }
    // None of the attempts that the router postponed counts as one.
    hanging.answer(Answer::status(204));
}

#[test]
fn attempts_that_hang_fit_into_the_memory_budget() {
    let triggers = if is_long() { 12 } else { 4 };
    let (router, hanging, well) =
        router_with_hanging(triggers, |setup| setup.argument("--memory-budget=128MiB"));
    let before = router.process.resident_memory();
    post_all(&router);
    well.wait_for(1100);
    eventually(PATIENCE, || match hanging.received().len() {
        reached if reached >= 100 => Ok(()),
        reached => Err(format!("{reached} attempts hang")),
    });
    let (reached, memory) = (hanging.received().len(), router.process.resident_memory());
    eprintln!(
        "{triggers} Triggers hang: {reached} attempts, the router holds {} MiB, {} before",
        memory / MIB,
        before / MIB
    );
    assert!(memory < MEMORY, "the router holds {} MiB", memory / MIB);
    assert_eq!(router.post("t", "after", &[]).status, 202);
    well.wait_for(1101);
}
