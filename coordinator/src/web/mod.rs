//! The dashboard, its JSON, and figures for Prometheus.

mod api;
mod host;
mod metrics;
mod page;

use std::{future::Future, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

use crate::{
    config::Tokens,
    driver::Driver,
    records::Records,
    rpc::{Gate, Role},
    store::Blobs,
};

/// What the pages are made from.
pub struct Shared {
    driver: Driver,
    records: Records,
    blobs: Blobs,
    gate: Gate,
    metrics: metrics::Exporter,
}

impl Shared {
    /// Pages over these stores.
    pub fn new(driver: Driver, records: Records, blobs: Blobs, tokens: Tokens) -> Self {
        Self { driver, records, blobs, gate: Gate::new(tokens, Role::User), metrics: metrics::Exporter::install() }
    }
}

/// Serves until `stop` is done.
///
/// # Errors
/// The listener fails.
pub async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(shared)).with_graceful_shutdown(stop).await
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(page::index))
        .route("/jobs/{id}", get(page::job))
        .route("/app.js", get(page::script))
        .route("/style.css", get(page::style))
        .route("/plotly.js", get(page::plotly))
        .route("/api/nodes", get(api::nodes))
        .route("/api/jobs", get(api::jobs))
        .route("/api/jobs/{id}", get(api::job))
        .route("/api/jobs/{id}/series", get(api::series))
        .route("/api/jobs/{id}/logs", get(api::logs))
        .route("/api/jobs/{id}/report", get(api::report))
        .route("/api/jobs/{id}/pictures", get(api::pictures))
        .route("/api/jobs/{id}/pictures/{step}/{file}", get(api::picture))
        .route("/metrics", get(metrics::scrape))
        .method_not_allowed_fallback(api::not_allowed)
        .route_layer(middleware::from_fn_with_state(shared.clone(), guard))
        .route("/healthz", get(healthz))
        .fallback(api::unknown)
        .with_state(shared)
}

/// For probes: whether jobs can begin and end.
async fn healthz(State(shared): State<Arc<Shared>>) -> Response {
    match shared.driver.trouble() {
        None => "ok\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// Lets users in: a bearer token for programs, the same as the password of any name for browsers. Where there is no token,
/// whoever names this machine as only it can be named.
async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    if shared.gate.admits(None) && !host::is_own(&request) {
        return (StatusCode::FORBIDDEN, host::REFUSED).into_response();
    }
    let header = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let token = header.strip_prefix("Bearer ").map(str::to_owned).or_else(|| {
        let pair = decode_base64(header.strip_prefix("Basic ")?)?;
        Some(pair.split_once(':')?.1.to_owned())
    });
    if shared.gate.admits(token.as_deref()) {
        let mut response = next.run(request).await;
        let policy = HeaderValue::from_static(
            "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:",
        );
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
        return response;
    }
    let ask = [(header::WWW_AUTHENTICATE, "Basic realm=\"tl\"")];
    (StatusCode::UNAUTHORIZED, ask, "the token is missing or wrong\n").into_response()
}

/// Standard base64; `None` for anything else.
fn decode_base64(text: &str) -> Option<String> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut out, mut bits, mut held) = (Vec::new(), 0u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let value = ALPHABET.iter().position(|a| *a == byte)? as u32;
        bits = (bits << 6 | value) & 0xffff;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held & 0xff) as u8);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_decodes_with_and_without_padding() {
        assert_eq!(decode_base64("dXNlcjp0b2tlbg==").as_deref(), Some("user:token"));
        assert_eq!(decode_base64("dXNlcjp0b2tlbjE").as_deref(), Some("user:token1"));
        assert_eq!(decode_base64("a b"), None);
    }
}
