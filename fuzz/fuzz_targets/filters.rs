//! The specs of Triggers, as JSON texts one after the other, on their way from the API server to a router: status and
//! routing agree, nothing is lost on the wire, and the index finds what evaluating one by one finds.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};
use weir::{
    api::{Trigger, TriggerSpec},
    cloudevents::{Event, EventBuilder},
    filter::CompiledFilter,
    resolve::{CompileOutcome, Namespace, Observed, compile},
    routing::{BrokerTable, Configuration, InstallationQuotas, Route, RoutingTable},
};

const NAMESPACE: &str = "shop";

static EVENTS: LazyLock<Vec<Event>> = LazyLock::new(|| {
    let event = |r#type: &str| {
        EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/shop/orders")
            .attribute("type", r#type)
    };
    let rich = event("a").attribute("n", 7).attribute("b", true);
    [event("com.example.order.created"), rich.attribute("subject", "x")]
        .map(|event| event.build().expect("it is a valid event"))
        .into()
});

fuzz_target!(|input: &[u8]| {
    let texts = serde_json::Deserializer::from_slice(input).into_iter();
    let specs: Vec<TriggerSpec> = texts.map_while(Result::ok).filter_map(spec).collect();
    if specs.is_empty() {
        return;
    }
    let CompileOutcome {
        configuration,
        diagnoses,
    } = compile(&observed(specs), "cluster.local", InstallationQuotas::default());
    for (trigger, diagnosis) in configuration.triggers.iter().zip(&diagnoses.triggers) {
        assert_eq!(trigger.uid, diagnosis.subject.uid);
        let compiles = CompiledFilter::compile(&trigger.filters).is_ok();
        let transform = diagnosis.transform.as_ref();
        let holds = diagnosis.filters.holds && transform.is_none_or(|transform| transform.holds);
        assert_eq!(holds, compiles, "{diagnosis:?}");
    }

    let text = serde_json::to_vec(&configuration).expect("plain data serialises");
    let received: Configuration = serde_json::from_slice(&text).expect("a router can read it");
    assert_eq!(received, configuration);

    for broker in RoutingTable::compile(received).brokers().values() {
        EVENTS.iter().for_each(|event| check(broker, event));
    }
});

/// Without `delivery`: kube's duration panics on some that the schema keeps out.
fn spec(mut spec: Map<String, Value>) -> Option<TriggerSpec> {
    spec.remove("delivery");
    serde_json::from_value(spec.into()).ok()
}

fn observed(specs: Vec<TriggerSpec>) -> Observed {
    let trigger = |(index, spec): (usize, TriggerSpec)| {
        let mut trigger = Trigger::new(&format!("t{index}"), spec);
        trigger.metadata.namespace = Some(NAMESPACE.to_owned());
        trigger.metadata.uid = Some(format!("uid-{index}"));
        trigger
    };
    Observed {
        triggers: specs.into_iter().enumerate().map(trigger).collect(),
        namespaces: vec![Namespace {
            name: NAMESPACE.to_owned(),
            labels: [].into(),
            terminating: false,
        }],
        ..Observed::default()
    }
}

fn check(broker: &BrokerTable, event: &Event) {
    let mut found = Vec::new();
    broker.matching(event, |index| found.push(index));
    found.sort_unstable();
    let routes = broker.routes().iter().enumerate();
    let wanted: Vec<usize> = routes
        .filter_map(|(index, route)| route.matches(event).then_some(index))
        .collect();
    assert_eq!(found, wanted);
    broker
        .routes()
        .iter()
        .for_each(|route| check_explanation(route, event));
}

fn check_explanation(route: &Route, event: &Event) {
    let Ok(filter) = &route.filter else { return };
    let explanations = filter.explain(event);
    assert_eq!(
        explanations.iter().all(|explanation| explanation.holds()),
        filter.matches(event),
        "{explanations:?}"
    );
}
