//! Destinations whose address is in the status of an object, and Services of type ExternalName.

use serde_json::{Value, json};

use crate::{
    cluster::{ALLOW_LOOPBACK, Weir, post_binary, trigger},
    controller::{account, condition},
    sink_credentials::{await_reason, run_grant},
    support::{Authority, Consumer, ControlPlane, Kubectl, PATIENCE},
};

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: functions.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: functions, singular: function, kind: Function}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema: {openAPIV3Schema: {type: object, properties: {status: {type: object, x-kubernetes-preserve-unknown-fields: true}}}}
"#;

const FUNCTION: &str = "apiVersion: example.com/v1\nkind: Function\nmetadata: {name: hello}\n";

const REFERENCE: &str = "{ref: {apiVersion: example.com/v1, kind: Function, name: hello}}";

/// The address that the object's controller writes.
fn set_address(kubectl: &Kubectl, address: &Value) {
    let status = json!({"status": {"address": address}}).to_string();
    kubectl.run([
        "patch",
        "function/hello",
        "--subresource=status",
        "--type=merge",
        "--patch",
        &status,
    ]);
}

/// Posts an event and waits until the consumer has received it.
fn deliver(weir: &Weir, kubectl: &Kubectl, id: &str, consumer: &Consumer) {
    post_binary(&weir.broker(kubectl.namespace()), id, "t", "{}");
    consumer.wait_until(PATIENCE, |received| {
        received
            .iter()
            .any(|received| received.header("ce-id") == Some(id))
    });
}

/// Waits until the Trigger's events go to this URI and every router knows.
fn await_uri(kubectl: &Kubectl, uri: &str) {
    kubectl.run([
        "wait",
        "trigger/hello",
        &format!("--for=jsonpath={{.status.sinkUri}}={uri}"),
        "--timeout=60s",
    ]);
    kubectl.wait_ready("trigger/hello");
}

#[test]
fn an_object_with_a_url_in_its_status_is_a_destination_once_it_may_be_read() {
    let plane = ControlPlane::start();
    let account = account(&plane);
    let [first, second, third, inside] = [(); 4].map(|()| Consumer::start());
    let mapped = format!(
        "--service=functions-0/inside={}",
        inside.url().trim_end_matches('/')
    );
    let arguments = vec![ALLOW_LOOPBACK.to_owned(), mapped];
    let weir = Weir::start(&plane, account.kubeconfig(), arguments);
    let kubectl = plane.namespace("functions");
    kubectl.apply(&trigger("hello", "[]", REFERENCE, ""));
    await_reason(&kubectl, "trigger/hello", "AddressableKindUnknown");
    post_binary(&weir.broker(kubectl.namespace()), "0", "t", "{}");

    // Installed, granted, applied and ready one after the other, without a restart.
    kubectl.apply(DEFINITION);
    let message = await_reason(&kubectl, "trigger/hello", "AddressableForbidden");
    run_grant(&kubectl, &message);
    let role = kubectl.get("clusterrole/weir-addressable-functions.example.com");
    let label = &role["metadata"]["labels"]["weir.dev/aggregate-to-controller-addressables"];
    assert_eq!(label, "true");
    // Without a controller manager nobody aggregates it.
    kubectl.run([
        "create",
        "clusterrolebinding",
        "functions",
        "--clusterrole=weir-addressable-functions.example.com",
        "--serviceaccount=default:weir-controller",
    ]);
    await_reason(&kubectl, "trigger/hello", "AddressableNotFound");
    kubectl.apply(FUNCTION);
    await_reason(&kubectl, "trigger/hello", "AddressMissing");
    set_address(&kubectl, &json!({"url": first.url()}));
    kubectl.wait_ready("trigger/hello");
    // What was posted meanwhile has waited.
    first.wait_for(1);

    // Another URL, another authority.
    set_address(&kubectl, &json!({"url": second.url()}));
    await_uri(&kubectl, &second.url());
    deliver(&weir, &kubectl, "1", &second);
    let authority = Authority::new("ours");
    let front = authority.serve(&third, "localhost");
    let https = front.url("localhost");
    set_address(&kubectl, &json!({"url": https, "CACerts": "nonsense"}));
    await_reason(&kubectl, "trigger/hello", "InvalidCaCerts");
    set_address(&kubectl, &json!({"url": https, "CACerts": authority.pem()}));
    await_uri(&kubectl, &https);
    deliver(&weir, &kubectl, "2", &third);

    // A Sink leads there as well, also for another namespace.
    let other = plane.namespace("others");
    kubectl.apply(&format!(
        "apiVersion: weir.dev/v1alpha1\nkind: Sink\nmetadata: {{name: hello}}\nspec:\n  \
         ref: {{apiVersion: example.com/v1, kind: Function, name: hello}}\n  contentMode: Structured\n  \
         allowedNamespaces: {{names: [{}]}}\n",
        other.namespace()
    ));
    kubectl.wait_ready("sink/hello");
    let by_sink = format!("{{ref: {{name: hello, namespace: {}}}}}", kubectl.namespace());
    let directly = REFERENCE.replace(
        "name: hello",
        &format!("name: hello, namespace: {}", kubectl.namespace()),
    );
    other.apply(&trigger("by-sink", "[]", &by_sink, ""));
    other.apply(&trigger("directly", "[]", &directly, ""));
    other.wait_ready("trigger/by-sink");
    await_reason(&other, "trigger/directly", "AddressableNotAllowed");
    post_binary(&weir.broker(other.namespace()), "3", "t", "{}");
    third.wait_until(PATIENCE, |received| {
        let content_types = received
            .iter()
            .filter_map(|received| received.header("content-type"));
        content_types
            .into_iter()
            .any(|content_type| content_type.starts_with("application/cloudevents+json"))
    });

    // In the cluster it leads to Services of its own namespace only.
    let url = format!("http://inside.{}.svc.cluster.local/in", kubectl.namespace());
    set_address(&kubectl, &json!({"url": url}));
    let message = await_reason(&kubectl, "trigger/hello", "AddressNotAllowed");
    assert!(message.contains("which does not exist"), "{message}");
    kubectl.apply("apiVersion: v1\nkind: Service\nmetadata: {name: inside}\nspec: {ports: [{port: 80}]}\n");
    await_uri(&kubectl, &url);
    deliver(&weir, &kubectl, "4", &inside);
    assert!(inside.received().iter().all(|received| received.target == "/in"));
    set_address(&kubectl, &json!({"url": "http://kubernetes.default.svc/"}));
    let message = await_reason(&kubectl, "trigger/hello", "AddressNotAllowed");
    assert!(message.contains("sharedNamespaces"), "{message}");

    kubectl.run(["delete", "function/hello"]);
    await_reason(&kubectl, "trigger/hello", "AddressableNotFound");
    kubectl.run(["delete", "crd/functions.example.com"]);
    await_reason(&kubectl, "trigger/hello", "AddressableKindUnknown");
    let ready = condition(&kubectl, "trigger/hello", "Ready");
    assert_eq!(ready["status"], "False");
}

#[test]
fn a_service_of_type_external_name_is_a_destination_where_it_is_allowed() {
    let plane = ControlPlane::start();
    let consumer = Consumer::start();
    let mut weir = Weir::install(&plane, &[]);
    let kubectl = plane.namespace("aliases");
    let port = consumer.address().port();
    let alias = |name: &str, target: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: ExternalName, externalName: {target}}}\n"
        )
    };
    let to = |name: &str| format!("{{service: {{name: {name}, port: {port}, path: /in}}}}");
    kubectl.apply(
        &[
            &*alias("outside", "localhost"),
            &alias("inside", "kubernetes.default.svc.cluster.local"),
            &trigger("outside", "[]", &to("outside"), ""),
            &trigger("inside", "[]", &to("inside"), ""),
        ]
        .concat(),
    );
    let message = await_reason(&kubectl, "trigger/outside", "ServiceExternal");
    assert!(message.contains("--allow-external-name-services"), "{message}");
    post_binary(&weir.broker(kubectl.namespace()), "1", "t", "{}");

    weir.restart_controller_with(&plane, &["--allow-external-name-services"]);
    kubectl.wait_ready("trigger/outside");
    assert_eq!(consumer.wait_for(1)[0].target, "/in");
    let message = await_reason(&kubectl, "trigger/inside", "ServiceExternal");
    assert!(message.contains("--shared-namespaces"), "{message}");

    weir.restart_controller_with(
        &plane,
        &["--allow-external-name-services", "--shared-namespaces=default"],
    );
    kubectl.wait_ready("trigger/inside");
    let uri = kubectl.get("trigger/inside")["status"]["sinkUri"].clone();
    let expected = format!("http://kubernetes.default.svc.cluster.local:{port}/in");
    assert_eq!(uri, expected.as_str());
}

#[test]
fn the_aggregated_role_of_the_chart_is_accepted_without_rules() {
    let plane = ControlPlane::shared();
    let role = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: addressables-without-rules}\n\
                aggregationRule: {clusterRoleSelectors: [{matchLabels: {weir.dev/aggregate-to-controller-addressables: 'true'}}]}\n";
    plane.admin().apply(role);
    let stored = plane.admin().get("clusterrole/addressables-without-rules");
    assert!(stored["aggregationRule"].is_object(), "{stored}");
}
