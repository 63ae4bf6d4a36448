//! A `uri` cannot be used to reach what is inside: the router's machine, the cluster, the cloud's metadata.

use crate::{
    cluster::{ALLOW_LOOPBACK, Weir, post_binary, trigger},
    controller::condition,
    support::{Consumer, ControlPlane, PATIENCE, eventually},
};

const TYPE: &str = "SinkAnswering";
const QUICKLY: &str = ", delivery: {backoffDelay: 10ms, backoffMax: 100ms}";

#[test]
fn a_uri_that_leads_inside_is_refused_until_its_address_is_allowed() {
    let plane = ControlPlane::start();
    let (consumer, inside) = (Consumer::start(), Consumer::start());
    let service = format!("--service=uris-0/inside={}", inside.url().trim_end_matches('/'));
    let mut weir = Weir::install_with(&plane, vec![service.clone()]);
    let kubectl = plane.namespace("uris");
    let port = consumer.address().port();
    let to = |host: &str| format!("{{uri: 'http://{host}:{port}/'}}");
    let mapped = "kind: Service\napiVersion: v1\nmetadata: {name: inside}\nspec: {ports: [{port: 80}]}\n";
    kubectl.apply(
        &[
            mapped,
            &trigger("name", "[]", &to("localhost"), QUICKLY),
            &trigger("address", "[]", &to("127.0.0.1"), QUICKLY),
            &trigger("number", "[]", &to("2130706433"), QUICKLY),
            &trigger("service", "[]", "{service: {name: inside}}", QUICKLY),
        ]
        .concat(),
    );
    let names = ["name", "address"].map(|name| format!("trigger/{name}"));
    for name in names
        .iter()
        .map(String::as_str)
        .chain(["trigger/number", "trigger/service"])
    {
        kubectl.wait_ready(name);
    }
    post_binary(&weir.broker(kubectl.namespace()), "1", "t", "{}");
    inside.wait_for(1);
    for name in &names {
        kubectl.wait_condition(name, "SinkAnswering=False");
        let message = condition(&kubectl, name, TYPE)["message"].clone();
        let message = message.as_str().unwrap();
        // Where a name leads is not told to who wrote it.
        let is_address = name == "trigger/address";
        assert_eq!(message.contains("127.0.0.1"), is_address, "{message}");
        assert!(
            message.contains("that a uri may not reach; name a Service, or have it allowed by"),
            "{message}"
        );
    }
    // An address in a form that only some resolvers know is never reached.
    kubectl.wait_condition("trigger/number", "SinkAnswering=False");
    let message = condition(&kubectl, "trigger/number", TYPE)["message"].clone();
    assert!(
        message
            .as_str()
            .unwrap()
            .contains("an IPv4 address has four numbers"),
        "{message}"
    );
    weir.router.wait_for_line(PATIENCE, |line| {
        line.contains("resolves to an address that it may not reach")
            && line.contains("localhost")
            && line.contains("127.0.0.1")
    });
    assert_eq!(consumer.received().len(), 0);

    weir.restart_router_with(vec![service.clone(), ALLOW_LOOPBACK.to_owned()]);
    consumer.wait_for(names.len());
    for name in &names {
        kubectl.wait_condition(name, TYPE);
    }

    // What is denied is denied although it is allowed.
    weir.restart_router_with(vec![
        service,
        ALLOW_LOOPBACK.to_owned(),
        "--deny-uri-addresses=127.0.0.1/32,::/0".to_owned(),
    ]);
    eventually(PATIENCE, || {
        post_binary(&weir.broker(kubectl.namespace()), "2", "t", "{}");
        match condition(&kubectl, &names[0], TYPE)["status"].as_str() {
            Some("False") => Ok(()),
            status => Err(format!("{status:?}")),
        }
    });
    assert_eq!(consumer.received().len(), names.len());
}
