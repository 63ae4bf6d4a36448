//! A real API server with its etcd, on loopback.
//!
//! There is no controller manager: namespaces get no ServiceAccounts, Services no EndpointSlices, owners' deletion
//! removes nothing, and a deleted namespace stays Terminating. A test applies what it needs of these itself.

use std::{
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use serde_json::json;

use super::{Kubectl, PATIENCE, Process, ReservedPort, Scratch, eventually, try_get};

/// The API server takes about three seconds to be ready, and much longer beside a compiler.
const START: Duration = Duration::from_secs(120);

/// An API server and its etcd, with an administrator.
#[derive(Debug)]
pub(crate) struct ControlPlane {
    // In the order of dropping: the directory goes last.
    api_server: Process,
    _etcd: Process,
    addresses: Addresses,
    assets: PathBuf,
    namespaces: AtomicUsize,
    directory: Scratch,
}

#[derive(Debug)]
struct Addresses {
    api_server: ReservedPort,
    etcd: ReservedPort,
    etcd_peer: ReservedPort,
}

impl ControlPlane {
    /// The one that the tests of this process share: each works in namespaces of its own.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<ControlPlane> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// One of the test's own, for a test that stops the API server or changes what is not in a namespace.
    #[track_caller]
    pub(crate) fn start() -> Self {
        let assets = assets();
        let directory = Scratch::new();
        let addresses = Addresses {
            api_server: ReservedPort::new(),
            etcd: ReservedPort::new(),
            etcd_peer: ReservedPort::new(),
        };
        write_credentials(&directory, addresses.api_server.address());
        let etcd = start_etcd(&assets, directory.path(), &addresses);
        let api_server = start_api_server(&assets, directory.path(), &addresses);
        let namespaces = AtomicUsize::new(0);
        let mut plane = Self {
            api_server,
            _etcd: etcd,
            addresses,
            assets,
            namespaces,
            directory,
        };
        plane.wait_until_ready();
        plane
    }

    /// kubectl as the administrator, in the namespace `default`.
    pub(crate) fn admin(&self) -> Kubectl {
        self.kubectl(self.admin_kubeconfig(), "default")
    }

    /// A new namespace, whose name begins like this, and kubectl as the administrator in it.
    #[track_caller]
    pub(crate) fn namespace(&self, prefix: &str) -> Kubectl {
        let name = format!("{prefix}-{}", self.namespaces.fetch_add(1, Ordering::Relaxed));
        self.admin().run(["create", "namespace", &name]);
        self.kubectl(self.admin_kubeconfig(), &name)
    }

    /// kubectl as a ServiceAccount, which is made if there is none: a user with what its RBAC rules allow.
    #[track_caller]
    pub(crate) fn service_account(&self, namespace: &str, name: &str) -> Kubectl {
        let admin = self.kubectl(self.admin_kubeconfig(), namespace);
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name } });
        admin.apply(&account.to_string());
        let token = admin.run(["create", "token", name, "--duration=1h"]);
        let kubeconfig = write_kubeconfig(
            &self.directory,
            &format!("{namespace}.{name}"),
            self.addresses.api_server.address(),
            token.trim(),
        );
        self.kubectl(kubeconfig, namespace)
    }

    /// Kills the API server. What it knew stays in etcd.
    pub(crate) fn stop_api_server(&mut self) {
        self.api_server.kill();
    }

    /// Starts the API server again, on the same port, and waits until it is ready.
    #[track_caller]
    pub(crate) fn start_api_server(&mut self) {
        self.stop_api_server();
        self.api_server = start_api_server(&self.assets, self.directory.path(), &self.addresses);
        self.wait_until_ready();
    }

    /// Publishes a second key of ServiceAccount tokens beside the one that signs them, as an operator does before a
    /// rotation.
    #[track_caller]
    pub(crate) fn publish_next_service_account_key(&mut self) {
        let (private, public) = service_account_key();
        let published = std::fs::read_to_string(self.directory.path().join("service-account.pub"));
        let published = published.expect("the first key has been written");
        self.directory.write("service-account.pub", published + &public);
        self.directory.write("next-service-account.key", private);
        self.start_api_server();
    }

    /// Signs tokens with the second key from now on.
    #[track_caller]
    pub(crate) fn sign_with_next_service_account_key(&mut self) {
        let file = |name: &str| self.directory.path().join(name);
        std::fs::rename(file("next-service-account.key"), file("service-account.key"))
            .expect("the second key has been written");
        self.start_api_server();
    }

    fn admin_kubeconfig(&self) -> PathBuf {
        self.directory.path().join("admin.kubeconfig")
    }

    fn kubectl(&self, kubeconfig: PathBuf, namespace: &str) -> Kubectl {
        Kubectl::new(self.assets.join("kubectl"), kubeconfig, namespace)
    }

    #[track_caller]
    fn wait_until_ready(&mut self) {
        let admin = self.admin();
        eventually(START, || {
            let readiness = admin.try_run(["get", "--raw=/readyz", "--request-timeout=5s"]);
            if readiness.is_err() && !self.api_server.is_running() {
                panic!(
                    "kube-apiserver ended instead of starting:\n{}",
                    self.api_server.lines().join("\n")
                );
            }
            readiness
        });
    }
}

pub(super) fn assets() -> PathBuf {
    let Some(folder) = env::var_os("KUBEBUILDER_ASSETS") else {
        panic!(
            "KUBEBUILDER_ASSETS does not say where kube-apiserver, etcd and kubectl are: \
             run `make integration`, or set it to what tests/kubernetes/build.sh prints"
        );
    };
    let folder = PathBuf::from(folder);
    for binary in ["kube-apiserver", "etcd", "kubectl"] {
        assert!(
            folder.join(binary).is_file(),
            "KUBEBUILDER_ASSETS={} lacks {binary}",
            folder.display()
        );
    }
    folder
}

#[track_caller]
fn start_etcd(assets: &Path, directory: &Path, addresses: &Addresses) -> Process {
    let client = format!("http://{}", addresses.etcd.address());
    let peer = format!("http://{}", addresses.etcd_peer.address());
    let arguments = [
        format!("--data-dir={}", directory.join("etcd").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        "--unsafe-no-fsync".to_owned(), // what is in there does not outlive the test
        "--log-level=warn".to_owned(),
    ];
    let etcd = Process::program(assets.join("etcd"), arguments).start();
    eventually(PATIENCE, || match try_get(&format!("{client}/health")) {
        Ok(response) if response.status.is_success() => Ok(()),
        Ok(response) => Err(format!("etcd is not healthy: {}", response.text())),
        Err(error) => Err(error),
    });
    etcd
}

fn start_api_server(assets: &Path, directory: &Path, addresses: &Addresses) -> Process {
    let address = addresses.api_server.address();
    let file = |name: &str| directory.join(name).display().to_string();
    let arguments = [
        format!("--etcd-servers=http://{}", addresses.etcd.address()),
        format!("--bind-address={}", address.ip()),
        format!("--advertise-address={}", address.ip()),
        format!("--secure-port={}", address.port()),
        format!("--cert-dir={}", file("tls")), // it makes its certificate there, and keeps it when it comes back
        format!("--token-auth-file={}", file("tokens.csv")),
        format!("--service-account-key-file={}", file("service-account.pub")),
        format!(
            "--service-account-signing-key-file={}",
            file("service-account.key")
        ),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        // Without a controller manager nobody makes the ServiceAccounts that it would ask for.
        "--disable-admission-plugins=ServiceAccount".to_owned(),
        // The Service `kubernetes` cannot have a loopback address, and needs none.
        "--endpoint-reconciler-type=none".to_owned(),
    ];
    Process::program(assets.join("kube-apiserver"), arguments)
        .quiet()
        .start()
}

/// Writes the tokens that the API server knows, a kubeconfig for the administrator, and the key that signs the tokens
/// of ServiceAccounts.
pub(super) fn write_credentials(directory: &Scratch, api_server: SocketAddr) {
    let token = uuid::Uuid::new_v4().simple().to_string();
    directory.write("tokens.csv", format!("{token},admin,admin,system:masters\n"));
    write_kubeconfig(directory, "admin", api_server, &token);

    let (private, public) = service_account_key();
    directory.write("service-account.key", private);
    directory.write("service-account.pub", public);
}

/// A new key for the tokens of ServiceAccounts: the private and the public one, in PEM.
fn service_account_key() -> (String, String) {
    let random = SystemRandom::new();
    let key =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).expect("cannot make a key");
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.as_ref(), &random)
        .expect("a key that was just made is a key");
    let public = [P256_PUBLIC_KEY_PREFIX, pair.public_key().as_ref()].concat();
    (pem("PRIVATE KEY", key.as_ref()), pem("PUBLIC KEY", &public))
}

/// What stands before the point of a P-256 public key in a SubjectPublicKeyInfo: the lengths, the algorithm
/// (id-ecPublicKey, prime256v1), and the header of the bit string.
const P256_PUBLIC_KEY_PREFIX: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in STANDARD.encode(der).as_bytes().chunks(64) {
        text.extend(line.iter().map(|&byte| char::from(byte)));
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

/// Writes a kubeconfig for whoever holds the token. JSON is YAML too, and quotes by itself.
fn write_kubeconfig(directory: &Scratch, user: &str, api_server: SocketAddr, token: &str) -> PathBuf {
    let authority = directory.path().join("tls/apiserver.crt");
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "test",
            "cluster": { "server": format!("https://{api_server}"), "certificate-authority": authority },
        }],
        "users": [{ "name": user, "user": { "token": token } }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": user } }],
        "current-context": "test",
    });
    directory.write(&format!("{user}.kubeconfig"), kubeconfig.to_string())
}
