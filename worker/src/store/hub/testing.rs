//! A hub on this machine that does what a test wants: it counts requests, breaks off, lies, and asks for a token.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use sha2::{Digest, Sha256};

/// The commit of its only branch.
pub const COMMIT: &str = "00112233445566778899aabbccddeeff00112233";

/// What goes wrong.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The next download ends after so many bytes.
    pub cut: Option<usize>,
    /// Sizes are announced larger by this.
    pub lie: i64,
    /// A byte of what is sent is another one.
    pub damage: bool,
    /// Only who says this gets anything.
    pub token: Option<String>,
    /// Connections are closed at once.
    pub away: bool,
    /// The next requests, so many, are answered with "come again".
    pub busy: u32,
    /// What is not there is not there without a reason.
    pub mute: bool,
    /// It speaks of another commit than its own.
    pub commit: Option<String>,
    /// Parts of files are not to be had.
    pub whole_only: bool,
}

#[derive(Default)]
struct Inner {
    files: BTreeMap<String, Vec<u8>>,
    faults: Faults,
    asked: Vec<String>,
}

/// The hub.
pub struct FakeHub {
    /// Its address.
    pub endpoint: String,
    inner: Arc<Mutex<Inner>>,
}

impl FakeHub {
    /// A hub of these files, named `owner/repo/file`.
    pub fn start(files: &[(&str, Vec<u8>)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
        let inner = Arc::new(Mutex::new(Inner { files, ..Inner::default() }));
        let shared = inner.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || drop(answer(&stream, &shared)));
            }
        });
        Self { endpoint, inner }
    }

    /// One more file.
    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        self.inner.lock().expect("a hub").files.insert(name.to_owned(), bytes);
    }

    /// From now on this goes wrong, and nothing else.
    pub fn fail(&self, faults: Faults) {
        self.inner.lock().expect("a hub").faults = faults;
    }

    /// What was asked for since the last look: method, file and range.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.inner.lock().expect("a hub").asked)
    }
}

fn answer(stream: &TcpStream, inner: &Mutex<Inner>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut inner = inner.lock().expect("a hub");
    let range = headers.get("range").cloned().unwrap_or_default();
    inner.asked.push(format!("{method} {path} {range}").trim_end().to_owned());
    let faults = inner.faults.clone();
    if faults.away {
        return Ok(());
    }
    let mut out = stream;
    let mut refuse = |status: &str, code: &str| {
        write!(out, "HTTP/1.1 {status}\r\nx-error-code: {code}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    };
    if faults.busy > 0 {
        inner.faults.busy -= 1;
        return refuse("503 Service Unavailable\r\nretry-after: 0", "");
    }
    let commit = faults.commit.as_deref().unwrap_or(COMMIT);
    let authorized = faults.token.as_ref().is_none_or(|t| headers.get("authorization") == Some(&format!("Bearer {t}")));
    if !authorized {
        return refuse("401 Unauthorized", "GatedRepo");
    }
    // `/OWNER/REPO/resolve/REVISION/FILE`, or where large files lie.
    let elsewhere = path.strip_prefix("/elsewhere/");
    let parts: Vec<&str> = path.trim_start_matches('/').splitn(5, '/').collect();
    let name = match (elsewhere, &parts[..]) {
        (Some(name), _) => name.to_owned(),
        (None, [owner, repo, "resolve", "main" | COMMIT, file]) => format!("{owner}/{repo}/{file}"),
        (None, [_, _, "resolve", ..]) => return refuse("404 Not Found", "RevisionNotFound"),
        _ => return refuse("404 Not Found", "RepoNotFound"),
    };
    let Some(bytes) = inner.files.get(&name).cloned() else {
        return refuse("404 Not Found", if faults.mute { "" } else { "EntryNotFound" });
    };
    let size = bytes.len() as i64 + faults.lie;
    let sha256: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    // As the real one: large files are described here and lie elsewhere, small ones have git's name for a tag.
    let large = !name.ends_with(".json");
    if large && elsewhere.is_none() {
        let host = headers.get("host").cloned().unwrap_or_default();
        return write!(
            out,
            "HTTP/1.1 302 Found\r\nx-repo-commit: {commit}\r\nx-linked-etag: \"{sha256}\"\r\nx-linked-size: {size}\r\n\
             location: http://{host}/elsewhere/{name}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
    }
    let from = range.strip_prefix("bytes=").and_then(|r| r.trim_end_matches('-').parse::<usize>().ok());
    let from = from.filter(|from| !faults.whole_only && *from <= bytes.len());
    let status = match from {
        Some(from) => {
            format!("206 Partial Content\r\ncontent-range: bytes {from}-{}/{}", bytes.len() - 1, bytes.len())
        }
        None => "200 OK".into(),
    };
    let mut body = bytes[from.unwrap_or(0)..].to_vec();
    if faults.damage && !body.is_empty() {
        body[0] ^= 1;
    }
    let git = sha1::Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(&bytes).finalize();
    let tag: String = git.iter().map(|b| format!("{b:02x}")).collect();
    write!(
        out,
        "HTTP/1.1 {status}\r\nx-repo-commit: {commit}\r\netag: \"{tag}\"\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    )?;
    if method == "GET" {
        let most = inner.faults.cut.take_if(|most| *most < body.len()).unwrap_or(body.len());
        drop(inner);
        out.write_all(&body[..most])?;
    }
    Ok(())
}
