//! A whole coordinator: opens the stores, listens, serves until it is told to stop.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use tl_proto::{DESCRIPTORS, MAX_MESSAGE_BYTES, v1};
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{service::interceptor::InterceptedService, transport::Server};

use crate::{
    config::{BadConfig, Config},
    driver::Driver,
    records::Records,
    rpc::{BlobService, DataService, Gate, NodeService, Role, UserService},
    store::{self, Blobs},
    web,
};

/// Where a coordinator listens.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Bound {
    /// gRPC.
    pub grpc: SocketAddr,
    /// The dashboard.
    pub http: Option<SocketAddr>,
}

/// Why a coordinator does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It must not be started this way.
    #[error(transparent)]
    Config(#[from] BadConfig),
    /// A store cannot be opened.
    #[error("`{0}` cannot be used: {1}")]
    Store(String, store::Error),
    /// Another process holds the data folder.
    #[error("another coordinator uses `{0}`")]
    Locked(String),
    /// An address cannot be listened on.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    /// The server failed.
    #[error("the server failed: {0}")]
    Server(String),
}

/// Runs a coordinator until `stop` is done; tells `ready` where it listens.
///
/// # Errors
/// It cannot start, or its server fails.
pub async fn run(config: Config, ready: impl FnOnce(Bound), stop: impl Future<Output = ()>) -> Result<(), Error> {
    config.validate()?;
    let shown = config.data.display().to_string();
    let opened = |e| Error::Store(shown.clone(), e);
    std::fs::create_dir_all(&config.data).map_err(|e| opened(e.into()))?;
    let _lock = lock(&config.data, &shown)?;
    let blobs = match &config.blobs {
        None => Blobs::open(&config.data),
        Some(url) => Blobs::open_at(&config.data, url),
    };
    let blobs = blobs.map_err(opened)?;
    let records = Records::open(&config.data).map_err(opened)?;
    let grpc = bind(config.listen).await?;
    let http = match config.http {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let local = |l: &TcpListener| l.local_addr().map_err(|e| Error::Server(e.to_string()));
    let bound = Bound { grpc: local(&grpc)?, http: http.as_ref().map(local).transpose()? };
    let (driver, thread) = Driver::start(&config.data, config.deadlines.clone(), blobs.clone()).map_err(opened)?;
    // A job may have been removed, and the coordinator killed before its rows and lines were.
    records.retain(driver.read(|s| s.jobs.keys().cloned().collect())).await.map_err(opened)?;
    ready(bound);

    let (stopping, stopped) = watch::channel(false);
    let gone = |mut stopped: watch::Receiver<bool>| async move {
        // An error means that the sender is gone, which is the same.
        let _ = stopped.wait_for(|s| *s).await;
    };
    let shared = web::Shared::new(driver.clone(), records.clone(), blobs.clone(), config.tokens.clone());
    let web = tokio::spawn({
        let until = gone(stopped.clone());
        async move {
            match http {
                Some(listener) => web::serve(listener, Arc::new(shared), until).await,
                None => Ok(()),
            }
        }
    });
    let server = server(&config, &driver, &records, &blobs).await?;
    let serving = server.serve_with_incoming_shutdown(TcpListenerStream::new(grpc), gone(stopped));
    tokio::pin!(serving);
    let result = tokio::select! {
        result = &mut serving => result,
        () = stop => {
            let _ = stopping.send(true);
            // Streams of agents and watchers are open as long as they like: they get a moment, and reconnect.
            tokio::time::timeout(Duration::from_millis(200), &mut serving).await.unwrap_or(Ok(()))
        }
    };
    let _ = stopping.send(true);
    web.abort();
    driver.stop();
    let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    result.map_err(|e| Error::Server(e.to_string()))
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|e| Error::Listen(address, e))
}

/// Two coordinators on one log would each believe to be the only writer.
fn lock(dir: &std::path::Path, shown: &str) -> Result<std::fs::File, Error> {
    let failed = |e: std::io::Error| Error::Store(shown.to_owned(), e.into());
    let file = std::fs::File::create(dir.join("lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::Locked(shown.to_owned())),
        Err(std::fs::TryLockError::Error(e)) => Err(failed(e)),
    }
}

async fn server(
    config: &Config,
    driver: &Driver,
    records: &Records,
    blobs: &Blobs,
) -> Result<tonic::transport::server::Router, Error> {
    let gate = |role| Gate::new(config.tokens.clone(), role);
    let user = v1::user_server::UserServer::new(UserService { driver: driver.clone(), records: records.clone() })
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let node = NodeService::new(driver.clone(), records.clone(), blobs.clone(), config.deadlines.clone());
    let node = v1::node_api_server::NodeApiServer::new(node).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let blob = v1::blobs_server::BlobsServer::new(BlobService { blobs: blobs.clone() })
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let data = DataService { driver: driver.clone(), blobs: blobs.clone() };
    let data = v1::data_server::DataServer::new(data).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let failed = |e: tonic_reflection::server::Error| Error::Server(e.to_string());
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<v1::user_server::UserServer<UserService>>().await;
    reporter.set_serving::<v1::node_api_server::NodeApiServer<NodeService>>().await;
    Ok(Server::builder()
        .http2_keepalive_interval(Some(Duration::from_millis(config.deadlines.rpc_ms)))
        .http2_keepalive_timeout(Some(Duration::from_millis(config.deadlines.rpc_ms)))
        .tcp_nodelay(true)
        .add_service(InterceptedService::new(user, gate(Role::User)))
        .add_service(InterceptedService::new(node, gate(Role::Node)))
        .add_service(InterceptedService::new(data, gate(Role::User)))
        .add_service(InterceptedService::new(blob, gate(Role::Any)))
        .add_service(health)
        .add_service(reflection().build_v1().map_err(failed)?)
        .add_service(reflection().build_v1alpha().map_err(failed)?))
}
