//! Requests, and connections that are kept for the next one.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use http::header::{HOST, HeaderValue};
use http::{Method, StatusCode, Uri};
use hyper::client::conn::http1::{self, SendRequest};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use object_store::{ClientConfigKey, ClientOptions};
use rbdkit_plugin_api::{lock, name_lookup_hint};
use rbdkit_tls::{CertificateFiles, ClientTls, Role, ServerIdentity};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::attempt;
use super::body::AnswerBody;
use super::stream::Stream;

/// How long connecting may take, with the lookup of the name and the handshake of TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// What a connection buffers of what it receives, in bytes. The head of an answer has to fit.
const RECEIVE_BUFFER: usize = 64 << 10;

/// Hosts whose settings of TLS are kept. A store has one or two, and its services for credentials
/// some more.
const MAX_HOSTS: usize = 16;

/// The longest body of an answer that is no part of an object: a list of 1000 keys has 400 KB.
const MAX_TEXT: u64 = 4 << 20;

/// How the client works.
#[derive(Clone, Debug)]
pub(crate) struct HttpSettings {
    /// The most requests under way.
    pub(crate) connections: u32,
    /// A request that makes no progress for this long is given up.
    pub(crate) timeout: Duration,
    /// The file of the authorities to trust. None: those that the system trusts.
    pub(crate) cainfo: Option<PathBuf>,
}

/// Scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Origin {
    tls: bool,
    host: String,
    port: u16,
}

/// A connection between two requests.
struct Kept {
    origin: Origin,
    sender: SendRequest<HttpRequestBody>,
}

/// The client.
struct Client {
    settings: HttpSettings,
    authorities: Option<CertificateFiles>,
    tls: Mutex<HashMap<String, Arc<ClientTls>>>,
    idle: Mutex<Vec<Kept>>,
    places: Arc<Semaphore>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

/// Makes clients for object_store. All share their connections.
#[derive(Clone, Debug)]
pub(crate) struct Connector(Arc<Client>);

impl Connector {
    /// Reads the authorities, which a confined server could not.
    ///
    /// # Errors
    /// One line that names the file.
    pub(crate) fn new(settings: HttpSettings) -> Result<Connector, String> {
        let authorities = match &settings.cainfo {
            None => None,
            Some(path) => {
                let read = |file: &str| match file {
                    "ca-cert.pem" => std::fs::read(path),
                    _ => Err(io::ErrorKind::NotFound.into()),
                };
                let files = CertificateFiles::read(Role::Client, read);
                let named = |error| format!("cainfo={}: {error}", path.display());
                let files = files.map_err(|error| named(without_file(&error.to_string())))?;
                // The first use checks the content.
                ClientTls::with_certificates(Some(&files), &ServerIdentity::AnyName, None)
                    .map_err(|error| named(without_file(&error.to_string())))?;
                Some(files)
            }
        };
        let places = Arc::new(Semaphore::new(settings.connections as usize));
        let client = Client { settings, authorities, tls: Mutex::default(), idle: Mutex::default(), places };
        Ok(Connector(Arc::new(client)))
    }
}

/// An error of `rbdkit-tls` without the name of the file in a directory, which is not ours.
fn without_file(error: &str) -> String {
    error.strip_prefix("ca-cert.pem: ").unwrap_or(error).to_owned()
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let plain = options.get_config_value(&ClientConfigKey::AllowHttp).as_deref() == Some("true");
        Ok(HttpClient::new(Requests { client: Arc::clone(&self.0), plain }))
    }
}

#[derive(Debug)]
struct Requests {
    client: Arc<Client>,
    /// Whether `http://` is allowed.
    plain: bool,
}

#[async_trait]
impl HttpService for Requests {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let origin =
            origin(request.uri(), self.plain).map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        Arc::clone(&self.client).send(origin, request).await
    }
}

fn origin(uri: &Uri, plain: bool) -> io::Result<Origin> {
    let tls = match uri.scheme_str() {
        Some("https") => true,
        Some("http") if plain => false,
        _ => return Err(io::Error::other("the store's address has to begin with https://")),
    };
    let host = uri.host().ok_or_else(|| io::Error::other("the store's address has no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(Origin { tls, host, port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }) })
}

impl Client {
    async fn send(self: Arc<Client>, origin: Origin, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        attempt::begins();
        if let Some((name, value)) = attempt::condition().filter(|_| request.method() == Method::DELETE) {
            request.headers_mut().insert(name, value);
        }
        prepare(&mut request)?;
        let is_get = request.method() == Method::GET;
        let places = Arc::clone(&self.places);
        let place = places.acquire_owned().await.map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        let (answer, sender) = self.exchange(&origin, request).await?;
        let (parts, incoming) = answer.into_parts();
        attempt::answered(parts.status, &parts.headers);
        // A part of an object is taken as it comes. The rest is collected before it is looked at.
        let is_data = is_get && parts.status == StatusCode::PARTIAL_CONTENT;
        let room = (!is_data).then_some(MAX_TEXT);
        let silence = self.settings.timeout;
        let kept = Kept { origin, sender };
        let body = AnswerBody::new(incoming, silence, room, Box::new(move || self.keep(kept)), place);
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
    }

    /// Sends a request over a connection that was kept, or over a new one.
    async fn exchange(
        &self,
        origin: &Origin,
        mut request: HttpRequest,
    ) -> Result<(hyper::Response<hyper::body::Incoming>, SendRequest<HttpRequestBody>), HttpError> {
        let silence = self.settings.timeout;
        let late = |_| HttpError::new(HttpErrorKind::Timeout, io::Error::new(io::ErrorKind::TimedOut, "no answer"));
        while let Some(mut kept) = self.take(origin) {
            if kept.sender.ready().await.is_err() {
                continue;
            }
            let sending = kept.sender.try_send_request(request);
            match timeout(silence, sending).await.inspect_err(|_| attempt::is_sent()).map_err(late)? {
                Ok(answer) => return Ok((answer, kept.sender)),
                // The server had closed the connection before it could take the request.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => {
                        attempt::is_sent();
                        return Err(HttpError::new(HttpErrorKind::Interrupted, error.into_error()));
                    }
                },
            }
        }
        let connecting = timeout(CONNECT_TIMEOUT.min(silence.max(Duration::from_secs(1))), self.connect(origin));
        let connected = connecting.await.map_err(late)?;
        let mut sender = connected.map_err(|error| HttpError::new(HttpErrorKind::Connect, error))?;
        attempt::is_sent();
        let answer = timeout(silence, sender.send_request(request)).await.map_err(late)?;
        Ok((answer.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error))?, sender))
    }

    async fn connect(&self, origin: &Origin) -> io::Result<SendRequest<HttpRequestBody>> {
        let found = lookup_host((&*origin.host, origin.port)).await.map_err(|error| match name_lookup_hint() {
            Some(hint) => io::Error::new(error.kind(), format!("{error} ({hint})")),
            None => error,
        });
        let addresses: Vec<SocketAddr> = found?.collect();
        let tcp = TcpStream::connect(&*addresses).await?;
        tcp.set_nodelay(true)?;
        let session = match origin.tls {
            true => Some(self.tls(&origin.host)?.connect().map_err(io::Error::other)?),
            false => None,
        };
        let stream = Stream::new(tcp, session).await?;
        let (sender, connection) =
            http1::Builder::new().max_buf_size(RECEIVE_BUFFER).handshake(stream).await.map_err(io::Error::other)?;
        tokio::spawn(async move {
            // Its requests report the error.
            let _ = connection.await;
        });
        Ok(sender)
    }

    /// The settings of TLS for a host.
    fn tls(&self, host: &str) -> io::Result<Arc<ClientTls>> {
        let mut known = lock(&self.tls);
        if let Some(tls) = known.get(host) {
            return Ok(Arc::clone(tls));
        }
        let name = ServerIdentity::Name(host.to_owned());
        let tls = ClientTls::with_certificates(self.authorities.as_ref(), &name, None).map_err(io::Error::other)?;
        if known.len() >= MAX_HOSTS {
            known.clear();
        }
        let tls = Arc::new(tls);
        known.insert(host.to_owned(), Arc::clone(&tls));
        Ok(tls)
    }

    /// The connection to this server that was used last.
    fn take(&self, origin: &Origin) -> Option<Kept> {
        let mut idle = lock(&self.idle);
        idle.retain(|kept| !kept.sender.is_closed());
        let at = idle.iter().rposition(|kept| kept.origin == *origin)?;
        Some(idle.swap_remove(at))
    }

    /// Keeps a connection for the next request.
    fn keep(&self, kept: Kept) {
        let mut idle = lock(&self.idle);
        if !kept.sender.is_closed() && idle.len() < self.settings.connections as usize {
            idle.push(kept);
        }
    }
}

/// Puts the address of a request into the form that servers expect.
fn prepare(request: &mut HttpRequest) -> Result<(), HttpError> {
    let wrong = |error: http::Error| HttpError::new(HttpErrorKind::Unknown, error);
    let uri = request.uri().clone();
    if !request.headers().contains_key(HOST)
        && let Some(authority) = uri.authority()
    {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|error| wrong(error.into()))?;
        request.headers_mut().insert(HOST, host);
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse::<Uri>().map_err(|error| wrong(error.into()))?;
    Ok(())
}
