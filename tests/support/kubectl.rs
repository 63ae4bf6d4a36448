//! The real kubectl, as one user, in one namespace.

use std::{
    ffi::OsStr,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use super::control_plane;

/// kubectl itself, to be launched.
pub(crate) fn kubectl_binary() -> PathBuf {
    control_plane::assets().join("kubectl")
}

/// Runs kubectl. A method fails the test with everything that kubectl said, unless its name says otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Kubectl {
    binary: PathBuf,
    kubeconfig: PathBuf,
    namespace: String,
}

impl Kubectl {
    pub(super) fn new(binary: PathBuf, kubeconfig: PathBuf, namespace: impl Into<String>) -> Self {
        Self {
            binary,
            kubeconfig,
            namespace: namespace.into(),
        }
    }

    /// Of a kubeconfig that somebody else wrote.
    pub(crate) fn of(kubeconfig: &Path, namespace: &str) -> Self {
        Self::new(kubectl_binary(), kubeconfig.to_owned(), namespace)
    }

    /// The same user in another namespace.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            ..self.clone()
        }
    }

    /// The file to give to a program that is to be this user.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The namespace that everything is done in.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Runs it and returns what it wrote to standard output.
    #[track_caller]
    pub(crate) fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> String {
        self.output(arguments, None)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs it; an error is the command with what kubectl wrote.
    pub(crate) fn try_run<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<String, String> {
        self.output(arguments, None)
    }

    /// Applies manifests.
    #[track_caller]
    pub(crate) fn apply(&self, manifests: &str) -> String {
        self.output(["apply", "-f", "-"], Some(&as_yaml(manifests)))
            .unwrap_or_else(|error| panic!("{error}\nmanifests:\n{manifests}"))
    }

    /// Creates a resource, and returns it as the API server answers.
    #[track_caller]
    pub(crate) fn create(&self, manifest: &str) -> Value {
        let created = self.output(["create", "-f", "-", "--output=json"], Some(manifest));
        let json = created.unwrap_or_else(|error| panic!("{error}\nmanifest:\n{manifest}"));
        serde_json::from_str(&json).unwrap_or_else(|error| panic!("kubectl wrote no JSON ({error}): {json}"))
    }

    /// Applies manifests that have to be rejected, and returns what the person who applied them reads.
    #[track_caller]
    pub(crate) fn apply_err(&self, manifests: &str) -> String {
        match self.output(["apply", "-f", "-"], Some(&as_yaml(manifests))) {
            Err(error) => error,
            Ok(output) => panic!("accepted, but should be rejected: {output}\nmanifests:\n{manifests}"),
        }
    }

    /// A resource, such as `trigger/orders`, as the API server has it.
    #[track_caller]
    pub(crate) fn get(&self, resource: &str) -> Value {
        let json = self.run(["get", resource, "--output=json"]);
        serde_json::from_str(&json).unwrap_or_else(|error| panic!("kubectl wrote no JSON ({error}): {json}"))
    }

    /// Waits until the resource, such as `trigger/orders`, has the condition Ready; else shows it whole.
    #[track_caller]
    pub(crate) fn wait_ready(&self, resource: &str) {
        self.wait_condition(resource, "Ready");
    }

    /// Waits until the resource has a condition: a type that has to be True, or `Type=Status`.
    #[track_caller]
    pub(crate) fn wait_condition(&self, resource: &str, condition: &str) {
        let condition = format!("--for=condition={condition}");
        if let Err(error) = self.try_run(["wait", &condition, "--timeout=30s", resource]) {
            let state = self
                .try_run(["get", resource, "--output=yaml"])
                .unwrap_or_else(|error| error);
            panic!("{error}\n{state}");
        }
    }

    /// Waits until all pods of a Deployment are its newest ones and ready; else shows what its namespace has and says.
    #[track_caller]
    pub(crate) fn wait_rolled_out(&self, deployment: &str) {
        if let Err(error) = self.try_run(["rollout", "status", deployment, "--timeout=120s"]) {
            let show = |arguments: &[&str]| self.try_run(arguments).unwrap_or_else(|error| error);
            panic!(
                "{error}\n{}\n{}",
                show(&["get", "all,serviceaccounts,events"]),
                show(&["describe", "pods"])
            );
        }
    }

    fn output<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
        input: Option<&str>,
    ) -> Result<String, String> {
        let home = self.kubeconfig.with_file_name("home"); // where it keeps what it discovered
        let mut command = Command::new(&self.binary);
        command
            .args(["--namespace", &self.namespace])
            .args(arguments)
            .env_clear()
            .env("HOME", home)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(if input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", self.binary.display()))?;
        if let (Some(input), Some(mut pipe)) = (input, child.stdin.take()) {
            // It may end without reading: what it then says is worth more than the broken pipe.
            let _ = pipe.write_all(input.as_bytes());
        }
        let Output {
            status,
            stdout,
            stderr,
        } = child
            .wait_with_output()
            .map_err(|error| format!("cannot wait for kubectl: {error}"))?;
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        if status.success() {
            return Ok(stdout.into_owned());
        }
        let arguments: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
        Err(format!(
            "kubectl {}: {status}\n{stdout}{stderr}",
            arguments.join(" ")
        ))
    }
}

/// Older versions take what begins with a brace for JSON.
fn as_yaml(manifests: &str) -> String {
    format!("---\n{manifests}")
}
