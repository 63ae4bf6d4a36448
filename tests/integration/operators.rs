//! Who may use a router's admin API, as the API server says.

use std::fs;

use http::Method;
use serde_json::json;

use crate::{
    channel::{AUDIENCE, Setup},
    cluster::trigger,
    support::{PATIENCE, Process, Response, eventually, runtime, send},
};

/// Asks a router's admin API with the token of a file.
fn ask(setup: &Setup, router: &Process, token: &str, method: Method, path: &str) -> (u16, String) {
    let Response { status, body, .. } = response(setup, router, token, method, path);
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let reason = problem["reason"].as_str().unwrap_or_default();
    (status.as_u16(), reason.to_owned())
}

fn response(setup: &Setup, router: &Process, token: &str, method: Method, path: &str) -> Response {
    let url = format!("http://{}{path}", router.address("admin"));
    let token = fs::read_to_string(setup.file(token)).unwrap();
    let authorization = format!("Bearer {}", token.trim());
    let headers = [
        ("authorization", &*authorization),
        ("content-type", "application/json"),
    ];
    let sent = send(method, &url, &headers, "{}");
    runtime().block_on(sent).unwrap()
}

#[test]
fn a_service_account_may_do_what_its_roles_allow() {
    let setup = Setup::new();
    let mut controller = setup.controller("127.0.0.1:0");
    setup.bring_authorities();
    setup.token("router", "weir-router", &[AUDIENCE]);
    let router = setup.secured_router("router-0", controller.address("configuration"), "router");
    setup
        .admin
        .apply(&trigger("one", "[]", "{uri: 'http://example.com/'}", ""));
    setup.admin.wait_ready("trigger/one");

    let admin = &setup.admin;
    for account in ["viewer", "editor", "nobody"] {
        setup.plane.service_account("default", account);
        setup.token(account, account, &["--audience=weir-router"]);
    }
    let role = |name: &str, account: &str, verb: &str, resource: &str| {
        let (verb, resource) = (format!("--verb={verb}"), format!("--resource={resource}"));
        admin.run(["create", "role", name, &verb, &resource]);
        let (role, subject) = (
            format!("--role={name}"),
            format!("--serviceaccount=default:{account}"),
        );
        admin.run(["create", "rolebinding", name, &role, &subject]);
    };
    role("view", "viewer", "list", "brokers.weir.dev/deadletters");
    role("edit", "editor", "delete", "brokers.weir.dev/deadletters");

    let list = "/v1/dead-letters/default/default/list";
    let drop = "/v1/dead-letters/default/default/drop";
    let letter = "/v1/dead-letters/default/default/letters/1";
    let elsewhere = "/v1/dead-letters/kube-system/default/list";
    let allowed = (200, String::new());
    let refused = |status, reason: &str| (status, reason.to_owned());
    for (token, method, path, expected) in [
        ("viewer", Method::POST, list, allowed.clone()),
        ("viewer", Method::POST, drop, refused(403, "not_allowed")),
        ("viewer", Method::GET, letter, refused(403, "not_allowed")),
        ("viewer", Method::POST, elsewhere, refused(403, "not_allowed")),
        (
            "viewer",
            Method::GET,
            "/v1/dead-letters",
            refused(403, "not_allowed"),
        ),
        ("viewer", Method::GET, "/v1/triggers", refused(403, "not_allowed")),
        ("editor", Method::POST, drop, allowed.clone()),
        ("editor", Method::POST, list, refused(403, "not_allowed")),
        ("nobody", Method::POST, list, refused(403, "not_allowed")),
        // The audience is that of producers and controllers, or of the API server.
        ("router", Method::POST, list, refused(401, "invalid_token")),
        (
            "data-router-0/operator-token",
            Method::POST,
            list,
            allowed.clone(),
        ),
        (
            "data-router-0/operator-token",
            Method::GET,
            "/v1/triggers",
            allowed.clone(),
        ),
    ] {
        let found = ask(&setup, &router, token, method.clone(), path);
        assert_eq!(found, expected, "{token}: {method} {path}");
    }
    let told = response(&setup, &router, "viewer", Method::POST, drop).text();
    let expected = "system:serviceaccount:default:viewer may not delete brokers/deadletters (weir.dev) in namespace default";
    assert!(told.contains(expected), "{told}");
    router.wait_for_line(PATIENCE, |line| {
        line.contains("an operator asks to delete brokers/deadletters") && line.contains("default:editor")
    });

    // Whoever is deleted is nobody.
    admin.run(["delete", "serviceaccount", "viewer"]);
    eventually(PATIENCE, || {
        match ask(&setup, &router, "viewer", Method::POST, list) {
            found if found == refused(401, "invalid_token") => Ok(()),
            found => Err(format!("{found:?}")),
        }
    });
    // A right of all namespaces is for all brokers.
    let everywhere = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "everywhere"},
        "rules": [{"apiGroups": ["weir.dev"], "resources": ["triggers/deliveries"], "verbs": ["list"]}],
    });
    admin.apply(&everywhere.to_string());
    let binding = ["--clusterrole=everywhere", "--serviceaccount=default:editor"];
    admin.run(
        ["create", "clusterrolebinding", "everywhere"]
            .iter()
            .chain(&binding),
    );
    assert_eq!(
        ask(&setup, &router, "editor", Method::GET, "/v1/triggers"),
        allowed
    );

    controller.kill();
    assert_eq!(
        ask(&setup, &router, "editor", Method::POST, drop),
        refused(503, "no_review")
    );
    let own = "data-router-0/operator-token";
    assert_eq!(ask(&setup, &router, own, Method::POST, list), allowed);
    let lines = router.lines();
    for token in ["editor", own] {
        let token = fs::read_to_string(setup.file(token)).unwrap();
        assert!(
            lines.iter().all(|line| !line.contains(token.trim())),
            "{lines:#?}"
        );
    }
}
