//! Brokers that come and go: they leave the log, which has a limited number of places.

use std::process::Command;

use crate::support::{PATIENCE, Setup, eventually, post};

const EVENT: [(&str, &str); 4] = [
    ("ce-specversion", "1.0"),
    ("ce-id", "1"),
    ("ce-source", "/s"),
    ("ce-type", "t"),
];

/// A Trigger of a namespace that wants no event, so that all are settled.
fn trigger(namespace: &str) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: t, namespace: {namespace}}}\n\
         spec: {{sink: {{uri: 'http://127.0.0.1:9/'}}, filters: [{{exact: {{type: never}}}}]}}\n"
    )
}

/// The number of logs that a line of the router's log tells.
fn number_in(line: &str) -> usize {
    let after = line.split("logs=").nth(1).unwrap();
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

/// More than the storage library could ever have had of its own.
#[test]
fn thousands_of_short_lived_namespaces_leave_nothing_in_the_log() {
    const ROUNDS: usize = 5;
    const NAMESPACES: usize = 400;
    let mut router = Setup::new(&trigger("stays"), &[])
        .argument("--retention-age=1s")
        .argument("--keep-deleted-triggers=0s")
        .start();
    let url = |namespace: &str| router.url().replace("/shop/", &format!("/{namespace}/"));
    for round in 0..ROUNDS {
        let names: Vec<_> = (0..NAMESPACES)
            .map(|number| format!("pr-{round}-{number}"))
            .collect();
        let triggers: String = names.iter().map(|namespace| trigger(namespace)).collect();
        router.apply(&[trigger("stays"), triggers].concat());
        for namespace in names.iter().map(String::as_str).chain(["stays"]) {
            // The manifests may be read while they are being written, and once more after that.
            eventually(PATIENCE, || {
                let answer = post(&url(namespace), &EVENT, "");
                match answer.status.as_u16() {
                    202 => Ok(()),
                    404 => Err(format!("{namespace} is not known yet")),
                    status => panic!("{namespace}: {status} {}", answer.text()),
                }
            });
        }
    }
    router.apply(&trigger("stays"));
    // With several trims.
    eventually(PATIENCE * 2, || {
        let lines = router.process.lines();
        let gave_back = lines.iter().filter(|line| line.contains("gave back the places"));
        let left: usize = gave_back.map(|line| number_in(line)).sum();
        match left == ROUNDS * NAMESPACES {
            true => Ok(()),
            false => Err(format!("{left} brokers have left")),
        }
    });
    assert_eq!(post(&url("stays"), &EVENT, "").status, 202);
    router.process.kill();
    let checked = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["log", "check"])
        .arg(router.data())
        .output()
        .unwrap();
    let report = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.status.success(), "{report}");
    let brokers: Vec<_> = report
        .lines()
        .filter(|line| line.contains(" records at "))
        .collect();
    assert!(
        brokers.len() == 1 && brokers[0].starts_with("stays/default"),
        "{report}"
    );
}
