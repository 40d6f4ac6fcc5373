//! The hub over HTTP: what a file is, and its bytes from some place on. Blocking, with bounded patience; it never tells its
//! token to anybody but the hub, and to the hub only where nobody listens.

use std::{ffi::OsString, io::Read, path::Path, time::Duration};

use ureq::{
    Agent, Body, Proxy,
    config::RedirectAuthHeaders,
    http::{Response, Uri},
    tls::{Certificate, RootCerts, TlsConfig},
};

use super::{Error, patience::PAUSE};
use crate::store::digests::is_sha1;

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
    /// It is none, or names a user; `SSL_CERT_FILE` or `SSL_CERT_DIR` names no certificates.
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
            .tls_config(TlsConfig::builder().root_certs(roots(given("SSL_CERT_FILE"), given("SSL_CERT_DIR"))?).build())
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

/// What a variable says, if anything.
fn given(variable: &str) -> Option<OsString> {
    std::env::var_os(variable).filter(|said| !said.is_empty())
}

/// Who may vouch for the hub: nobody but those in `file` (`SSL_CERT_FILE`) and `dirs` (`SSL_CERT_DIR`), where one is given.
/// Else whom this machine trusts, so that a mirror or proxy of the house is believed where everything else believes it,
/// and Mozilla's list, which is built in: a bare container trusts nobody.
///
/// # Errors
/// What is given cannot be read, or holds no certificate: to trust others instead would be another choice than was made.
fn roots(file: Option<OsString>, dirs: Option<OsString>) -> Result<RootCerts, Error> {
    let load = rustls_native_certs::load_certs_from_paths;
    if file.is_none() && dirs.is_none() {
        let found = rustls_native_certs::load_native_certs();
        for e in &found.errors {
            tracing::warn!("a certificate of this machine cannot be read: {e}");
        }
        let mut all = found.certs;
        all.extend_from_slice(webpki_root_certs::TLS_SERVER_ROOT_CERTS);
        all.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
        all.dedup();
        return Ok(trusted(all.iter().map(|c| c.as_ref())));
    }
    let bad = |variable, path: &Path, why: String| Error::Roots { variable, path: path.display().to_string(), why };
    let mut all = Vec::new();
    if let Some(file) = &file {
        let path = Path::new(file);
        let found = load(Some(path), None);
        if let Some(e) = found.errors.first() {
            return Err(bad("SSL_CERT_FILE", path, e.to_string()));
        }
        if found.certs.is_empty() {
            return Err(bad("SSL_CERT_FILE", path, "it holds no certificate".into()));
        }
        all.extend(found.certs);
    }
    for dir in std::env::split_paths(dirs.as_deref().unwrap_or_default()).filter(|d| !d.as_os_str().is_empty()) {
        // Of many files one may be no certificate.
        std::fs::read_dir(&dir).map_err(|e| bad("SSL_CERT_DIR", &dir, e.to_string()))?;
        all.extend(load(None, Some(&dir)).certs);
    }
    match dirs {
        Some(dirs) if all.is_empty() => Err(bad("SSL_CERT_DIR", Path::new(&dirs), "there is no certificate".into())),
        _ => Ok(trusted(all.iter().map(|c| c.as_ref()))),
    }
}

fn trusted<'a>(found: impl Iterator<Item = &'a [u8]>) -> RootCerts {
    let own: Vec<Certificate<'static>> = found.map(|der| Certificate::from_der(der).to_owned()).collect();
    own.into()
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
    fn roots_are_those_that_are_given_else_the_machines_and_mozillas() {
        let all = |file: Option<&Path>, dirs: Option<&Path>| {
            roots(file.map(Into::into), dirs.map(Into::into)).map(|roots| {
                let RootCerts::Specific(own) = roots else { panic!("not by name") };
                own.iter().map(|c| c.der().to_vec()).collect::<Vec<_>>()
            })
        };
        let usual = all(None, None).unwrap();
        assert!(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().all(|c| usual.contains(&c.to_vec())));

        let dir = tempfile::tempdir().unwrap();
        let (file, none) = (dir.path().join("house.pem"), dir.path().join("none"));
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\naG91c2U=\n-----END CERTIFICATE-----\n").unwrap();
        assert_eq!(all(Some(&file), None).unwrap(), [b"house"]);
        assert_eq!(all(None, Some(dir.path())).unwrap(), [b"house"]);
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(all(Some(&file), Some(empty.path())).unwrap(), [b"house"]);

        let bare = dir.path().join("bare.pem");
        std::fs::write(&bare, "nothing\n").unwrap();
        for (file, dirs, said) in [
            (Some(none.as_path()), None, "`SSL_CERT_FILE` names `"),
            (Some(bare.as_path()), None, "bare.pem`: it holds no certificate"),
            (None, Some(none.as_path()), "`SSL_CERT_DIR` names `"),
            (Some(file.as_path()), Some(none.as_path()), "`SSL_CERT_DIR` names `"),
            (None, Some(empty.path()), "there is no certificate"),
        ] {
            let error = all(file, dirs).unwrap_err();
            assert!(matches!(error, Error::Roots { .. }) && error.to_string().contains(said), "{error}");
        }
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
