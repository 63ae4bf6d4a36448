//! Server-side TLS: a handshake of bounded time and size, and a plain response to clients that speak plain HTTP.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustls::{ServerConfig, ServerConnection};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Timeout of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum size of what a client sends until the handshake is complete, in bytes: as much as of an HTTP/1 head without
/// a reservation. rustls alone would buffer 64 KiB.
const MAX_HANDSHAKE: usize = 16 * 1024;

/// Maximum size of a response's encrypted records that wait to be sent, in bytes.
const SEND_BUFFER: usize = 16 * 1024;

/// Response to clients that speak plain HTTP.
const PLAIN_ANSWER: &str = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n\
     this port speaks TLS: use an https URL\n";

/// Maximum size read of a plain request, in bytes. Closing a connection with unread data resets it, and the client
/// may not see the response.
const MAX_PLAIN: u64 = 64 * 1024;

/// Performs the TLS handshake.
///
/// # Errors
/// If the client is silent for too long, sends too much, does not speak TLS, or no parameters can be agreed on.
pub(super) async fn accept(
    stream: TcpStream,
    config: Arc<ServerConfig>,
) -> io::Result<TlsStream<HandshakeStream>> {
    timeout(HANDSHAKE_TIMEOUT, handshake(stream, config)).await?
}

async fn handshake(stream: TcpStream, config: Arc<ServerConfig>) -> io::Result<TlsStream<HandshakeStream>> {
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
    let stream = HandshakeStream {
        stream,
        left: Some(MAX_HANDSHAKE),
    };
    let limit = |connection: &mut ServerConnection| connection.set_buffer_limit(Some(SEND_BUFFER));
    let mut accepting = TlsAcceptor::from(config).accept_with(stream, limit);
    let accepted = poll_fn(|context| match Pin::new(&mut accepting).poll(context) {
        Poll::Pending if accepting.get_ref().is_some_and(|stream| stream.left == Some(0)) => {
            Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the client sent too much during the handshake",
            )))
        }
        accepted => accepted,
    });
    let mut stream = accepted.await?;
    stream.get_mut().0.left = None;
    Ok(stream)
}

async fn refuse(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(PLAIN_ANSWER.as_bytes()).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(MAX_PLAIN), &mut tokio::io::sink()).await?;
    Ok(())
}

/// A stream whose input is limited until the handshake is complete.
#[derive(Debug)]
pub(super) struct HandshakeStream {
    stream: TcpStream,
    /// Bytes that the client may still send.
    left: Option<usize>,
}

impl AsyncRead for HandshakeStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(left) = &mut this.left else {
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        };
        if *left == 0 {
            // The handshake may be complete: rustls reads on as long as there is something, such as the first request.
            // Otherwise `handshake` ends it.
            return Poll::Pending;
        }
        let length = buffer.remaining().min(*left);
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(length));
        ready!(Pin::new(&mut this.stream).poll_read(context, &mut part))?;
        let read = part.filled().len();
        buffer.advance(read);
        *left -= read;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HandshakeStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
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

        async fn accept(&self) -> io::Result<TlsStream<HandshakeStream>> {
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

    /// The end of the handshake and the first request come together.
    #[tokio::test]
    async fn a_large_request_right_behind_the_handshake_is_read() {
        let ends = Ends::new().await;
        let (name, request) = (ServerName::try_from("weir").unwrap(), vec![b'x'; 60 * 1024]);
        let stream = ends.client().await;
        let (server, client) = tokio::join!(ends.accept(), async {
            let mut client = ends.client.connect(name, stream).await.unwrap();
            client.write_all(&request[..40 * 1024]).await.unwrap();
            client
        });
        let (mut server, mut client) = (server.unwrap(), client);
        let mut received = vec![0; request.len()];
        let sent = client.write_all(&request[40 * 1024..]);
        let (read, sent) = tokio::join!(server.read_exact(&mut received), sent);
        assert!(read.is_ok() && sent.is_ok() && received == request);
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
    async fn client_that_sends_too_much_is_disconnected() {
        let ends = Ends::new().await;
        let mut stream = ends.client().await;
        // A ClientHello of 60 KiB in four records, of which all but the last byte comes.
        let mut sent = vec![1, 0, 0xf0, 0];
        sent.resize(60 * 1024 - 1, 0);
        let record = |part: &[u8]| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[22, 3, 1], &length[..], part].concat()
        };
        let sent: Vec<u8> = sent.chunks(15 * 1024).flat_map(record).collect();
        let sending = tokio::spawn(async move {
            // The server may hang up before all is sent.
            let _ = stream.write_all(&sent).await;
            stream
        });
        let error = ends.accept().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        assert!(error.to_string().contains("too much"), "{error}");
        drop(sending.await);
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
