//! Sources of kind cron, with the real router.

use std::time::{Duration, Instant};

use crate::support::{Consumer, PATIENCE, Received, Setup, eventually, mapped};

const MANIFESTS: &str = r#"
apiVersion: weir.dev/v1alpha1
kind: Source
metadata: {name: all, namespace: shop}
spec: {cron: {schedule: "* * * * * *", type: all, catchUp: All}}
---
apiVersion: weir.dev/v1alpha1
kind: Source
metadata: {name: none, namespace: shop}
spec: {cron: {schedule: "* * * * * *", type: none}}
---
apiVersion: weir.dev/v1alpha1
kind: Trigger
metadata: {name: ticks, namespace: shop}
spec: {sink: {service: {name: ticks}}}
"#;

/// The scheduled times of a Source, in Unix seconds, without repeats.
fn times(received: &[Received], r#type: &str) -> Vec<u64> {
    let of_type = received
        .iter()
        .filter(|event| event.header("ce-type") == Some(r#type));
    let ids = of_type.filter_map(|event| event.header("ce-id")?.rsplit_once('-'));
    let mut times: Vec<u64> = ids.map(|(_, time)| time.parse().unwrap()).collect();
    times.sort_unstable();
    times.dedup();
    times
}

#[test]
fn missed_times_are_made_up_for_after_a_kill() {
    let consumer = Consumer::start();
    let mut router = Setup::new(MANIFESTS, &[mapped("ticks", &consumer)]).start();
    consumer.wait_until(PATIENCE, |received| times(received, "all").len() >= 2);
    router.process.kill();
    let (killed, before) = (Instant::now(), consumer.received());
    // Some scheduled times have to pass meanwhile.
    eventually(PATIENCE, || match killed.elapsed() {
        passed if passed >= Duration::from_secs(4) => Ok(()),
        passed => Err(format!("{passed:?} have passed")),
    });
    router.restart();
    let more = |r#type| times(&before, r#type).len() + 2;
    let received = consumer.wait_until(PATIENCE, |received| {
        ["all", "none"].map(|r#type| times(received, r#type).len() >= more(r#type)) == [true; 2]
    });
    let span = |times: &[u64]| times[times.len() - 1] - times[0] + 1;
    let (all, none) = (times(&received, "all"), times(&received, "none"));
    assert_eq!(span(&all), all.len() as u64, "{all:?}");
    assert!(span(&none) > none.len() as u64, "{none:?}");
    let caught_up = |source| {
        let source = format!("source=\"{source}\"");
        router.metric(&["weir_source_times_caught_up_total", &source])
    };
    assert!(caught_up("all") >= Some(2), "{:?}", caught_up("all"));
    assert_eq!(caught_up("none"), Some(0));
}
