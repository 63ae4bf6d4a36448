//! Running the real binaries, seeing what they say, and ending them with certainty.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{BufRead, BufReader, Read, Write as _},
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use super::{PATIENCE, eventually};

/// How many lines of a process are shown when its test fails.
const MAX_SHOWN: usize = 200;

/// A process of the test's own: its output is kept, shown when the test fails, and it is killed on drop.
///
/// It also dies with the test process, however that ends: the kernel kills it when the thread that started it
/// ends, and that thread lives as long as the test process.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: Arc<Log>,
    quiet: bool,
}

/// How long what runs to its end may take: helm waits for pods.
const LONGEST_RUN: Duration = Duration::from_secs(240);

/// What is to be started.
#[derive(Debug)]
pub(crate) struct Launch {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    quiet: bool,
    before: Vec<String>,
}

impl Process {
    /// The `weir` binary that was built with the tests.
    pub(crate) fn weir<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Launch {
        Self::program(env!("CARGO_BIN_EXE_weir"), arguments)
    }

    /// Any program.
    pub(crate) fn program<A: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Launch {
        Launch {
            program: program.as_ref().to_owned(),
            arguments: arguments
                .into_iter()
                .map(|argument| argument.as_ref().to_owned())
                .collect(),
            environment: Vec::new(),
            quiet: false,
            before: Vec::new(),
        }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far, standard output and standard error in the order of arrival.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.log.state().lines.clone()
    }

    /// Everything that it has written, once it has ended.
    #[track_caller]
    pub(crate) fn output(&mut self) -> Vec<String> {
        self.wait_for_exit(PATIENCE);
        eventually(PATIENCE, || match self.log.state() {
            state if state.open == 0 => Ok(state.lines.clone()),
            state => Err(format!("{} of its outputs are open", state.open)),
        })
    }

    /// The first line, from the start on, that matches. Fails the test when the time is up or the process has
    /// ended without saying it.
    #[track_caller]
    pub(crate) fn wait_for_line(&self, timeout: Duration, matches: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + timeout;
        let mut state = self.log.state();
        let mut seen = 0;
        loop {
            if let Some(line) = state.lines[seen..].iter().find(|line| matches(line)) {
                return line.clone();
            }
            seen = state.lines.len();
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || state.open == 0 {
                drop(state);
                let why = if left.is_zero() {
                    format!("within {timeout:?}")
                } else {
                    "before it ended".to_owned()
                };
                panic!("{} did not write the expected line {why}", self.name);
            }
            state = self
                .log
                .grown
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// The address that a listener is on, from the line in which the process says so: `listening`, with the fields
    /// `listener` and `address`, as text or as JSON. Let the process bind to port 0 and there is no race for it.
    #[track_caller]
    pub(crate) fn address(&self, listener: &str) -> SocketAddr {
        let is_told = |line: &str| {
            line.contains("listening")
                && field(line, "listener").as_deref() == Some(listener)
                && field(line, "address").is_some()
        };
        let first = self.wait_for_line(PATIENCE, is_told);
        // A router that waited for NATS listens anew.
        let lines = self.lines();
        let line = lines.iter().rfind(|line| is_told(line)).unwrap_or(&first);
        let address = field(line, "address").expect("the line was chosen for having it");
        address
            .parse()
            .unwrap_or_else(|error| panic!("{address:?} is no address ({error}): {line}"))
    }

    /// Whether it has not ended yet.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("cannot ask for the process's state")
            .is_none()
    }

    /// Sends a signal by its name, such as `TERM`, `STOP` or `CONT`.
    #[track_caller]
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("sh")
            .args(["-c", r#"kill -s "$0" "$1""#, name, &self.id().to_string()])
            .status()
            .expect("cannot start sh");
        assert!(status.success(), "cannot send {name} to {}", self.name);
    }

    /// Ends it as a crash would: `kill -9`. It is gone when this returns.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill(); // fails only when it has been waited for
        let _ = self.child.wait();
    }

    /// Asks it to end, waits for it, and returns how it ended.
    #[track_caller]
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait_for_exit(PATIENCE)
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub(crate) fn wait_for_exit(&mut self, timeout: Duration) -> ExitStatus {
        eventually(timeout, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err(format!("{} runs", self.name)),
            Err(error) => Err(format!("cannot ask for the state of {}: {error}", self.name)),
        })
    }

    /// How much memory it holds, in bytes.
    #[track_caller]
    pub(crate) fn resident_memory(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// How much memory it held at most, in bytes.
    #[track_caller]
    pub(crate) fn peak_memory(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// How much CPU time it has used, of the user and of the system, in steps of 10 ms.
    #[track_caller]
    pub(crate) fn processor_time(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.id());
        let stat = fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"));
        // The second field is the name in parentheses; the times are the 14th and the 15th, in hundredths of a second.
        let (_, fields) = stat.rsplit_once(')').expect("it has a name");
        let fields: Vec<_> = fields.split_whitespace().collect();
        let ticks = |field: usize| fields[field - 3].parse::<u64>().expect("it is a number");
        Duration::from_millis(10 * (ticks(14) + ticks(15)))
    }

    #[track_caller]
    fn memory(&self, field: &str) -> u64 {
        let path = format!("/proc/{}/status", self.id());
        let status = fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"));
        let kibibytes = status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB"));
        let kibibytes =
            kibibytes.unwrap_or_else(|| panic!("{path} names no {field} has {} ended?", self.name));
        kibibytes.trim().parse::<u64>().expect("it is a number") * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() && !self.quiet {
            let lines = self.lines();
            let last = &lines[lines.len().saturating_sub(MAX_SHOWN)..];
            eprintln!(
                "---- {} wrote {} lines, the last are ----\n{}\n----",
                self.name,
                lines.len(),
                last.join("\n")
            );
        }
    }
}

impl Launch {
    /// Sets a variable. It gets none of the test's environment but `PATH`, so that nothing of the machine, a
    /// kubeconfig above all, reaches into a test.
    pub(crate) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Does not show its output when the test fails.
    pub(crate) fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Starts it by another command, such as `["nice", "--"]`, which it replaces.
    pub(crate) fn by(mut self, command: &[String]) -> Self {
        self.before.extend_from_slice(command);
        self
    }

    /// Runs it to its end; an error is what it wrote.
    pub(crate) fn run(self) -> Result<String, String> {
        let mut process = self.start();
        let status = process.wait_for_exit(LONGEST_RUN);
        let output = process.output().join("\n");
        if status.success() {
            Ok(output)
        } else {
            Err(format!("{status}: {output}"))
        }
    }

    /// Starts it.
    #[track_caller]
    pub(crate) fn start(self) -> Process {
        let Self {
            program,
            arguments,
            environment,
            quiet,
            before,
        } = self;
        let name = Path::new(&program)
            .file_name()
            .unwrap_or(&program)
            .to_string_lossy()
            .into_owned();
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .args(&before)
            .arg(&program)
            .args(&arguments)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("HOME", "/nonexistent")
            .env("KUBECONFIG", "/nonexistent/kubeconfig")
            .env("NO_COLOR", "1")
            .env("RUST_BACKTRACE", "1")
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = spawn(command).unwrap_or_else(|error| {
            panic!("cannot start setpriv (on Debian, apt-get install util-linux) for {name}: {error}")
        });
        let log = Arc::new(Log {
            copy: copy_of(&name, child.id()),
            ..Log::default()
        });
        log.follow(child.stdout.take().expect("standard output is a pipe"));
        log.follow(child.stderr.take().expect("standard error is a pipe"));
        Process {
            name,
            child,
            log,
            quiet,
        }
    }
}

/// The lines of a process's output.
#[derive(Debug, Default)]
struct Log {
    state: Mutex<LogState>,
    grown: Condvar,
    copy: Option<fs::File>,
}

/// A file for a process's output in the directory `WEIR_TEST_LOGS`, if that is set: what remains of a process that was
/// killed or started again.
fn copy_of(name: &str, id: u32) -> Option<fs::File> {
    let folder = std::env::var_os("WEIR_TEST_LOGS")?;
    let path = Path::new(&folder).join(format!("{name}-{id}.log"));
    let file = fs::File::create(&path);
    Some(file.unwrap_or_else(|error| panic!("cannot create {}: {error}", path.display())))
}

#[derive(Debug, Default)]
struct LogState {
    lines: Vec<String>,
    /// The outputs that have not ended.
    open: usize,
}

impl Log {
    fn state(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(self: &Arc<Self>, output: impl Read + Send + 'static) {
        self.state().open += 1;
        let log = Arc::clone(self);
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if let Some(mut copy) = log.copy.as_ref() {
                    let _ = copy.write_all(&[&line[..], b"\n"].concat());
                }
                log.state()
                    .lines
                    .push(String::from_utf8_lossy(&line).into_owned());
                log.grown.notify_all();
            }
            log.state().open -= 1;
            log.grown.notify_all();
        });
    }
}

/// Starts a process from the one thread that lives until the test process ends. A test's own thread would not do:
/// it ends with its test, and `PR_SET_PDEATHSIG` looks at the thread.
fn spawn(command: Command) -> std::io::Result<Child> {
    type Request = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        thread::spawn(move || {
            for (mut command, reply) in requests {
                let _ = reply.send(command.spawn());
            }
        });
        sender
    });
    let (reply, started) = mpsc::channel();
    spawner
        .send((command, reply))
        .expect("the thread that starts processes lives as long as this one");
    started.recv().expect("the thread that starts processes answers")
}

/// A field of a log line, as `tracing` writes it: JSON, or `name=value` after the message.
fn field(line: &str, name: &str) -> Option<String> {
    if let Ok(json) = serde_json::from_str::<serde_json::Value>(line) {
        let value = json
            .get("fields")
            .and_then(|fields| fields.get(name))
            .or_else(|| json.get(name))?;
        return Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
    let value = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}

#[test]
fn a_field_is_found_in_text_and_in_json() {
    for line in [
        r#"2026-01-02T03:04:05Z  INFO weir: listening listener="admin" address=127.0.0.1:40123"#,
        r#"{"level":"INFO","fields":{"message":"listening","listener":"admin","address":"127.0.0.1:40123"}}"#,
        r#"{"level":"INFO","message":"listening","listener":"admin","address":"127.0.0.1:40123"}"#,
    ] {
        assert_eq!(field(line, "listener").as_deref(), Some("admin"), "{line}");
        assert_eq!(
            field(line, "address").as_deref(),
            Some("127.0.0.1:40123"),
            "{line}"
        );
        assert_eq!(field(line, "port"), None, "{line}");
    }
}
