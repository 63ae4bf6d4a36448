//! Maps the requests of operators to what RBAC is asked for.

use http::Method;

use crate::routing::Operation;

/// Maximum length of a namespace or a name, in bytes.
const MAX_NAME: usize = 253;

/// Returns the operation of a request to a router's admin API; `None` if the API has no such request.
///
/// A path that is percent-encoded is not of the API: it could name another broker here than where the request is
/// handled.
pub fn operation_of(method: &Method, path: &str) -> Option<Operation> {
    let segments: Vec<&str> = path.strip_prefix("/v1/")?.split('/').collect();
    let is_plain = |segment: &&str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        !segment.is_empty() && segment.len() <= MAX_NAME && segment.bytes().all(plain)
    };
    if !segments.iter().all(is_plain) {
        return None;
    }
    let (verb, resource, subresource, broker) = match (method.as_str(), segments.as_slice()) {
        ("GET", ["triggers"]) => ("list", "triggers", "deliveries", None),
        ("GET", ["dead-letters"]) => ("list", "brokers", "deadletters", None),
        ("POST", ["dead-letters", namespace, broker, "list"]) => {
            ("list", "brokers", "deadletters", Some((namespace, broker)))
        }
        ("GET", ["dead-letters", namespace, broker, "letters", _]) => {
            ("get", "brokers", "events", Some((namespace, broker)))
        }
        ("POST", ["dead-letters", namespace, broker, "redrive"]) => {
            ("create", "brokers", "redrives", Some((namespace, broker)))
        }
        ("POST", ["dead-letters", namespace, broker, "drop"]) => {
            ("delete", "brokers", "deadletters", Some((namespace, broker)))
        }
        ("POST", ["explain", namespace, broker])
        | ("GET", ["explain", namespace, broker, "events"] | ["delivery", namespace, broker]) => {
            ("create", "brokers", "explanations", Some((namespace, broker)))
        }
        _ => return None,
    };
    Some(Operation {
        verb: verb.to_owned(),
        resource: resource.to_owned(),
        subresource: subresource.to_owned(),
        namespace: broker.map(|(namespace, _)| (*namespace).to_owned()),
        name: broker.map(|(_, name)| (*name).to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_a_verb_on_a_subresource() {
        for (method, path, expected) in [
            (Method::GET, "/v1/triggers", "list triggers/deliveries"),
            (Method::GET, "/v1/dead-letters", "list brokers/deadletters"),
            (
                Method::POST,
                "/v1/dead-letters/shop/default/list",
                "list brokers/deadletters shop/default",
            ),
            (
                Method::GET,
                "/v1/dead-letters/shop/default/letters/7",
                "get brokers/events shop/default",
            ),
            (
                Method::POST,
                "/v1/dead-letters/shop/default/redrive",
                "create brokers/redrives shop/default",
            ),
            (
                Method::POST,
                "/v1/dead-letters/shop/default/drop",
                "delete brokers/deadletters shop/default",
            ),
            (
                Method::POST,
                "/v1/explain/shop/default",
                "create brokers/explanations shop/default",
            ),
            (
                Method::GET,
                "/v1/explain/shop/default/events",
                "create brokers/explanations shop/default",
            ),
            (
                Method::GET,
                "/v1/delivery/shop/default",
                "create brokers/explanations shop/default",
            ),
        ] {
            let operation = operation_of(&method, path).unwrap();
            let Operation {
                verb,
                resource,
                subresource,
                namespace,
                name,
            } = operation;
            let broker = namespace.zip(name);
            let broker = broker.map_or_else(String::new, |(namespace, name)| format!(" {namespace}/{name}"));
            assert_eq!(format!("{verb} {resource}/{subresource}{broker}"), expected);
        }
    }

    #[test]
    fn what_is_not_of_the_api_is_no_operation() {
        for (method, path) in [
            (Method::GET, "/metrics"),
            (Method::GET, "/v1/"),
            (Method::HEAD, "/v1/triggers"),
            (Method::DELETE, "/v1/triggers"),
            (Method::POST, "/v1/dead-letters/shop/default/letters/7"),
            (Method::POST, "/v1/dead-letters/sh%6Fp/default/drop"),
            (Method::POST, "/v1/dead-letters/shop//drop"),
            (Method::POST, "/v1/dead-letters/shop/default/drop/"),
            (Method::POST, "/v1/dead-letters/a/b/c/drop"),
            (Method::GET, "/v1/explain/shop/default"),
        ] {
            assert_eq!(operation_of(&method, path), None, "{method} {path}");
        }
        let long = format!("/v1/explain/{}/default", "x".repeat(MAX_NAME + 1));
        assert_eq!(operation_of(&Method::POST, &long), None);
    }
}
