//! Calls to the wrong port, under a wrong name, with wrong numbers, and at a time when the coordinator is away.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::Command,
};

use serde_json::Value;
use tl_tests::{Sandbox, alone, eventually};

use crate::PROGRAM;

/// What the dashboard answers a request for `path` at `host`: the status and the body.
fn ask(sandbox: &Sandbox, host: &str, path: &str) -> (u16, String) {
    send(sandbox, "GET", host, path)
}

/// The same for any method.
fn send(sandbox: &Sandbox, method: &str, host: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(&sandbox.http).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test(flavor = "current_thread")]
async fn a_wrong_port_a_strange_host_and_a_bad_number_get_an_answer_that_helps() {
    let _alone = alone().await;
    let sandbox = Sandbox::bare(PROGRAM, None).await;
    let output = Command::new(PROGRAM).args(["ls", "--coordinator", &sandbox.http]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("is it the port of the dashboard?"), "{said}");

    assert_eq!(ask(&sandbox, "localhost:8080", "/api/jobs").0, 200, "as through a tunnel");
    assert_eq!(ask(&sandbox, &sandbox.http, "/api/jobs").0, 200);
    let (status, said) = ask(&sandbox, "evil.example", "/api/jobs");
    assert!(status == 403 && said.contains("TL_USER_TOKEN"), "{status}: {said}");
    assert_eq!(ask(&sandbox, "evil.example", "/healthz"), (200, "ok\n".to_owned()), "probes name what they like");
    for (method, path, code, says) in [
        ("GET", "/api/jobs?limit=many", 400, "`limit`"),
        ("GET", "/api/jobs/%ff", 400, "UTF-8"),
        ("GET", "/api/none", 404, "/api/none"),
        ("POST", "/api/jobs", 405, "GET"),
    ] {
        let (status, said) = send(&sandbox, method, "localhost", path);
        let said: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{path}: {e}: {said}"));
        assert!(status == code && said["error"].as_str().is_some_and(|e| e.contains(says)), "{path}: {status}: {said}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn with_a_token_any_name_of_the_dashboard_will_do() {
    let _alone = alone().await;
    let sandbox = Sandbox::bare(PROGRAM, Some(("a-token-for-users-1", "a-token-for-nodes-1"))).await;
    assert_eq!(ask(&sandbox, "tl.example", "/api/jobs").0, 401, "it is the token that is missing");
}

#[tokio::test(flavor = "current_thread")]
async fn a_download_waits_for_a_coordinator_that_is_on_its_way_back() {
    let _alone = alone().await;
    let mut sandbox = Sandbox::bare(PROGRAM, None).await;
    let (file, copy) = (sandbox.dir().join("one.bin"), sandbox.dir().join("copy.tar"));
    std::fs::write(&file, [7; 4_096]).unwrap();
    let client = sandbox.client().await;
    let blob = client.push_data(&file, "one", |_| ()).await.unwrap().archive.unwrap();
    sandbox.kill_coordinator();
    let back = async {
        eventually("a call that fails", async || client.nodes().await.is_err().then_some(())).await;
        sandbox.start_coordinator();
    };
    let (downloaded, ()) = tokio::join!(client.download(&blob, &copy), back);
    downloaded.unwrap();
    assert_eq!(std::fs::metadata(&copy).unwrap().len(), blob.size);
}
