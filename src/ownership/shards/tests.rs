//! Which last runs of Sources a router keeps.

use serde_json::json;

use super::*;
use crate::{log::memory::MemoryLogs, routing::Configuration};

const UID: &str = "uid-a";

async fn has_last_run(logs: &MemoryLogs) -> bool {
    let checkpoints = logs.checkpoints(Ownership::default());
    let key = CheckpointKey::LastRun(UID.to_owned());
    checkpoints.load(&key).await.unwrap().is_some()
}

#[tokio::test]
async fn last_runs_are_kept_only_where_the_sources_run() {
    // It makes up for nothing, so it stores nothing new.
    let source: routing::Source = serde_json::from_value(json!({
        "uid": UID, "namespace": "shop", "name": "a", "generation": 1, "broker": "default", "filters": [],
        "cron": {"schedule": "0 0 1 1 *", "timeZone": "UTC", "attributes": [["source", "/"], ["type", "t"]], "data": null},
    }))
    .unwrap();
    for runs_sources in [true, false] {
        let logs = MemoryLogs::default();
        let run = json!({"broker": "shop/default", "generation": 1, "until": "2026-11-24T08:00:00Z"});
        let change = (
            CheckpointKey::LastRun(UID.to_owned()),
            Some(run.to_string().into()),
        );
        let checkpoints = logs.checkpoints(Ownership::default());
        checkpoints.save(vec![change]).await.unwrap();
        let starter = EngineStarter {
            logs: Arc::new(logs.clone()),
            client: Client::for_test(),
            options: DeliveryOptions::default(),
            supervisor: Supervisor::default(),
            runtime: runtime::Handle::current(),
        };
        let shards = Shards::alone(starter, runs_sources).await.unwrap();
        let table = Arc::new(RoutingTable::compile(Configuration::default()));
        shards.apply(table, vec![source.clone()], true).await.unwrap();
        assert!(has_last_run(&logs).await, "not confirmed yet");
        shards.confirm().await.unwrap();
        assert_eq!(has_last_run(&logs).await, runs_sources);
        shards.shutdown().await;
    }
}
