//! Where the coordinator is: command line, then environment, then `tl/config.toml` in the user's configuration folder.

use std::path::PathBuf;

use serde::Deserialize;

use super::args::Global;
use crate::Error;

/// What a command needs to find the coordinator.
pub(super) struct Settings {
    pub coordinator: String,
    pub token: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    coordinator: Option<String>,
    token: Option<String>,
}

impl Settings {
    pub fn read(global: &Global) -> Result<Self, Error> {
        let file = match folder("XDG_CONFIG_HOME", ".config").map(|f| f.join("tl/config.toml")) {
            Some(path) if path.exists() => {
                let text = std::fs::read_to_string(&path).map_err(Error::file(&path))?;
                toml::from_str(&text).map_err(|e| {
                    let hint = "it may say `coordinator = \"host:port\"` and `token = \"…\"`";
                    Error::input(format!("`{}`: {}", path.display(), e.message()), hint)
                })?
            }
            _ => File::default(),
        };
        let coordinator = global.coordinator.clone().or(file.coordinator);
        Ok(Self {
            coordinator: coordinator.unwrap_or_else(|| "127.0.0.1:7070".into()),
            token: global.token.clone().or(file.token),
        })
    }
}

/// A folder of the user, by the XDG base directory specification.
pub(super) fn folder(variable: &str, below_home: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from).filter(|p| p.is_absolute());
    named.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(below_home)))
}
