//! The cluster that the tests run on: a node of their own, or the one that somebody gives them.

use std::{ffi::OsStr, path::PathBuf};

use bytes::Bytes;
use http::{Method, Request, header};
use kube::{Client, Config, config::Kubeconfig};

use super::installation::{SYSTEM, say, weir};
use crate::support::{Kubectl, Launch, Node, Process, kubectl_binary, runtime};

/// Where Weir is tested.
pub(super) enum Cluster {
    /// A node of the tests' own.
    Node(Box<Node>),
    /// One that is there already, with nothing of Weir on it.
    Given(Given),
}

/// A cluster that is there already.
pub(super) struct Given {
    kubeconfig: PathBuf,
    client: Client,
}

impl Cluster {
    /// The node, for what can be done to one's own alone; elsewhere it is said that this is left out.
    pub(super) fn own(&self, what: &str) -> Option<&Node> {
        match self {
            Self::Node(node) => Some(node),
            Self::Given(_) => {
                say(&format!(
                    "skipped, on a cluster that is not the tests' own: {what}"
                ));
                None
            }
        }
    }

    /// kubectl as the administrator, in this namespace.
    pub(super) fn kubectl(&self, namespace: &str) -> Kubectl {
        match self {
            Self::Node(node) => node.kubectl(namespace),
            Self::Given(given) => Kubectl::of(&given.kubeconfig, namespace),
        }
    }

    /// kubectl, to be launched.
    pub(super) fn launch_kubectl<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Launch {
        self.launch(kubectl_binary(), arguments)
    }

    /// A program beside the cluster's API server, as the administrator.
    fn launch<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Launch {
        match self {
            Self::Node(node) => node.launch(program, arguments),
            Self::Given(given) => Process::program(program, arguments)
                .env("KUBECONFIG", &given.kubeconfig)
                .env("HOME", std::env::var_os("HOME").unwrap_or_default())
                .quiet(),
        }
    }

    /// Runs `weir` where the ports are that kubectl forwards; an error is what it wrote.
    pub(super) fn weir<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<String, String> {
        self.launch_weir(arguments).run()
    }

    /// The same, to be started.
    pub(super) fn launch_weir<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Launch {
        self.launch(weir(), arguments)
    }

    /// Runs helm as the administrator; an error is what it wrote.
    pub(super) fn helm<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<String, String> {
        match self {
            Self::Node(node) => node.helm(arguments),
            Self::Given(_) => self.launch("helm", arguments).run(),
        }
    }

    /// Where a namespace's default broker is reached.
    #[track_caller]
    pub(super) fn broker(&self, namespace: &str) -> String {
        self.broker_named(namespace, "default")
    }

    /// Where a broker is reached: on the tests' own node at the Service's address, else through the API server, which
    /// alone is sure to be reached.
    #[track_caller]
    pub(super) fn broker_named(&self, namespace: &str, broker: &str) -> String {
        match self {
            Self::Node(_) => {
                let service = self.kubectl(SYSTEM).get("service/weir");
                let address = service["spec"]["clusterIP"].as_str();
                let address = address.expect("a Service has an address");
                format!("http://{address}/{namespace}/{broker}")
            }
            Self::Given(_) => {
                format!("/api/v1/namespaces/{SYSTEM}/services/weir:http/proxy/{namespace}/{broker}")
            }
        }
    }

    /// Posts an event to a broker; an error says why it was not taken.
    pub(super) fn send(&self, broker: &str, id: &str) -> Result<(), String> {
        match self {
            Self::Node(_) => {
                let event = ["--type=com.example.test", "--source=/test", "--id", id];
                self.weir(["send", broker].into_iter().chain(event)).map(drop)
            }
            Self::Given(given) => given.send(broker, id),
        }
    }
}

impl Given {
    /// The cluster of a kubeconfig.
    ///
    /// # Panics
    /// When it cannot be read.
    #[track_caller]
    pub(super) fn new(kubeconfig: PathBuf) -> Self {
        let client = runtime().block_on(async {
            let kubeconfig = Kubeconfig::read_from(&kubeconfig).expect("cannot read KUBECONFIG");
            let config = Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await;
            Client::try_from(config.expect("KUBECONFIG says of no cluster")).expect("cannot make a client")
        });
        Self { kubeconfig, client }
    }

    fn send(&self, broker: &str, id: &str) -> Result<(), String> {
        let event = format!(
            r#"{{"specversion": "1.0", "type": "com.example.test", "source": "/test", "id": "{id}"}}"#
        );
        let request = Request::builder()
            .method(Method::POST)
            .uri(broker)
            .header(header::CONTENT_TYPE, "application/cloudevents+json")
            .body(Bytes::from(event).to_vec())
            .map_err(|error| error.to_string())?;
        let answer = runtime().block_on(self.client.request_text(request));
        answer.map(drop).map_err(|error| format!("{error:?}"))
    }
}
