//! Server-side TLS: a bounded handshake, and a plain response to clients that speak plain HTTP.

use std::{io, sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Timeout of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Response to clients that speak plain HTTP.
const PLAIN_ANSWER: &str = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
     this port speaks TLS: use an https URL\n";

/// Maximum size read of a plain request, in bytes. Closing a connection with unread data resets it, and the client
/// may not see the response.
const MAX_PLAIN: u64 = 64 * 1024;

/// Performs the TLS handshake.
///
/// # Errors
/// If the client is silent for too long, does not speak TLS, or no parameters can be agreed on.
pub(super) async fn accept(stream: TcpStream, config: Arc<ServerConfig>) -> io::Result<TlsStream<TcpStream>> {
    timeout(HANDSHAKE_TIMEOUT, handshake(stream, config)).await?
}

async fn handshake(stream: TcpStream, config: Arc<ServerConfig>) -> io::Result<TlsStream<TcpStream>> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    // An HTTP method starts with a letter, a TLS record does not.
    if first[0].is_ascii_alphabetic() {
        refuse(stream).await?;
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the client speaks plain HTTP, not TLS",
        ));
    }
    TlsAcceptor::from(config).accept(stream).await
}

async fn refuse(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(PLAIN_ANSWER.as_bytes()).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(MAX_PLAIN), &mut tokio::io::sink()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustls::{
        RootCertStore,
        pki_types::{PrivateKeyDer, ServerName},
    };
    use tokio::net::TcpListener;

    use super::*;

    struct Ends {
        server: Arc<ServerConfig>,
        client: tokio_rustls::TlsConnector,
        listener: TcpListener,
    }

    impl Ends {
        async fn new() -> Self {
            let made = rcgen::generate_simple_self_signed(["weir".to_owned()]).unwrap();
            let mut roots = RootCertStore::empty();
            roots.add(made.cert.der().clone()).unwrap();
            let client = rustls::ClientConfig::builder()
                .with_root_certificates(roots)
                .with_no_client_auth();
            let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
            let server = ServerConfig::builder()
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key)
                .unwrap();
            Self {
                server: Arc::new(server),
                client: Arc::new(client).into(),
                listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            }
        }

        async fn client(&self) -> TcpStream {
            TcpStream::connect(self.listener.local_addr().unwrap())
                .await
                .unwrap()
        }

        async fn accept(&self) -> io::Result<TlsStream<TcpStream>> {
            let (stream, _) = self.listener.accept().await.unwrap();
            accept(stream, self.server.clone()).await
        }
    }

    #[tokio::test]
    async fn encrypts_connections() {
        let ends = Ends::new().await;
        let name = ServerName::try_from("weir").unwrap();
        let stream = ends.client().await;
        let (server, client) = tokio::join!(ends.accept(), ends.client.connect(name, stream));
        let mut client = client.unwrap();
        server.unwrap().write_all(b"x").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn responds_to_plain_http() {
        let ends = Ends::new().await;
        let mut stream = ends.client().await;
        let (accepted, answer) = tokio::join!(ends.accept(), async {
            stream
                .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                .await
                .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            drop(stream);
            answer
        });
        assert_eq!(accepted.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.contains("use an https URL"),
            "{answer}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn silent_client_is_disconnected() {
        let ends = Ends::new().await;
        let _silent = ends.client().await;
        let error = ends.accept().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn disconnects_other_protocols() {
        let ends = Ends::new().await;
        let mut stream = ends.client().await;
        stream.write_all(&[0; 64]).await.unwrap();
        assert_eq!(
            ends.accept().await.unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        drop(ends.client().await);
        assert!(ends.accept().await.is_err());
    }
}
