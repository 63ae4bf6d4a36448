//! `weir run`: a router without a cluster, from manifests in files.

use std::{
    collections::BTreeSet,
    io::{self, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{mpsc, watch};

use super::{
    Usage,
    host::host_name,
    manifests::{
        Grace, Loaded, Manifest, ManifestProblem, Manifests, Resolution, Resource, STDIN, Surroundings,
        UnresolvedField, resolve,
    },
    operator_token::DATA,
    router::LogArgs,
    shutdown,
    tls::TlsArgs,
    traces::TraceArgs,
};
use crate::{
    api,
    destination::UriAddresses,
    router::{self, RouterLog, RouterOptions},
    routing::{Configuration, Revision, ServiceName},
    supervision,
};

/// Debounce time: an editor writes a file in several steps, and changes within this time are applied as one.
const QUIET: Duration = Duration::from_millis(100);

/// Maximum delay before a continuous stream of changes is applied.
const NOT_QUIET: Duration = Duration::from_secs(1);

/// Arguments of `weir run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Manifests of Brokers, Sources, Triggers and Sinks: files, or directories with such files (*.yaml, *.yml, *.json).
    /// Secrets referenced by Brokers, Sinks and Sources are read from them too, and the URLs in the status of addressable
    /// objects that Triggers and Sinks reference; other resources are ignored.
    #[arg(required = true, value_name = "DIR|FILE")]
    pub paths: Vec<PathBuf>,

    /// Address that producers post events to, as /NAMESPACE/BROKER.
    #[arg(
        long,
        env = "WEIR_LISTEN",
        default_value = "127.0.0.1:8080",
        value_name = "ADDRESS"
    )]
    pub listen: SocketAddr,

    /// TLS at the ingress.
    #[command(flatten)]
    pub tls: TlsArgs,

    /// Address that serves health, readiness and metrics and, to operators on this machine, Triggers, dead letters and
    /// explanations.
    #[arg(
        long,
        env = "WEIR_ADMIN",
        default_value = "127.0.0.1:9090",
        value_name = "ADDRESS"
    )]
    pub admin: SocketAddr,

    /// Directory for the event log and the checkpoints, which survive a restart.
    #[arg(long, env = "WEIR_DATA", default_value = DATA, value_name = "DIRECTORY")]
    pub data: PathBuf,

    /// Event log and limits.
    #[command(flatten)]
    pub log: LogArgs,

    /// Traces.
    #[command(flatten)]
    pub traces: TraceArgs,
}

/// Runs a router until it is told to stop. Problems in the manifests are printed as `file:line:column: message`;
/// the valid resources are routed.
///
/// # Errors
/// If a path cannot be read, there are no usable resources, or the router fails.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let RunArgs {
        paths,
        listen,
        tls,
        admin,
        data,
        log,
        traces,
    } = args;
    if paths.iter().any(|path| path.as_os_str() == STDIN) {
        return Err(Usage(
            "weir run watches its manifests for changes: name files or directories".to_owned(),
        )
        .into());
    }
    let stop = shutdown::token()?;
    let listen = tls.into_listeners(listen).await?;
    let export = traces.start()?;
    // The author of the manifests is on this machine and can reach these addresses without the router.
    let options = RouterOptions {
        tracer: export.tracer(),
        ..log.into_options(listen, admin, data, UriAddresses::any(), UriAddresses::any())?
    };
    let services = options.services.keys().cloned().collect();
    let manifests = Manifests::new(paths)
        .map_err(|(path, error)| anyhow::anyhow!("cannot read {}: {error}", path.display()))?;
    let (changes, changed) = mpsc::channel(1);
    // Starts watching before reading, so that no change is missed in between.
    let _watcher = watch_files(&manifests, changes)?;
    let mut local = Local {
        manifests,
        grace: Grace::default(),
        look_again: None,
        services,
        serves_webhooks: options.listen.hooks.is_some(),
        problems: Vec::new(),
        resources: 0,
    };
    let configuration = local.load()?;
    if local.resources == 0 {
        bail!(
            "no usable Source, Trigger or Sink found in {}",
            shown(local.manifests.paths())
        );
    }
    tracing::info!(data = %options.data.display(), "using data directory");
    let (configurations, received) = watch::channel(None);
    configurations.send_replace(Some(configuration));
    let (applied, _) = watch::channel(Revision::default());
    tokio::spawn(local.follow(changed, configurations));
    // Several may run on one machine.
    let name = format!("{}/{}", host_name()?, std::process::id());
    let (sinks, _) = watch::channel(None);
    let outcome = match RouterLog::open(&options, &stop).await? {
        Some(log) => {
            let running = router::run(options, &name, log, received, applied, sinks, stop.clone());
            running.await.map_err(anyhow::Error::from)
        }
        None => Ok(()),
    };
    export.end().await;
    outcome
}

fn shown(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(", ")
}

/// Signals every change in the directories of the files. It watches directories, because editors replace files, and
/// not their subdirectories, which contain no manifests but possibly the event log.
fn watch_files(manifests: &Manifests, changes: mpsc::Sender<()>) -> anyhow::Result<RecommendedWatcher> {
    let handler = move |event: notify::Result<notify::Event>| {
        let concerns = match &event {
            Ok(event) => !event.kind.is_access(),
            Err(_) => true,
        };
        if concerns {
            // The channel is full if a change is already signalled.
            let _ = changes.try_send(());
        }
    };
    let mut watcher = notify::recommended_watcher(handler).context("cannot watch files")?;
    let directories: BTreeSet<&Path> = manifests
        .paths()
        .iter()
        .map(|path| match path.parent() {
            _ if path.is_dir() => path,
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        })
        .collect();
    for directory in directories {
        watcher
            .watch(directory, RecursiveMode::NonRecursive)
            .with_context(|| format!("cannot watch {}", directory.display()))?;
    }
    Ok(watcher)
}

struct Local {
    manifests: Manifests,
    grace: Grace,
    /// Time at which resources missing from the files are removed, unless they come back.
    look_again: Option<Instant>,
    services: BTreeSet<ServiceName>,
    serves_webhooks: bool,
    /// Problems already reported, so that each is reported once.
    problems: Vec<ManifestProblem>,
    /// Number of resources in force.
    resources: usize,
}

impl Local {
    /// Applies changed files until the router has stopped.
    async fn follow(
        mut self,
        mut changed: mpsc::Receiver<()>,
        configurations: watch::Sender<Option<Configuration>>,
    ) {
        loop {
            tokio::select! {
                ring = changed.recv() => {
                    if ring.is_none() {
                        return;
                    }
                    let latest = Instant::now() + NOT_QUIET;
                    while Instant::now() < latest
                        && let Ok(Some(())) = tokio::time::timeout(QUIET, changed.recv()).await
                    {}
                }
                () = at(self.look_again) => {}
            }
            let loading = supervision::apart("reading the manifests", || {
                let loaded = self.load();
                (self, loaded)
            });
            let loaded;
            (self, loaded) = match loading.await {
                Ok(loaded) => loaded,
                // Already reported; dropping the configuration sender stops the router.
                Err(_) => return,
            };
            match loaded {
                Ok(configuration) => {
                    configurations.send_if_modified(|current| {
                        let is_new = current.as_ref().map(|current| &current.revision)
                            != Some(&configuration.revision);
                        if is_new {
                            *current = Some(configuration);
                        }
                        is_new
                    });
                }
                Err(error) => tracing::error!(%error, "cannot apply the changed files"),
            }
        }
    }

    /// Reads the files, reports problems, and computes routing from the valid resources.
    fn load(&mut self) -> anyhow::Result<Configuration> {
        let mut loaded = self.manifests.load();
        self.look_again = self.grace.bridge(&mut loaded, Instant::now());
        let Loaded {
            manifests,
            // Only Services given by a flag exist, and they are reached as the flag says.
            surroundings:
                Surroundings {
                    namespaces,
                    secrets,
                    addressables,
                    services: _,
                    issues_tokens: _,
                },
            mut problems,
            unusable,
        } = loaded;
        self.resources = manifests.len();
        let surroundings = Surroundings {
            namespaces,
            secrets,
            addressables,
            ..Surroundings::of_services(self.services.iter().cloned())
        };
        let Resolution {
            configuration,
            unresolved,
        } = resolve(&manifests, &unusable, surroundings);
        problems.extend(unresolved.iter().map(problem));
        problems.extend(manifests.iter().filter_map(unchecked_producers));
        if !self.serves_webhooks {
            problems.extend(manifests.iter().filter_map(unserved_webhook));
        }
        problems.extend(manifests.iter().filter_map(unwatched_objects));
        problems.sort();
        problems.dedup();
        let mut stderr = io::stderr().lock();
        // Prints only new problems.
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            writeln!(stderr, "{problem}").context("cannot write to stderr")?;
        }
        self.problems = problems;
        Ok(configuration)
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// Warns that the ServiceAccounts that a Broker lists are not checked.
fn unchecked_producers(manifest: &Manifest) -> Option<ManifestProblem> {
    let Resource::Broker(broker) = &manifest.resource else {
        return None;
    };
    let listed = broker.spec.producers.as_ref()?;
    let is_account = |producer: &api::Producer| producer.service_account.is_some();
    let consequence = match (listed.iter().any(is_account), listed.iter().all(is_account)) {
        (_, true) => "everyone may post to the broker",
        (true, false) => "the ServiceAccounts that it lists may not post",
        (false, false) => return None,
    };
    let (kind, namespace, name) = manifest.key();
    let message = format!(
        "{kind} {namespace}/{name}: {consequence}, since weir run has no keys to verify tokens of ServiceAccounts with"
    );
    Some(manifest.problem("spec.producers", message))
}

/// Warns that nobody receives the requests of a webhook.
fn unserved_webhook(manifest: &Manifest) -> Option<ManifestProblem> {
    let Resource::Source(source) = &manifest.resource else {
        return None;
    };
    source.spec.webhook.as_ref()?;
    let (kind, namespace, name) = manifest.key();
    let message =
        format!("{kind} {namespace}/{name}: it receives nothing, since --listen-hooks ADDRESS is not given");
    Some(manifest.problem("spec.webhook", message))
}

/// Warns that nobody watches the objects of a Source.
fn unwatched_objects(manifest: &Manifest) -> Option<ManifestProblem> {
    let Resource::Source(source) = &manifest.resource else {
        return None;
    };
    source.spec.kubernetes.as_ref()?;
    let (kind, namespace, name) = manifest.key();
    let message = format!(
        "{kind} {namespace}/{name}: it produces nothing, since weir run has no API server; weir sources runs it in a cluster"
    );
    Some(manifest.problem("spec.kubernetes", message))
}

/// Describes a problem in terms of the --service flags.
fn problem(unresolved: &UnresolvedField<'_>) -> ManifestProblem {
    let consequence = match unresolved.path.as_str() {
        "spec.delivery.deadLetterSink" => "the router keeps dead letters",
        _ => "events have nowhere to go",
    };
    match &unresolved.missing_service {
        Some(ServiceName { namespace, name }) => unresolved.problem(&format!(
            "no --service {namespace}/{name}=URL is given, so {consequence}"
        )),
        None => unresolved.problem(&unresolved.finding.message),
    }
}
