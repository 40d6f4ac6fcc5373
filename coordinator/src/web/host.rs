//! Whom a request takes the dashboard for. Without a token, all that keeps other sites out of it is that their pages cannot
//! read what another one answers; a site whose name leads to this machine all of a sudden would be the same one.

use std::net::IpAddr;

use axum::{
    extract::Request,
    http::{header, uri::Authority},
};

/// What is said to a request for somebody else.
pub(super) const REFUSED: &str = "without a token the dashboard answers to `localhost` and to addresses only; \
     set `TL_USER_TOKEN` for the coordinator to use another name\n";

/// Whether a request names `localhost` or an address as its host, which no name server can say of another site, or no host,
/// which no browser does.
pub(super) fn is_own(request: &Request) -> bool {
    let header = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or("?"));
    header.or_else(|| request.uri().authority().map(Authority::as_str)).is_none_or(is_local)
}

/// Whether a host, with or without a port, is an address or `localhost`.
fn is_local(host: &str) -> bool {
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (name, port) = bracketed.unwrap_or_else(|| host.split_at(host.find(':').unwrap_or(host.len())));
    let is_number = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit());
    if !port.strip_prefix(':').map_or(port.is_empty(), is_number) {
        return false;
    }
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_nobody_elses() {
        for own in
            ["localhost", "LOCALHOST:7080", "localhost.:80", "tl.localhost:9", "127.0.0.1:80", "10.1.2.3", "[::1]:80"]
        {
            assert!(is_local(own), "{own}");
        }
        for other in ["", "evil.example", "localhost.evil.example:7080", "notlocalhost", "127.0.0.1.evil.example:80"] {
            assert!(!is_local(other), "{other}");
        }
        for mixed in
            ["localhost:x@evil.example", "[::1]evil.example", "[::1]:80.evil.example", "[::1", "localhost:80:80"]
        {
            assert!(!is_local(mixed), "{mixed}");
        }
        let request = |host: Option<&str>, uri: &str| {
            let request =
                host.iter().fold(axum::http::Request::builder().uri(uri), |r, host| r.header(header::HOST, *host));
            is_own(&request.body(Body::empty()).unwrap())
        };
        assert!(request(None, "/") && request(Some("127.0.0.1:80"), "/") && !request(Some("evil.example"), "/"));
        // HTTP/2 says it in the address.
        assert!(request(None, "http://localhost:80/") && !request(None, "http://evil.example/"));
    }
}
