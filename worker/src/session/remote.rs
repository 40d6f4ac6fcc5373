//! The way to the coordinator: address, token, patience.

use std::time::Duration;

use tl_proto::{
    MAX_MESSAGE_BYTES,
    bearer::Bearer,
    v1::{blobs_client::BlobsClient, node_api_client::NodeApiClient},
};
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

/// How long a connection may take, and how long a silent one is believed in.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the coordinator is. Connects when it is first used, and again after a loss.
///
/// Control, reports and blobs have a connection each: a burst of one never delays another.
#[derive(Clone)]
pub struct Remote {
    channels: [Channel; 3],
    bearer: Bearer,
}

/// A channel that says who we are.
pub type Channelled = InterceptedService<Channel, Bearer>;

impl Remote {
    /// The coordinator at `address` (`http://host:port`, or `host:port`).
    ///
    /// # Errors
    /// Something that is no address, or a token that is no header.
    pub fn new(address: &str, token: Option<&str>) -> Result<Self, String> {
        let url = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let endpoint = Endpoint::from_shared(url).map_err(|e| format!("`{address}` is not an address: {e}"))?;
        let endpoint = endpoint
            .connect_timeout(PATIENCE)
            .http2_keep_alive_interval(PATIENCE)
            .keep_alive_timeout(PATIENCE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let channels = std::array::from_fn(|_| endpoint.connect_lazy());
        let bearer = Bearer::new(token)?;
        Ok(Self { channels, bearer })
    }

    /// The node API, for control.
    pub fn control(&self) -> NodeApiClient<Channelled> {
        self.nodes(0)
    }

    /// The node API, for reports.
    pub fn reports(&self) -> NodeApiClient<Channelled> {
        self.nodes(1)
    }

    fn nodes(&self, channel: usize) -> NodeApiClient<Channelled> {
        NodeApiClient::with_interceptor(self.channels[channel].clone(), self.bearer.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The blob service.
    pub fn blobs(&self) -> BlobsClient<Channelled> {
        BlobsClient::with_interceptor(self.channels[2].clone(), self.bearer.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}
