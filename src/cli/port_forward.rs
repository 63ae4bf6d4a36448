//! `weir port-forward`: forwards the admin port of a router's pod to this machine, and keeps the router's token where
//! the other subcommands find it. Uses kubectl, and with it the user's clusters and credentials.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use tokio::{process::Command, time::timeout};

use super::{operator_token, shutdown};

/// Timeout of a question to the cluster.
const PATIENCE: Duration = Duration::from_secs(30);

/// Selects the pods of routers.
const ROUTERS: &str = "app.kubernetes.io/name=weir,app.kubernetes.io/component=router";

/// Arguments of `weir port-forward`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    weir port-forward -n weir-system &        a router of the installation\n  \
    weir dead-letters list                    asks it\n\n\
    Needs kubectl, and the rights to list pods (unless POD is given) and to create pods/exec and pods/portforward in the namespace.")]
pub struct PortForwardArgs {
    /// Pod of the router. Default: the first running router of the namespace.
    #[arg(value_name = "POD")]
    pub pod: Option<String>,

    /// Namespace that Weir is installed in.
    #[arg(short, long, default_value = "weir-system", value_name = "NAMESPACE")]
    pub namespace: String,

    /// Context of the kubeconfig. Default: the current one.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,

    /// Port of this machine.
    #[arg(long, default_value_t = 9090, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
}

/// Forwards until it is stopped.
///
/// # Errors
/// If there is no running router, kubectl fails, or the token cannot be kept.
pub async fn run(args: PortForwardArgs) -> anyhow::Result<()> {
    let PortForwardArgs {
        pod,
        namespace,
        context,
        port,
    } = args;
    let stop = shutdown::token()?;
    let kubectl = Kubectl { namespace, context };
    let pod = match pod {
        Some(pod) => pod,
        None => kubectl.first_router().await?,
    };
    let token = kubectl.token_of(&pod).await?;
    let _kept = KeptToken::write(port, &token)?;
    let ports = format!("{port}:admin");
    let mut forwarding = kubectl
        .command(&[
            "port-forward",
            "--address=127.0.0.1",
            &format!("pod/{pod}"),
            &ports,
        ])
        .stdin(Stdio::null())
        // Not in the terminal's group: Ctrl-C stops this process, which then stops kubectl.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(without_kubectl)?;
    tokio::select! {
        ended = forwarding.wait() => bail!("kubectl port-forward has ended: {}", ended?),
        () = stop.cancelled() => {
            forwarding.kill().await.context("cannot stop kubectl port-forward")
        }
    }
}

/// The user's kubectl, for a namespace.
struct Kubectl {
    namespace: String,
    context: Option<String>,
}

impl Kubectl {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.arg(format!("--namespace={}", self.namespace));
        if let Some(context) = &self.context {
            command.arg(format!("--context={context}"));
        }
        command.args(arguments);
        command
    }

    /// Runs it to its end and returns its output.
    async fn output(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.command(arguments);
        let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
        let output = timeout(PATIENCE, running).await;
        let output =
            output.with_context(|| format!("kubectl did not end within {} s", PATIENCE.as_secs()))?;
        let output = output.map_err(without_kubectl)?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "kubectl {} failed: {}",
            arguments.first().unwrap_or(&""),
            told.trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    async fn first_router(&self) -> anyhow::Result<String> {
        let selector = format!("--selector={ROUTERS}");
        let running = "--field-selector=status.phase=Running";
        let names = [
            "get",
            "pods",
            &selector,
            running,
            "--output=jsonpath={.items[*].metadata.name}",
        ];
        let names = self.output(&names).await?;
        let first = names.split_whitespace().next().map(str::to_owned);
        first.with_context(|| {
            format!(
                "no router is running in namespace {}: name the one that Weir is installed in with --namespace",
                self.namespace
            )
        })
    }

    async fn token_of(&self, pod: &str) -> anyhow::Result<String> {
        let token = ["exec", pod, "--container=router", "--", "/weir", "operator-token"];
        let token = self
            .output(&token)
            .await
            .context("cannot read the router's token in its pod")?;
        ensure!(!token.is_empty(), "the router in pod {pod} has no token");
        Ok(token)
    }
}

fn without_kubectl(error: io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context("cannot run kubectl, which has to be installed and on the PATH")
}

/// The token of the router behind a port, in a file that ends with this value.
struct KeptToken(PathBuf);

impl KeptToken {
    fn write(port: u16, token: &str) -> anyhow::Result<Self> {
        let path = operator_token::forwarded_to(port).context(
            "there is no directory to keep the router's token in: set XDG_RUNTIME_DIR or HOME to an absolute path",
        )?;
        write(&path, token).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for KeptToken {
    fn drop(&mut self) {
        // A file that stays behind holds a token that the next start of the router replaces.
        let _ = fs::remove_file(&self.0);
    }
}

/// Writes a file that only its owner can read.
fn write(path: &Path, token: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    // Another file of this name may be readable by others.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{token}")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn kept_token_is_removed_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        write(&path, "a").unwrap();
        drop(KeptToken(path.clone()));
        assert!(!path.exists());
    }

    #[test]
    fn only_the_owner_can_read_the_kept_token() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weir/token");
        for token in ["a", "b"] {
            write(&path, token).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{token}\n"));
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        }
    }
}
