//! Bearer tokens. A role without a token is open, which the configuration allows on loopback only.

use tonic::{Request, Status, service::Interceptor};

use crate::config::Tokens;

/// Who may call a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// People and programs.
    User,
    /// Agents.
    Node,
    /// Either.
    Any,
}

/// Lets a role in.
#[derive(Clone)]
pub struct Gate {
    tokens: Tokens,
    role: Role,
}

impl Gate {
    /// A gate for `role`.
    pub fn new(tokens: Tokens, role: Role) -> Self {
        Self { tokens, role }
    }

    /// Whether `given` opens the gate. Compares digests, which takes the same time wherever they differ.
    pub fn admits(&self, given: Option<&str>) -> bool {
        let fits = |token: &Option<String>| match (token, given) {
            (None, _) => true,
            (Some(t), Some(g)) => blake3::hash(t.as_bytes()) == blake3::hash(g.as_bytes()),
            (Some(_), None) => false,
        };
        match self.role {
            Role::User => fits(&self.tokens.user),
            Role::Node => fits(&self.tokens.node),
            Role::Any => fits(&self.tokens.user) || fits(&self.tokens.node),
        }
    }
}

impl Interceptor for Gate {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let header = request.metadata().get("authorization").and_then(|v| v.to_str().ok());
        if self.admits(header.and_then(|h| h.strip_prefix("Bearer "))) {
            return Ok(request);
        }
        // Each program reads a variable of its own.
        let variable = match self.role {
            Role::User => "`TL_TOKEN`",
            Role::Node => "`TL_NODE_TOKEN`",
            Role::Any => "`TL_TOKEN`, or `TL_NODE_TOKEN` of a worker,",
        };
        Err(Status::unauthenticated(format!("the token is missing or wrong; set {variable} to the coordinator's")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_opens_its_own_gate_only() {
        let tokens = Tokens { user: Some("u".into()), node: Some("n".into()) };
        let opens = |role, given| Gate::new(tokens.clone(), role).admits(given);
        assert!(opens(Role::User, Some("u")) && opens(Role::Node, Some("n")));
        assert!(!opens(Role::User, Some("n")) && !opens(Role::Node, Some("u")) && !opens(Role::User, None));
        assert!(opens(Role::Any, Some("u")) && opens(Role::Any, Some("n")) && !opens(Role::Any, Some("x")));
        assert!(Gate::new(Tokens::default(), Role::User).admits(None));
    }

    #[test]
    fn who_is_refused_is_told_the_variable_that_it_reads() {
        let tokens = Tokens { user: Some("u".into()), node: Some("n".into()) };
        let said = |role| Gate::new(tokens.clone(), role).call(Request::new(())).unwrap_err().message().to_owned();
        assert!(said(Role::User).contains("set `TL_TOKEN` to"), "{}", said(Role::User));
        assert!(said(Role::Node).contains("set `TL_NODE_TOKEN` to"), "{}", said(Role::Node));
    }
}
