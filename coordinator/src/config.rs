//! How a coordinator is started.

use std::{net::SocketAddr, path::PathBuf};

use tl_proto::deadlines::{BadDeadline, Deadlines};

/// Everything that a coordinator needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where gRPC listens.
    pub listen: SocketAddr,
    /// Where the dashboard listens; nowhere without it.
    pub http: Option<SocketAddr>,
    /// Folder for the stores.
    pub data: PathBuf,
    /// Where whole blobs lie, if not in that folder: a URL of a bucket.
    pub blobs: Option<String>,
    /// Who may do what.
    pub tokens: Tokens,
    /// The one table of deadlines.
    pub deadlines: Deadlines,
}

/// Bearer tokens by role. A role without one is open to everybody, which only loopback allows.
#[derive(Clone, Default)]
pub struct Tokens {
    /// For people and programs that submit jobs.
    pub user: Option<String>,
    /// For agents.
    pub node: Option<String>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |t: &Option<String>| if t.is_some() { "set" } else { "none" };
        write!(f, "Tokens {{ user: {}, node: {} }}", shown(&self.user), shown(&self.node))
    }
}

/// A way to start that is refused.
#[derive(Debug, thiserror::Error)]
pub enum BadConfig {
    /// Open to the network.
    #[error("`{0}` is not loopback, and there is no token for the role `{1}`; set `TL_{2}_TOKEN`")]
    Open(SocketAddr, &'static str, &'static str),
    /// Easily guessed.
    #[error("the token for the role `{0}` is shorter than 16 characters; `openssl rand -hex 16` makes a good one")]
    Short(&'static str),
    /// Contradicting deadlines.
    #[error(transparent)]
    Deadlines(#[from] BadDeadline),
}

impl Config {
    /// Checks what can be checked before anything is opened.
    ///
    /// # Errors
    /// The first thing that must not be.
    pub fn validate(&self) -> Result<(), BadConfig> {
        self.deadlines.validate()?;
        let roles = [("user", "USER", &self.tokens.user), ("node", "NODE", &self.tokens.node)];
        for (role, variable, token) in roles {
            match token {
                Some(t) if t.len() < 16 => return Err(BadConfig::Short(role)),
                Some(_) => {}
                None => {
                    let listens = [Some(self.listen), self.http];
                    if let Some(open) = listens.into_iter().flatten().find(|a| !a.ip().is_loopback()) {
                        return Err(BadConfig::Open(open, role, variable));
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_loopback_nothing_starts_without_both_tokens() {
        let config = |listen: &str, user: Option<&str>, node: Option<&str>| Config {
            listen: listen.parse().unwrap(),
            http: None,
            data: PathBuf::new(),
            blobs: None,
            tokens: Tokens { user: user.map(Into::into), node: node.map(Into::into) },
            deadlines: Deadlines::default(),
        };
        let long = Some("0123456789abcdef");
        assert!(config("127.0.0.1:1", None, None).validate().is_ok());
        assert!(config("0.0.0.0:1", long, long).validate().is_ok());
        assert!(matches!(config("0.0.0.0:1", None, long).validate(), Err(BadConfig::Open(_, "user", _))));
        assert!(matches!(config("[::]:1", long, None).validate(), Err(BadConfig::Open(_, "node", _))));
        assert!(matches!(config("127.0.0.1:1", Some("hunter2"), None).validate(), Err(BadConfig::Short("user"))));
        assert!(!format!("{:?}", config("[::1]:1", long, long)).contains("0123456789"));
    }
}
