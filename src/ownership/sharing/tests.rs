//! Tests of routers that share the shards of a log, one of which is given up slowly.

use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    task::JoinHandle,
};

use super::*;
use crate::{
    delivery::DeliveryOptions,
    destination::Client,
    log::{
        BrokerName,
        jetstream::{
            SHARDS,
            tests::server::{NatsServer, PATIENCE, eventually},
        },
    },
    ownership::EngineStarter,
    routing::{Configuration, Delivery, Revision, RoutingTable},
    supervision::Supervisor,
};

/// Longer than any test.
const FOREVER: Duration = Duration::from_secs(3600);

/// A router that waits for attempts in flight as long as they take.
struct Router {
    shards: Arc<Shards>,
    leave: CancellationToken,
    running: JoinHandle<Result<(), LogError>>,
}

impl Router {
    async fn start(server: &NatsServer, name: &str) -> Self {
        let log = Arc::new(server.connect().await);
        let starter = EngineStarter {
            logs: log.clone(),
            client: Client::for_test(),
            options: DeliveryOptions {
                grace: FOREVER,
                ..DeliveryOptions::default()
            },
            supervisor: Supervisor::default(),
            runtime: runtime::Handle::current(),
        };
        let (shards, leave) = (Shards::of_shared(starter, log.clone()), CancellationToken::new());
        let sharing = WorkSharing {
            log,
            router: name.to_owned(),
            shards: shards.clone(),
        };
        Self {
            shards,
            running: tokio::spawn(sharing.run(leave.clone())),
            leave,
        }
    }

    /// Waits until it owns so many shards.
    async fn owns(&self, count: u16) {
        eventually(async || match self.shards.owned_count() {
            owned if owned == usize::from(count) => Ok(()),
            owned => Err(owned),
        })
        .await;
    }

    async fn left(self) {
        self.leave.cancel();
        let ended = tokio::time::timeout(PATIENCE, self.running).await;
        ended.unwrap().unwrap().unwrap();
    }
}

/// Two routers. The first one gives up a shard of the second one's half, and waits for an attempt that hangs.
struct SlowHandOver {
    _server: NatsServer,
    first: Router,
    second: Router,
    shard: Shard,
    sink: (TcpListener, TcpStream),
}

impl SlowHandOver {
    async fn begin() -> Self {
        let server = NatsServer::start();
        let first = Router::start(&server, "first").await;
        first.owns(SHARDS).await;

        let both = ["first".to_owned(), "second".to_owned()].into();
        let assigned = assign(&both, SHARDS);
        let shard_of = |broker: &String| Shard::of(&BrokerName::new("shop", broker), SHARDS);
        let broker = (0..)
            .map(|number| format!("b{number}"))
            .find(|broker| assigned[&shard_of(broker)] == "second")
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/", listener.local_addr().unwrap());
        let delivery = Delivery {
            timeout: FOREVER,
            ..Delivery::default()
        };
        let trigger = json!({
            "uid": "t", "namespace": "shop", "name": "t", "generation": 1, "broker": broker, "filters": [],
            "destination": {"uri": uri, "service": null, "contentMode": "AsReceived"},
            "delivery": delivery, "start": "Latest", "suspend": false,
        });
        let clock = json!({
            "uid": "c", "namespace": "shop", "name": "c", "generation": 1, "broker": broker,
            "cron": {
                "schedule": "* * * * * *", "timeZone": "UTC", "attributes": [["type", "tick"], ["source", "/c"]],
                "data": null,
            },
        });
        let table = RoutingTable::compile(Configuration {
            revision: Revision("1".to_owned()),
            triggers: vec![serde_json::from_value(trigger).unwrap()],
            ..Configuration::default()
        });
        let sources = vec![serde_json::from_value(clock).unwrap()];
        first.shards.apply(Arc::new(table), sources, false).await.unwrap();
        let attempt = tokio::time::timeout(PATIENCE, listener.accept()).await;
        let (attempt, _) = attempt.unwrap().unwrap();

        let second = Router::start(&server, "second").await;
        first.owns(SHARDS / 2).await;
        second.owns(SHARDS / 2 - 1).await;
        Self {
            _server: server,
            first,
            second,
            shard: shard_of(&broker),
            sink: (listener, attempt),
        }
    }
}

#[tokio::test]
async fn a_shard_that_is_given_up_slowly_delays_no_other() {
    let SlowHandOver {
        _server,
        first,
        second,
        shard,
        sink,
    } = SlowHandOver::begin().await;
    second.left().await;
    first.owns(SHARDS - 1).await;
    // It wants this one too now, but must not run a second engine for it.
    tokio::time::sleep(LOOK_EVERY * 2).await;
    assert_eq!(first.shards.owned_count(), usize::from(SHARDS - 1));
    assert!(!first.shards.owned().contains_key(&shard));
    drop(sink);
    first.owns(SHARDS).await;
    first.left().await;
}

#[tokio::test]
async fn a_router_leaves_after_it_has_given_up_every_shard() {
    let SlowHandOver {
        _server,
        first,
        second,
        sink,
        ..
    } = SlowHandOver::begin().await;
    first.leave.cancel();
    second.owns(SHARDS - 1).await;
    tokio::time::sleep(LOOK_EVERY * 2).await;
    assert_eq!(second.shards.owned_count(), usize::from(SHARDS - 1));
    assert!(!first.running.is_finished());
    drop(sink);
    second.owns(SHARDS).await;
    first.left().await;
    second.left().await;
}
