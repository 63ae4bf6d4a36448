//! Spawns the tasks of delivery: one reader for each broker and one dispatcher for each Trigger.

use std::sync::Arc;

use tokio::{
    runtime,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{
    DeliveryOptions, Hold, SinkHealth, TriggerStats, TriggerView,
    dispatcher::{Dispatcher, DispatcherParts},
    inbox::Inbox,
    placement::{StartPosition, find_start_later},
    position::BrokerLogs,
    progress::Progress,
    reader::Reader,
    redrive::Redrive,
    room::RoomAttempts,
    settings::Settings,
};
use crate::{
    destination::Client,
    intake::Intake,
    log::{BrokerName, Checkpoints, LogError, LogName, LogProvider},
    routing::Trigger,
    supervision::{self, Supervisor},
};

/// Running reader of a broker.
pub(super) struct RunningReader {
    pub(super) reader: Arc<Reader>,
    /// Stops the reader on drop.
    _stop: DropGuard,
}

/// Running dispatcher of a Trigger.
pub(super) struct RunningTrigger {
    pub(super) settings: watch::Sender<Settings>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) view: TriggerView,
    /// Boxed, since a channel allocates room for many messages.
    pub(super) redrives: mpsc::Sender<Box<Redrive>>,
    task: JoinHandle<()>,
}

impl RunningTrigger {
    /// Stops the dispatcher and waits for its end.
    pub(super) async fn end(self) -> TriggerView {
        drop(self.settings);
        // Closing the settings ends the task at once; its panics are caught inside.
        let _ = self.task.await;
        self.inbox.detach();
        self.view
    }
}

/// Spawns readers and dispatchers.
pub(super) struct Spawner {
    pub(super) logs: Arc<dyn LogProvider>,
    pub(super) checkpoints: Arc<dyn Checkpoints>,
    pub(super) intake: Intake,
    pub(super) client: Client,
    pub(super) options: DeliveryOptions,
    pub(super) room: Arc<RoomAttempts>,
    pub(super) tasks: TaskTracker,
    pub(super) supervisor: Supervisor,
    pub(super) runtime: runtime::Handle,
    pub(super) stop: CancellationToken,
}

impl Spawner {
    /// Starts a reader at the end of a broker's log.
    pub(super) async fn reader(&self, broker: &BrokerName) -> Result<RunningReader, LogError> {
        let log = self.logs.open(&LogName::Events(broker.clone()));
        let position = log.bounds().await?.next;
        let reader = Arc::new(Reader::new(log, position, &self.options.memory));
        let stop = self.stop.child_token();
        let running = RunningReader {
            reader: reader.clone(),
            _stop: stop.clone().drop_guard(),
        };
        let name = broker.clone();
        let reading = async move {
            if let Err(error) = reader.run(stop).await {
                tracing::error!(broker = %name, %error, "the event log failed; the broker's events are no longer read");
            }
        };
        let name = format!("the reader of {broker}");
        self.tasks
            .spawn_on(self.supervisor.clone().watch(name, reading), &self.runtime);
        Ok(running)
    }

    /// Starts the dispatcher of a Trigger.
    pub(super) fn trigger(
        &self,
        reader: &Arc<Reader>,
        settings: Settings,
        start_position: StartPosition,
        logs: BrokerLogs,
        trigger: &Trigger,
    ) -> RunningTrigger {
        let StartPosition {
            progress,
            unknown,
            resumed,
        } = start_position;
        let (sender, receiver) = watch::channel(settings);
        let (redrives, asked) = mpsc::channel(1);
        let (stats, sink) = (Arc::<TriggerStats>::default(), Arc::<SinkHealth>::default());
        let room = self.room.of(&trigger.namespace);
        let hold = Arc::new(Hold::new(progress.low(), room.clone()));
        let inbox = Arc::new(Inbox::new(stats.clone()));
        stats.show(&progress);
        let view = TriggerView {
            uid: trigger.uid.clone(),
            namespace: trigger.namespace.clone(),
            name: trigger.name.clone(),
            log: logs.events.clone(),
            stats: stats.clone(),
            hold: hold.clone(),
            sink: sink.clone(),
        };
        if resumed {
            stats.resumed();
            log_resumed(&view, &progress);
        }
        // Boxed to keep the future small: each of tens of thousands of Triggers may have this task.
        let mut parts = Box::new(DispatcherParts {
            logs,
            checkpoints: self.checkpoints.clone(),
            intake: self.intake.clone(),
            client: self.client.clone(),
            reader: reader.clone(),
            inbox: inbox.clone(),
            settings: receiver,
            redrives: asked,
            stats: stats.clone(),
            hold,
            sink,
            room,
            memory: self.options.memory.clone(),
            progress,
            stop: self.stop.clone(),
            grace: self.options.grace,
        });
        let name = format!("{}/{}", trigger.namespace, trigger.name);
        let start = trigger.start;
        let delivering = async move {
            if let Some(error) = unknown {
                let DispatcherParts {
                    logs, settings, stop, ..
                } = &mut *parts;
                match Box::pin(find_start_later(
                    error,
                    &name,
                    &*logs.events,
                    start,
                    settings,
                    stop,
                ))
                .await
                {
                    Some(Ok(offset)) => parts.progress = Progress::starting_at(offset),
                    Some(Err(error)) => {
                        stats.stop();
                        tracing::error!(
                            trigger = name, %error,
                            "cannot find the Trigger's start position in the damaged log; all retained events are held for \
                             it: recreate the Trigger with another spec.start"
                        );
                        return;
                    }
                    None => return,
                }
            }
            let delivery = Box::pin(Box::new(Dispatcher::new(*parts)).run());
            match supervision::caught(&format!("delivery of {name}"), delivery).await {
                Ok(Ok(())) => {}
                Ok(Err(error @ LogError::Fenced(_))) => {
                    tracing::warn!(trigger = name, %error, "delivery has stopped");
                }
                Ok(Err(error)) => {
                    stats.stop();
                    tracing::error!(trigger = name, %error, "the event log failed; delivery has stopped");
                }
                Err(_) => stats.stop(),
            }
        };
        let task = self.tasks.spawn_on(delivering, &self.runtime);
        RunningTrigger {
            settings: sender,
            inbox,
            view,
            redrives,
            task,
        }
    }
}

fn log_resumed(view: &TriggerView, progress: &Progress) {
    tracing::info!(
        trigger = format!("{}/{}", view.namespace, view.name),
        broker = %view.broker(),
        pending = progress.pending(),
        backlog = view.backlog(),
        "the Trigger resumes from the checkpoint of a deleted Trigger: itself or one of its name"
    );
}
