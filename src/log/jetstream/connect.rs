//! Connects, and checks the servers before any event is accepted: version, message size, JetStream, replicas and
//! permissions. Each error says how to fix it.

use std::{path::PathBuf, time::Duration};

use async_nats::{ConnectError, ConnectErrorKind, ConnectOptions, HeaderMap, ServerAddr};
use futures::StreamExt as _;
use serde_json::{Value, json};

use super::{
    JetStreamOptions, NatsTls,
    credentials::sign_in,
    layout, names,
    publish::HEADERS,
    session::{NatsError, Session},
    streams::JetStream,
};
use crate::log::{LogError, Shard};

/// Timeout of each check.
const CHECK: Duration = Duration::from_secs(5);
/// Maximum backoff between attempts to reconnect.
const RECONNECT: Duration = Duration::from_secs(1);
/// Interval of pings. After two without a response the connection counts as lost.
const PING: Duration = Duration::from_secs(3);
/// First version that shares one sync among many messages and stores batches safely.
const VERSION: (i64, i64) = (2, 15);
/// Subjects of requests that check permissions. No such stream exists, so any response, even an error, shows that the
/// user has the permission.
const RIGHTS: [&str; 7] = [
    "$JS.API.STREAM.CREATE._",
    "$JS.API.STREAM.PURGE._",
    "$JS.API.STREAM.MSG.GET._",
    "$JS.API.DIRECT.GET._",
    "$JS.API.CONSUMER.CREATE._",
    "weir.ev._.check.0",
    "weir.dl._.check",
];

/// Errors: JetStream is disabled, for the server or for the account.
const OFF: [u32; 2] = [10076, 10039];
/// Errors: fewer servers than replicas.
const REPLICAS: [u32; 2] = [10074, 10005];

/// Connects to the servers and checks them.
pub(super) async fn connect(options: JetStreamOptions) -> Result<JetStream, LogError> {
    let place = PathBuf::from(options.urls.join(","));
    let failed = |detail: String| LogError::Open {
        path: place.clone(),
        detail,
    };
    let servers = servers(&options.urls).map_err(failed)?;
    let credentials = sign_in(&options.auth, b"").await;
    credentials.map_err(|e| failed(e.to_string()))?;
    let session = Session::connect(connect_options(&options), &servers, place.clone())
        .await
        .map_err(|e| connect_error(&e, &options).unwrap_or_else(failed))?;
    check_server(&session, &options).map_err(failed)?;
    let streams = JetStream::new(session, options);
    check_streams(&streams).await?;
    check_rights(&streams).await?;
    streams.load_partitions().await?;
    Ok(streams)
}

fn servers(urls: &[String]) -> Result<Vec<ServerAddr>, String> {
    let servers = urls.iter().map(|url| {
        let server: ServerAddr = url
            .parse()
            .map_err(|e| format!("{url} is not the URL of a NATS server, such as nats://nats:4222: {e}"))?;
        if server.is_websocket() {
            return Err(format!(
                "{url} is a websocket URL; only nats:// and tls:// are supported"
            ));
        }
        if server.username().is_some() || server.password().is_some() {
            return Err(
                "a URL contains a user or a password, which would be logged; give them separately".to_owned(),
            );
        }
        Ok(server)
    });
    let servers = servers.collect::<Result<Vec<_>, _>>()?;
    if servers.is_empty() {
        return Err("there is no URL of a NATS server".to_owned());
    }
    Ok(servers)
}

fn connect_options(options: &JetStreamOptions) -> ConnectOptions {
    let auth = options.auth.clone();
    let NatsTls { authorities, client } = options.tls.clone();
    let mut connect = ConnectOptions::with_auth_callback(move |nonce| {
        let auth = auth.clone();
        async move {
            let signed = sign_in(&auth, &nonce).await;
            signed.map_err(|e| {
                tracing::error!(error = %e, "cannot authenticate to NATS");
                async_nats::AuthError::new(e.to_string())
            })
        }
    })
    .name("weir")
    .connection_timeout(CHECK)
    .ping_interval(PING)
    .reconnect_delay_callback(|attempts| {
        let exponent = u32::try_from(attempts.min(10)).unwrap_or(10);
        RECONNECT.min(Duration::from_millis(2_u64.saturating_pow(exponent)))
    });
    if let Some(authorities) = authorities {
        connect = connect.add_root_certificates(authorities);
    }
    if let Some((certificate, key)) = client {
        connect = connect.add_client_certificate(certificate, key);
    }
    connect
}

/// Returns `Ok` with the error if the servers are unavailable, and `Err` with an explanation if a setting is wrong.
fn connect_error(error: &ConnectError, options: &JetStreamOptions) -> Result<LogError, String> {
    let cause = std::error::Error::source(error).map_or_else(String::new, |cause| format!(": {cause}"));
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => Err(format!(
            "the server refuses the credentials{cause}; check them, and the users in its configuration"
        )),
        ConnectErrorKind::Tls => Err(format!("TLS failed{cause}; check the certificates")),
        _ if is_tls(error) => Err(format!(
            "TLS failed{cause}; check that {} signed the server's certificate for this name, and that the server accepts this client's",
            options
                .tls
                .authorities
                .as_ref()
                .map_or("an authority of this system".to_owned(), |path| path
                    .display()
                    .to_string())
        )),
        _ => Ok(LogError::Unavailable(format!(
            "cannot connect to NATS at {}{cause}",
            options.urls.join(",")
        ))),
    }
}

fn is_tls(error: &ConnectError) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io
            .and_then(std::io::Error::get_ref)
            .is_some_and(|e| e.is::<rustls::Error>())
        {
            return true;
        }
        cause = error.source();
    }
    false
}

fn check_server(session: &Session, options: &JetStreamOptions) -> Result<(), String> {
    let client = session.client();
    let (major, minor) = VERSION;
    if !client.is_server_compatible(major, minor, 0) {
        let version = client.server_info().version;
        return Err(format!(
            "the NATS server has version {version}; upgrade it to {major}.{minor} or newer"
        ));
    }
    let (max_payload, needed) = (
        client.max_payload(),
        options.largest_record + HEADERS + layout::OVERHEAD,
    );
    if max_payload < needed {
        return Err(format!(
            "the NATS server accepts messages of at most {max_payload} bytes, and the largest event needs {needed}; set \
             max_payload: 2MB in its configuration"
        ));
    }
    Ok(())
}

/// Creates the state stream, and checks all others.
async fn check_streams(streams: &JetStream) -> Result<(), LogError> {
    let failed = |e: NatsError| check_error(streams, &e);
    let _: Value = streams
        .session
        .api("INFO", &json!({}), CHECK)
        .await
        .map_err(failed)?;
    let state = streams.create_state(CHECK).await.map_err(failed)?;
    let (is, wanted) = (state.config.num_replicas, streams.options.replicas);
    if is != wanted {
        tracing::warn!(
            stream = names::STATE,
            replicas = is,
            wanted,
            "the stream was created with another number of replicas; change it with: nats stream edit --replicas"
        );
    }
    streams.refresh_all(CHECK).await.map_err(failed)
}

async fn check_rights(streams: &JetStream) -> Result<(), LogError> {
    let asked = RIGHTS.map(|subject| async move {
        let answer = streams
            .session
            .request(subject, HeaderMap::new(), "{}".into(), CHECK)
            .await;
        match answer {
            Ok(_) | Err(NatsError::NoResponders(_)) => Ok(()),
            Err(error) => Err(check_error(streams, &error)),
        }
    });
    for answer in futures::future::join_all(asked).await {
        answer?;
    }
    for (subjects, subject) in [
        (names::ENDS, names::end("_")),
        (names::QUESTIONS, names::ask("_")),
    ] {
        check_hearing(streams, subjects, subject)
            .await
            .map_err(|e| check_error(streams, &e))?;
    }
    let loaded = streams.load_all(Shard::default()).await;
    loaded.map(drop).map_err(|e| match e {
        LogError::Unavailable(detail) => check_error(streams, &NatsError::NoAnswer(detail)),
        other => other,
    })
}

/// Checks that this router can send and receive messages of a subject: it sends one to itself.
async fn check_hearing(
    streams: &JetStream,
    subjects: &'static str,
    subject: String,
) -> Result<(), NatsError> {
    let session = &streams.session;
    let subscribed = session.client().subscribe(subjects).await;
    let mut messages = subscribed.map_err(|e| NatsError::NoAnswer(e.to_string()))?;
    session
        .publish(&subject, HeaderMap::new(), "0".into(), CHECK)
        .await?;
    let heard = async {
        while let Some(message) = messages.next().await {
            if *message.subject == *subject {
                return Ok(());
            }
        }
        Err(NatsError::NoAnswer("the connection is closed".to_owned()))
    };
    session.while_connected(&subject, CHECK, heard).await
}

/// Returns the error of a check, with how to fix it.
fn check_error(streams: &JetStream, error: &NatsError) -> LogError {
    let options = &streams.options;
    let todo = match error {
        NatsError::Rejected(rejection) if OFF.contains(&rejection.err_code) => {
            "enable JetStream in the configuration of the server and for the account".to_owned()
        }
        NatsError::Rejected(rejection) if REPLICAS.contains(&rejection.err_code) => format!(
            "streams have {} replicas: run a cluster of as many NATS servers, or configure fewer replicas",
            options.replicas
        ),
        NatsError::NoResponders(_) => {
            "enable JetStream in the configuration of the server and for the account".to_owned()
        }
        NatsError::NoAnswer(detail) if detail.to_lowercase().contains("permissions violation") => {
            "allow the user to publish to weir.> and $JS.API.>, and to subscribe to weir.end.*, weir.ask.* and _INBOX.>"
                .to_owned()
        }
        NatsError::NoAnswer(detail) => return LogError::Unavailable(detail.clone()),
        NatsError::Rejected(rejection) if rejection.code >= 500 && error.lasting().is_none() => {
            return LogError::Unavailable(error.to_string());
        }
        NatsError::Rejected(_) | NatsError::Unexpected(_) | NatsError::TooLarge(_) => {
            if let Some(lasting) = error.lasting() {
                return lasting;
            }
            "check the JetStream limits of the account".to_owned()
        }
    };
    LogError::Open {
        path: streams.session.place(),
        detail: format!("{error}; {todo}"),
    }
}
