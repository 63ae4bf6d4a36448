//! Compiles Sources: the events that they produce, and when. Pure.

use super::{
    diagnosis::{ResourceId, SourceDiagnosis},
    event_attributes::{self, default_source},
    filters::expression,
    finding::Finding,
    kubernetes,
    resolver::Resolver,
    webhooks,
};
use crate::{
    api,
    routing::{self, Bounds, TriggerRejection, broker_key},
    transform::{TemplateOwner, Transform},
};

/// Compiles a Source. Only one that is valid and not suspended reaches the routers.
pub(super) fn compile(
    resolver: &Resolver<'_>,
    bounds: &mut Bounds,
    subject: ResourceId,
    spec: &api::SourceSpec,
) -> (Option<routing::Source>, SourceDiagnosis) {
    let api::SourceSpec {
        broker,
        cron,
        webhook,
        kubernetes: objects,
        filters,
        suspend,
    } = spec;
    let filters: Vec<_> = filters.iter().map(expression).collect();
    let event = event_template(webhook.as_ref(), objects.as_ref());
    let template = event.as_ref().map(|(owner, event)| (*owner, event));
    let admitted = bounds
        .admit_source(&subject.namespace, &filters, template)
        .map_err(|rejection| refused(&rejection));
    let compiled = admitted.and_then(|()| match (cron, webhook, objects) {
        (Some(cron), None, None) => compile_cron(&subject, cron),
        (None, Some(webhook), None) => {
            compile_webhook(resolver, &subject, webhook, event.map(|(_, event)| event))
        }
        (None, None, Some(objects)) => {
            let valid = kubernetes::compile(&subject, objects)?;
            let kind = routing::SourceKind::Kubernetes(routing::KubernetesObjects {});
            Ok((kind, valid))
        }
        _ => Err(Finding::bad(
            "NoKind",
            "exactly one of spec.cron, spec.webhook and spec.kubernetes must be set",
        )),
    });
    let (kind, valid) = match compiled {
        Ok((kind, valid)) => (Some(kind), valid),
        Err(finding) => (None, finding),
    };
    let route = kind.filter(|_| !suspend).map(|kind| routing::Source {
        uid: subject.uid.clone(),
        namespace: subject.namespace.clone(),
        name: subject.name.clone(),
        generation: subject.generation,
        broker: broker.clone(),
        filters,
        kind,
    });
    let broker = broker_key(&subject.namespace, broker);
    (
        route,
        SourceDiagnosis {
            subject,
            valid,
            suspended: *suspend,
            broker,
            is_webhook: webhook.is_some(),
            is_kubernetes: objects.is_some(),
        },
    )
}

/// How the events of a Source are made, as a change of those that would be made otherwise.
fn event_template(
    webhook: Option<&api::WebhookSource>,
    objects: Option<&api::KubernetesSource>,
) -> Option<(TemplateOwner, Transform)> {
    let of_request = webhook.and_then(|webhook| webhook.event.as_ref());
    let of_request = of_request.map(|event| (TemplateOwner::Webhook, webhooks::event_template(event)));
    let of_change = objects.and_then(|objects| objects.event.as_ref());
    let of_change = of_change.map(|event| (TemplateOwner::Objects, kubernetes::event_template(event)));
    of_request.or(of_change)
}

fn refused(rejection: &TriggerRejection) -> Finding {
    let reason = match rejection {
        TriggerRejection::Transform(_) => "InvalidEvent",
        others => others.label(),
    };
    Finding::bad(reason, format!("spec.{rejection}"))
}

fn compile_webhook(
    resolver: &Resolver<'_>,
    subject: &ResourceId,
    webhook: &api::WebhookSource,
    event: Option<Transform>,
) -> Result<(routing::SourceKind, Finding), Finding> {
    let compiled = webhooks::compile(resolver, subject, &webhook.verification, event)?;
    let message = match &compiled.verification {
        routing::Verification::Nothing {} => {
            "receives requests of everyone who reaches the port for webhooks"
        }
        _ => "receives requests with valid proof of their sender",
    };
    Ok((
        routing::SourceKind::Webhook(compiled),
        Finding::good("Valid", message),
    ))
}

fn compile_cron(
    subject: &ResourceId,
    cron: &api::CronSource,
) -> Result<(routing::SourceKind, Finding), Finding> {
    let api::CronSource {
        schedule,
        time_zone,
        catch_up,
        r#type,
        source,
        subject: about,
        data,
        extensions,
    } = cron;
    let (data, content_type) = cron_data(data.as_ref())?;
    let source = source.clone();
    let fixed = [
        ("type", Some(r#type.clone())),
        ("source", source.or_else(|| Some(default_source(subject)))),
        ("subject", about.clone()),
        ("datacontenttype", content_type),
    ];
    let attributes = event_attributes::collect(fixed, extensions);
    let probe = attributes.iter().map(|(name, value)| (&**name, &**value));
    event_attributes::check("spec.cron", probe)?;
    let cron = routing::Cron {
        schedule: schedule.clone(),
        time_zone: time_zone.clone(),
        attributes,
        data,
        catch_up: match catch_up {
            api::CatchUp::None => routing::CatchUp::None,
            api::CatchUp::Last => routing::CatchUp::Last,
            api::CatchUp::All => routing::CatchUp::All,
        },
    };
    // Parses the schedule like routers do, so that a Source that is Ready runs.
    routing::Schedule::parse(&cron)
        .map_err(|error| Finding::bad(error.label(), format!("spec.cron.{error}")))?;
    let message = format!(
        "produces an event of type {type:?} at each time of {:?}",
        cron.schedule
    );
    Ok((routing::SourceKind::Cron(cron), Finding::good("Valid", message)))
}

fn cron_data(data: Option<&api::CronData>) -> Result<(Option<String>, Option<String>), Finding> {
    let Some(api::CronData {
        text,
        json,
        content_type,
    }) = data
    else {
        return Ok((None, None));
    };
    let typed = |default: &str| Some(content_type.clone().unwrap_or_else(|| default.to_owned()));
    match (text, json) {
        (Some(text), None) => Ok((Some(text.clone()), typed("text/plain"))),
        (None, Some(json)) => {
            serde_json::from_str::<serde::de::IgnoredAny>(json).map_err(|error| {
                Finding::bad("InvalidData", format!("spec.cron.data.json is not JSON: {error}"))
            })?;
            Ok((Some(json.clone()), typed("application/json")))
        }
        _ => Err(Finding::bad(
            "InvalidData",
            "spec.cron.data must have exactly one of text and json",
        )),
    }
}
