//! Tests that wrong servers and settings are reported with how to fix them, and that each kind of credentials works.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    path::PathBuf,
    thread,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer};

use super::{
    super::*,
    server::{FIT, NatsServer, eventually},
};
use crate::log::conformance::{ByKey as _, at, payloads};

/// Returns the error of a failed connection.
async fn refusal(options: JetStreamOptions) -> String {
    match JetStreamLog::connect(options).await {
        Err(LogError::Open { detail, .. }) => detail,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it connects"),
    }
}

#[track_caller]
fn says(refusal: &str, parts: &[&str]) {
    for part in parts {
        assert!(refusal.contains(part), "{refusal:?} does not say {part:?}");
    }
}

async fn works(options: JetStreamOptions) {
    let log = JetStreamLog::connect(options).await.unwrap();
    log.append("n/b", payloads(&["0"]), at(0)).await.unwrap();
}

#[tokio::test]
async fn a_wrong_url_is_refused() {
    let with = |url: &str| JetStreamOptions {
        urls: vec![url.to_owned()],
        ..Default::default()
    };
    says(&refusal(JetStreamOptions::default()).await, &["no URL"]);
    says(
        &refusal(with("nats://me:secret@nats:4222")).await,
        &["give them separately"],
    );
    says(
        &refusal(with("http://nats:4222")).await,
        &["http://nats:4222 is not the URL"],
    );
    says(
        &refusal(with("ws://nats:4222")).await,
        &["only nats:// and tls://"],
    );
    let away = JetStreamLog::connect(with("nats://127.0.0.1:1")).await.err();
    assert!(matches!(away, Some(LogError::Unavailable(_))), "{away:?}");
}

#[tokio::test]
async fn a_server_of_an_earlier_version_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let info = r#"INFO {"server_id":"x","version":"2.14.9","max_payload":2097152,"headers":true,"jetstream":true}"#;
        write!(stream, "{info}\r\n").unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap()).lines();
        for line in lines.map_while(Result::ok) {
            if line == "PING" {
                stream.write_all(b"PONG\r\n").unwrap();
            }
        }
    });
    let options = JetStreamOptions {
        urls: vec![url],
        ..Default::default()
    };
    says(
        &refusal(options).await,
        &["version 2.14.9", "upgrade it to 2.15 or newer"],
    );
}

#[tokio::test]
async fn a_server_that_takes_too_small_messages_is_refused() {
    let server = NatsServer::configured("jetstream { max_file: 1GB }\n");
    says(
        &refusal(server.options()).await,
        &["1048576 bytes", "max_payload: 2MB"],
    );
}

#[tokio::test]
async fn a_server_without_jetstream_is_refused() {
    let server = NatsServer::configured("max_payload: 2MB\n");
    says(&refusal(server.options()).await, &["enable JetStream"]);
}

#[tokio::test]
async fn more_replicas_than_servers_are_refused() {
    let server = NatsServer::start();
    let options = JetStreamOptions {
        replicas: 3,
        ..server.options()
    };
    says(
        &refusal(options).await,
        &["replicas", "3 replicas", "configure fewer replicas"],
    );
}

#[tokio::test]
async fn a_server_without_room_is_full() {
    let server = NatsServer::configured("max_payload: 2MB\njetstream { max_file: 1MB }\n");
    let log = server.connect().await;
    let full = log.append("n/b", payloads(&["0"]), at(0)).await;
    assert!(matches!(full, Err(LogError::Full(_))), "{full:?}");
}

#[tokio::test]
async fn a_stream_with_other_partitions_is_refused() {
    let server = NatsServer::start();
    let log = server.connect().await;
    let config = serde_json::json!({
        "name": "weir_n_b",
        "subjects": ["weir.ev.n.b.*"],
        "metadata": { "weir.dev/partitions": "25" },
    });
    let session = &log.0.streams.session;
    let wait = std::time::Duration::from_secs(10);
    let made: serde_json::Value = session
        .api("STREAM.CREATE.weir_n_b", &config, wait)
        .await
        .unwrap();
    assert_eq!(made["config"]["name"], "weir_n_b");
    says(
        &refusal(server.options()).await,
        &["weir_n_b", "25", "upgrade Weir"],
    );
}

#[tokio::test]
async fn missing_rights_are_named() {
    let permissions = |denied: &str| {
        format!(
            "{FIT}authorization {{ users: [{{ user: weir, password: secret, permissions: {{ publish: {{ deny: [{denied:?}] }} }} }}] }}\n"
        )
    };
    let denied = [
        "weir.ev.>",
        "weir.st.>",
        "weir.end.>",
        "weir.ask.>",
        "$JS.API.STREAM.PURGE.*",
        "$JS.API.CONSUMER.MSG.NEXT.>",
        "$JS.API.>",
    ];
    let checks = denied.map(async |denied| {
        let server = NatsServer::configured(&permissions(denied));
        let options = JetStreamOptions {
            timeout: std::time::Duration::from_secs(2),
            ..with_password(&server, "secret")
        };
        says(
            &refusal(options).await,
            &["Permissions Violation", "allow the user to publish"],
        );
    });
    futures::future::join_all(checks).await;
}

fn with_password(server: &NatsServer, password: &str) -> JetStreamOptions {
    let path = server.directory().join("password");
    fs::write(&path, format!("{password}\n")).unwrap();
    JetStreamOptions {
        auth: NatsAuth::User {
            name: "weir".into(),
            password: path,
        },
        ..server.options()
    }
}

#[tokio::test]
async fn a_new_password_is_used_for_the_next_connection() {
    let users = |password: &str| format!("{FIT}authorization {{ user: weir, password: {password:?} }}\n");
    let mut server = NatsServer::configured(&users("first"));
    says(
        &refusal(with_password(&server, "wrong")).await,
        &["refuses the credentials"],
    );
    says(&refusal(server.options()).await, &["refuses the credentials"]);
    let log = JetStreamLog::connect(with_password(&server, "first"))
        .await
        .unwrap();
    log.append("n/b", payloads(&["0"]), at(0)).await.unwrap();
    server.kill();
    server.configure(&users("second"));
    with_password(&server, "second");
    server.start_again();
    eventually(async || log.append("n/b", payloads(&["1"]), at(0)).await).await;
}

#[tokio::test]
async fn an_nkey_signs_in() {
    let key = KeyPair::new_user();
    let server = NatsServer::configured(&format!(
        "{FIT}authorization {{ users: [{{ nkey: {} }}] }}\n",
        key.public_key()
    ));
    let path = server.directory().join("seed");
    let options = JetStreamOptions {
        auth: NatsAuth::NkeySeed(path.clone()),
        ..server.options()
    };
    says(&refusal(options.clone()).await, &["cannot read", "seed"]);
    fs::write(&path, "not a seed").unwrap();
    says(&refusal(options.clone()).await, &["is not the seed of an NKey"]);
    fs::write(&path, KeyPair::new_user().seed().unwrap()).unwrap();
    says(&refusal(options.clone()).await, &["refuses the credentials"]);
    fs::write(&path, format!("{}\n", key.seed().unwrap())).unwrap();
    works(options).await;
}

/// Returns a NATS JWT: claims about a key, signed by its issuer.
fn jwt(issuer: &KeyPair, subject: &KeyPair, claims: serde_json::Value) -> String {
    let part = |value: serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let header = part(serde_json::json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
    let claims = part(serde_json::json!({
        "iss": issuer.public_key(),
        "sub": subject.public_key(),
        "iat": 1_800_000_000,
        "nats": claims,
    }));
    let signed = format!("{header}.{claims}");
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

/// Returns the configuration of a server with an operator, a system account and an account with JetStream, and the
/// latter's key.
fn operator_mode() -> (String, KeyPair) {
    let (operator, system, account) = (
        KeyPair::new_operator(),
        KeyPair::new_account(),
        KeyPair::new_account(),
    );
    let claims = |storage: i64| {
        let limits = serde_json::json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
            "mem_storage": storage, "disk_storage": storage, "streams": storage, "consumer": storage,
        });
        serde_json::json!({ "type": "account", "version": 2, "limits": limits })
    };
    let configuration = format!(
        "{FIT}operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {}, {}: {} }}\n",
        jwt(
            &operator,
            &operator,
            serde_json::json!({ "type": "operator", "version": 2 })
        ),
        system.public_key(),
        system.public_key(),
        jwt(&operator, &system, claims(0)),
        account.public_key(),
        jwt(&operator, &account, claims(-1)),
    );
    (configuration, account)
}

#[tokio::test]
async fn a_credentials_file_signs_in() {
    let (configuration, account) = operator_mode();
    let server = NatsServer::configured(&configuration);
    let path = server.directory().join("weir.creds");
    let options = JetStreamOptions {
        auth: NatsAuth::Credentials(path.clone()),
        ..server.options()
    };
    let write = |account: &KeyPair| {
        let user = KeyPair::new_user();
        let claims =
            serde_json::json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            jwt(account, &user, claims),
            user.seed().unwrap()
        );
        fs::write(&path, text).unwrap();
    };
    write(&KeyPair::new_account());
    says(&refusal(options.clone()).await, &["refuses the credentials"]);
    write(&account);
    works(options).await;
}

/// Certificates of a test authority, as PEM files.
struct Certificates {
    authority: PathBuf,
    server: (PathBuf, PathBuf),
    client: (PathBuf, PathBuf),
}

impl Certificates {
    fn write(directory: &std::path::Path) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let authority = directory.join("ca.pem");
        fs::write(&authority, params.self_signed(&key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(params, key);
        let signed = |name: &str, host: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = CertificateParams::new([host.to_owned()]).unwrap();
            let paths = (
                directory.join(format!("{name}.pem")),
                directory.join(format!("{name}.key")),
            );
            fs::write(&paths.0, params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
            fs::write(&paths.1, key.serialize_pem()).unwrap();
            paths
        };
        Self {
            server: signed("server", "127.0.0.1"),
            client: signed("client", "weir"),
            authority,
        }
    }
}

#[tokio::test]
async fn tls_needs_the_right_authority_and_the_client_certificate() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let directory = tempfile::tempdir().unwrap();
    let Certificates {
        authority,
        server: (certificate, key),
        client,
    } = Certificates::write(directory.path());
    let server = NatsServer::configured(&format!(
        "{FIT}tls {{ cert_file: {certificate:?}, key_file: {key:?}, ca_file: {authority:?}, verify: true }}\n"
    ));
    let with = |tls| JetStreamOptions {
        tls,
        ..server.options()
    };
    says(&refusal(with(NatsTls::default())).await, &["TLS failed"]);
    let trusted = NatsTls {
        authorities: Some(authority),
        client: None,
    };
    says(&refusal(with(trusted.clone())).await, &["TLS failed"]);
    works(with(NatsTls {
        client: Some(client),
        ..trusted
    }))
    .await;
}
