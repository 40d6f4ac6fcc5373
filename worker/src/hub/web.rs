//! The hub over HTTP: what a file is, and its bytes from some place on. Blocking, with bounded patience; it never tells its
//! token to anybody but the hub, and to the hub only where nobody listens.

use std::{io::Read, time::Duration};

use ureq::{
    Agent, Body, Proxy,
    config::RedirectAuthHeaders,
    http::{Response, Uri},
    tls::{Certificate, RootCerts, TlsConfig},
};

use super::{Error, patience::PAUSE};
use crate::digests::is_sha1;

/// How long a connection and an answer may take.
const ANSWER: Duration = Duration::from_secs(20);
/// How long a body may stand still.
const STILL: Duration = Duration::from_secs(30);
/// Redirects within the hub that are followed for the sake of a file's description.
const HOPS: usize = 5;
/// Where the hub is, if nobody says otherwise.
const ENDPOINT: &str = "https://huggingface.co";

/// The way to the hub.
pub struct Web {
    agent: Agent,
    /// Its address.
    pub endpoint: String,
    /// Kept out of every message: there is no way to print it.
    bearer: Option<String>,
    /// Set to make no request at all.
    offline: bool,
    /// The first pause before it is asked again.
    pub pause: Duration,
}

/// What the hub says of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The commit that the revision stands for.
    pub commit: String,
    /// Name of its content: SHA-256 for large files, git's for small ones.
    pub etag: String,
    /// Its size.
    pub bytes: u64,
}

impl Web {
    /// As `HF_ENDPOINT`, `HF_TOKEN` (or `token`, from a login) and `HF_HUB_OFFLINE` say.
    ///
    /// # Errors
    /// As [`Web::new`].
    pub fn from_env(token: Option<String>) -> Result<Self, Error> {
        let var = |name: &str| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
        let offline = var("HF_HUB_OFFLINE").is_some_and(|v| !matches!(v.to_lowercase().as_str(), "0" | "false" | "no"));
        Self::new(&var("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()), var("HF_TOKEN").or(token), offline)
    }

    /// A hub at an address.
    ///
    /// # Errors
    /// It is none, or names a user.
    pub fn new(endpoint: &str, token: Option<String>, offline: bool) -> Result<Self, Error> {
        let endpoint = endpoint.trim().trim_end_matches('/').to_owned();
        let (https, loopback) = read(&endpoint)?;
        let agent = Agent::config_builder()
            .user_agent(concat!("tl/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // Large files lie elsewhere, and whoever keeps them must not learn who we are.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            // What has begun where nobody listens stays there.
            .https_only(https)
            .tls_config(TlsConfig::builder().root_certs(roots()).build())
            .proxy(if loopback { None } else { Proxy::try_from_env() })
            .timeout_resolve(Some(ANSWER))
            .timeout_connect(Some(ANSWER))
            .timeout_recv_response(Some(ANSWER))
            .timeout_per_read(Some(STILL))
            .build()
            .new_agent();
        let bearer = token.filter(|_| https || loopback).map(|t| format!("Bearer {}", t.trim()));
        Ok(Self { agent, endpoint, bearer, offline, pause: PAUSE })
    }

    fn url(&self, repo: &str, revision: &str, file: &str) -> String {
        format!("{}/{repo}/resolve/{}/{file}", self.endpoint, revision.replace('/', "%2F"))
    }

    /// What a file is; one request, or a few where the hub sends us around.
    ///
    /// # Errors
    /// The hub is away, says no, or has no such file.
    pub fn head(&self, repo: &str, revision: &str, file: &str) -> Result<Head, Error> {
        let mut url = self.url(repo, revision, file);
        let (mut commit, mut etag, mut bytes) = (None, None, None);
        for _ in 0..HOPS {
            let answer = self.request(&url, true, None)?;
            let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
            let moved = answer.status().is_redirection();
            commit = commit.or_else(|| header("x-repo-commit"));
            // The hub speaks of the file itself; where that lies elsewhere, the plain headers are those of the redirect.
            etag = etag.or_else(|| header("x-linked-etag")).or_else(|| header("etag").filter(|_| !moved));
            bytes = bytes.or_else(|| header("x-linked-size")).or_else(|| header("content-length").filter(|_| !moved));
            // Elsewhere nobody is asked: everything has been said.
            match header("location").filter(|to| moved && to.starts_with('/') && !to.starts_with("//")) {
                Some(to) => url = format!("{}{to}", origin(&self.endpoint)),
                None if moved || answer.status().is_success() => break,
                None => return Err(self.refused(&answer, revision, file)),
            }
        }
        let etag = etag.map(|e| e.trim_start_matches("W/").trim_matches('"').to_owned()).filter(|e| is_word(e));
        let (Some(commit), Some(etag), Some(bytes)) = (commit.filter(|c| is_sha1(c)), etag, bytes) else {
            return Err(Error::Wrong(format!("what the hub says of `{file}` is no commit, tag and size")));
        };
        if is_sha1(revision) && commit != revision {
            return Err(Error::Wrong(format!("the hub speaks of commit {commit} when asked for {revision}")));
        }
        let bytes = bytes.parse().map_err(|_| Error::Wrong(format!("the hub says no size of `{file}`")))?;
        Ok(Head { commit, etag, bytes })
    }

    /// The bytes of a file, and where they really begin: at `from`, or at 0 where the hub will not.
    ///
    /// # Errors
    /// As [`Web::head`].
    pub fn read(&self, repo: &str, commit: &str, file: &str, from: u64) -> Result<(u64, impl Read + use<>), Error> {
        let answer = self.request(&self.url(repo, commit, file), false, (from > 0).then_some(from))?;
        let begins = match answer.status().as_u16() {
            200 => 0,
            206 => {
                let range = answer.headers().get("content-range").and_then(|v| v.to_str().ok()).unwrap_or_default();
                let start = range.trim_start_matches("bytes ").split('-').next().and_then(|n| n.parse::<u64>().ok());
                start.ok_or_else(|| Error::Wrong(format!("the hub sends an unknown part of `{file}`")))?
            }
            _ => return Err(self.refused(&answer, commit, file)),
        };
        Ok((begins, answer.into_body().into_reader()))
    }

    fn request(&self, url: &str, head: bool, from: Option<u64>) -> Result<Response<Body>, Error> {
        if self.offline {
            return Err(Error::Offline(self.endpoint.clone()));
        }
        let mut request = if head {
            self.agent.head(url).config().max_redirects(0).max_redirects_will_error(false).build()
        } else {
            self.agent.get(url)
        };
        // Sizes are those of the file, not of what is packed.
        request = request.header("accept-encoding", "identity");
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        if let Some(bearer) = &self.bearer {
            request = request.header("authorization", bearer);
        }
        let answer = request.call().map_err(|e| match e {
            ureq::Error::RequireHttpsOnly(_) => Error::Wrong("the hub sends us where others listen".into()),
            ureq::Error::TooManyRedirects => Error::Wrong("the hub sends us around for ever".into()),
            e => self.away(&e.to_string()),
        })?;
        let status = answer.status();
        if status.is_server_error() || matches!(status.as_u16(), 408 | 429) {
            let after = answer.headers().get("retry-after").and_then(|v| v.to_str().ok()?.trim().parse().ok());
            let (endpoint, why) = (self.endpoint.clone(), format!("it answers {status}"));
            return Err(Error::Away { endpoint, why, after: after.map(Duration::from_secs) });
        }
        Ok(answer)
    }

    pub(super) fn away(&self, why: &str) -> Error {
        Error::Away { endpoint: self.endpoint.clone(), why: why.to_owned(), after: None }
    }

    fn refused(&self, answer: &Response<Body>, revision: &str, file: &str) -> Error {
        let code = answer.headers().get("x-error-code").and_then(|v| v.to_str().ok()).unwrap_or_default();
        match (answer.status().as_u16(), code) {
            (401 | 403, _) | (404, "RepoNotFound") => Error::Denied,
            (404, "RevisionNotFound") => Error::NoRevision(revision.to_owned()),
            // Any other 404 may be that of something on the way, and says nothing of the file.
            (404, "EntryNotFound") => Error::NoFile(file.to_owned()),
            (status, _) => Error::Wrong(format!("the hub answers {status} when asked for `{file}`")),
        }
    }
}

/// Who may vouch for the hub: whom this machine trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` say otherwise), so that a
/// mirror or proxy of the house is believed where everything else believes it. A machine that trusts nobody, such as a bare
/// container, takes Mozilla's list, which is built in.
fn roots() -> RootCerts {
    let found = rustls_native_certs::load_native_certs();
    for e in &found.errors {
        tracing::warn!("a certificate of this machine cannot be read: {e}");
    }
    trusted(found.certs.iter().map(|c| c.as_ref()))
}

fn trusted<'a>(found: impl Iterator<Item = &'a [u8]>) -> RootCerts {
    let own: Vec<Certificate<'static>> = found.map(|der| Certificate::from_der(der).to_owned()).collect();
    if own.is_empty() { RootCerts::WebPki } else { own.into() }
}

/// Whether an address is that of HTTPS, and whether it is on this machine: in both cases nobody listens.
fn read(endpoint: &str) -> Result<(bool, bool), Error> {
    let uri: Uri = endpoint.parse().map_err(|_| Error::Endpoint("is no address"))?;
    let https = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(Error::Endpoint("is no address of HTTP or HTTPS")),
    };
    let authority = uri.authority().ok_or(Error::Endpoint("names no host"))?;
    // Never repeated in a message: it may be a password.
    if authority.as_str().contains('@') {
        return Err(Error::Endpoint("names a user or a password, which do not belong there"));
    }
    Ok((https, matches!(authority.host(), "127.0.0.1" | "localhost" | "[::1]")))
}

/// Scheme and host of an address.
fn origin(endpoint: &str) -> &str {
    let after = endpoint.find("://").map_or(0, |at| at + 3);
    let end = endpoint[after..].find('/').map_or(endpoint.len(), |at| after + at);
    &endpoint[..end]
}

/// What may become the name of a file.
fn is_word(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_own_roots_count_where_it_has_any() {
        assert!(matches!(trusted(std::iter::empty()), RootCerts::WebPki));
        let RootCerts::Specific(own) = trusted([&b"der"[..]].into_iter()) else { panic!("not the machine's") };
        assert_eq!(own.iter().map(|c| c.der()).collect::<Vec<_>>(), [b"der"]);
    }

    #[test]
    fn a_token_goes_only_where_nobody_listens() {
        for (endpoint, goes) in [
            ("https://huggingface.co/", true),
            ("http://127.0.0.1:8080", true),
            ("http://localhost/hub", true),
            ("http://mirror.example", false),
            ("http://127.0.0.1.example", false),
            ("http://[::1]:80", true),
        ] {
            let web = Web::new(endpoint, Some("secret".into()), false).unwrap();
            assert_eq!(web.bearer.is_some(), goes, "{endpoint}");
            assert_eq!(web.agent.config().https_only(), endpoint.starts_with("https"), "{endpoint}");
            assert!(endpoint.contains("example") || endpoint.contains(".co") || web.agent.config().proxy().is_none());
        }
        for bad in ["http://localhost:x@evil/", "https://me:pw@huggingface.co", "huggingface.co", "ftp://a", "/x", ""] {
            let e = Web::new(bad, Some("secret".into()), false).err().unwrap();
            assert!(matches!(e, Error::Endpoint(_)) && !e.to_string().contains("pw"), "{bad}: {e}");
        }
        assert_eq!(origin("http://a:1/b/c"), "http://a:1");
        assert_eq!(origin("https://a"), "https://a");
    }
}
