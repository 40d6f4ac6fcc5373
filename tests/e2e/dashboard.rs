//! The dashboard in a real browser: what it has plotted is what the API says, and a point arrives without a reload.

use std::{
    collections::BTreeMap,
    process::{Child, Command, Stdio},
};

use fantoccini::{Client, ClientBuilder};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tl_tests::{Sandbox, alone, eventually, jobs};

use crate::{PROGRAM, pipelines};

/// A browser without a window, and what drives it.
struct Browser {
    driver: Child,
    client: Client,
    _profile: tempfile::TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// Starts Debian's chromium, where it is there.
async fn browser() -> Option<Browser> {
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).unwrap().port();
    let started =
        Command::new("chromedriver").arg(format!("--port={port}")).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let Ok(driver) = started else {
        eprintln!("skipped: there is no chromedriver; install `chromium` and `chromium-driver`");
        return None;
    };
    let profile = tempfile::tempdir().unwrap();
    let arguments = json!([
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1200,1000",
        format!("--user-data-dir={}", profile.path().display())
    ]);
    let mut wanted = serde_json::Map::new();
    wanted.insert("goog:chromeOptions".into(), json!({ "args": arguments }));
    let url = format!("http://127.0.0.1:{port}");
    let client = eventually("a browser", async || {
        let builder = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
        let mut builder = builder;
        builder.capabilities(wanted.clone()).connect(&url).await.ok()
    })
    .await;
    Some(Browser { driver, client, _profile: profile })
}

/// Points of a chart as the browser has plotted them: trace, then x and y.
async fn plotted(client: &Client, chart: &str) -> BTreeMap<String, Vec<(u64, f64)>> {
    let script = format!(
        "const d = document.getElementById('{chart}').data || []; return d.map(t => [t.name, [...t.x], [...t.y]]);"
    );
    let found = client.execute(&script, vec![]).await.unwrap();
    let trace = |t: &Value| {
        let numbers = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect::<Vec<_>>();
        let points = numbers(&t[1]).into_iter().map(|x| x as u64).zip(numbers(&t[2])).collect();
        (t[0].as_str().unwrap().to_owned(), points)
    };
    found.as_array().unwrap().iter().map(trace).collect()
}

/// The same from the API.
async fn reported(client: &Client, job: &str, chart: &str) -> BTreeMap<String, Vec<(u64, f64)>> {
    let script = format!("return fetch('/api/jobs/{job}/series?limit=10000').then(r => r.json());");
    let found = client.execute(&script, vec![]).await.unwrap();
    let mut traces: BTreeMap<String, BTreeMap<u64, f64>> = BTreeMap::new();
    for row in found["rows"].as_array().unwrap() {
        for part in ["train", "val"] {
            if let Some(value) = row["values"][format!("{part}.{chart}")].as_f64() {
                let step = row["step"].as_u64().unwrap();
                traces.entry(format!("main {part}.{chart}")).or_default().insert(step, value);
            }
        }
    }
    traces.into_iter().map(|(name, points)| (name, points.into_iter().collect())).collect()
}

#[tokio::test(flavor = "current_thread")]
async fn the_dashboard_plots_what_the_api_says_and_points_arrive_without_a_reload() {
    let Some(browser) = browser().await else { return };
    let _alone = alone().await;
    let page = &browser.client;
    let sandbox = Sandbox::start(PROGRAM, 1).await;
    let mut spec = jobs::thorny("1");
    // Names reach the page as text, whatever is in them.
    spec.job.name = "<b id=\"injected\">bold</b>".into();
    let job = sandbox.submit(&spec).await;
    sandbox.passes(&job, 5).await;
    // Training waits until the page is there: points are to arrive on it.
    let rank = nix::unistd::Pid::from_raw(sandbox.ranks(0)[0]);
    nix::sys::signal::kill(rank, Signal::SIGSTOP).unwrap();
    page.goto(&format!("http://{}/", sandbox.http)).await.unwrap();
    eventually("the job in the list", async || {
        let rows = page.execute("return document.querySelectorAll('#jobs tbody tr').length", vec![]).await.ok()?;
        (rows == 1).then_some(())
    })
    .await;
    assert_eq!(page.execute("return document.getElementById('injected')", vec![]).await.unwrap(), Value::Null);
    page.goto(&format!("http://{}/jobs/{}", sandbox.http, job.id())).await.unwrap();
    page.execute("window.marker = 'still the same page'", vec![]).await.unwrap();
    let count = async || plotted(page, "loss").await.get("main train.loss").map_or(0, Vec::len);
    let first = eventually("a first point", async || Some(count().await).filter(|n| *n > 0)).await;
    nix::sys::signal::kill(rank, Signal::SIGCONT).unwrap();
    eventually("one more point", async || Some(count().await).filter(|n| *n > first)).await;
    sandbox.ends(&job).await;
    eventually("all points and the confusion matrix", async || {
        let done =
            page.execute("return document.querySelectorAll('#confusions .chart .hm').length > 0", vec![]).await.ok()?;
        (count().await as u64 == jobs::STEPS && done == true).then_some(())
    })
    .await;
    for chart in ["loss", "accuracy"] {
        assert_eq!(plotted(page, chart).await, reported(page, job.id(), chart).await, "{chart}");
    }
    eventually("a picture that the job has left", async || {
        let script = "return [...document.querySelectorAll('#pictures img')].map(i => i.naturalWidth)";
        let widths = page.execute(script, vec![]).await.ok()?;
        widths.as_array().is_some_and(|w| !w.is_empty() && w.iter().all(|w| w.as_u64() > Some(0))).then_some(())
    })
    .await;
    // What the job came to, as its report says.
    let script = "return document.querySelector('#figures tbody td:nth-child(2)').textContent";
    let shown = page.execute(script, vec![]).await.unwrap();
    let result: Value = serde_json::from_slice(&job.get().await.unwrap().phases[1].result_json).unwrap();
    let accuracy = 100.0 * result["metrics"]["val.accuracy"].as_f64().unwrap();
    assert_eq!(shown, format!("{accuracy:.1} %"));
    assert_eq!(page.execute("return window.marker", vec![]).await.unwrap(), "still the same page");
    let logs = page.execute("return document.getElementById('logs').textContent", vec![]).await.unwrap();
    assert!(logs.as_str().unwrap().contains("rank 0 of 1"), "{logs}");
    // How its files are had, once it has some.
    let script = "return document.getElementById('files').hidden ? '' : document.getElementById('fetch').textContent";
    assert_eq!(page.execute(script, vec![]).await.unwrap(), format!("tlctl fetch {}", job.id()));
    let loaded = "return performance.getEntriesByType('resource').map(e => new URL(e.name).host)";
    let hosts = page.execute(loaded, vec![]).await.unwrap();
    assert!(hosts.as_array().unwrap().iter().all(|h| h == sandbox.http.as_str()), "another network: {hosts}");
    page.goto(&format!("http://{}/", sandbox.http)).await.unwrap();
    let row = eventually("the job in the list again", async || {
        let cells = "return [...document.querySelectorAll('#jobs tbody td')].map(c => c.textContent)";
        let cells = page.execute(cells, vec![]).await.ok()?;
        cells.as_array().is_some_and(|cells| cells.len() == 6).then_some(cells)
    })
    .await;
    assert_eq!((&row[2], &row[3]), (&"succeeded".into(), &"".into()), "its status is said once");
    let _ = browser.client.clone().close().await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_pipeline_shows_what_waits_for_what_and_how_its_steps_compare() {
    let Some(browser) = browser().await else { return };
    let _alone = alone().await;
    let page = &browser.client;
    // Without a worker nothing runs before the page has been read.
    let mut sandbox = Sandbox::bare(PROGRAM, None).await;
    let job = sandbox.submit(&pipelines::school("val.loss < 100")).await;
    page.goto(&format!("http://{}/jobs/{}", sandbox.http, job.id())).await.unwrap();
    let text = async |script: &str| page.execute(script, vec![]).await.ok();
    eventually("a step that waits for a gate", async || {
        let waits =
            "return [...document.querySelectorAll('#phases tbody tr')].map(r => [...r.cells].map(c => c.textContent))";
        let rows = text(waits).await?;
        let student = rows.as_array()?.iter().find(|r| r[0] == "student/probe")?.clone();
        (student[1] == "waiting" && student[4] == "teacher/gate").then_some(())
    })
    .await;
    sandbox.add_worker(&[]);
    let (ended, ..) = sandbox.ends(&job).await;
    let compared: Value = serde_json::from_slice(&ended.compared_json).unwrap();
    assert!(compared["summary"].as_str().is_some_and(|s| s.contains("`alone`, the best baseline")), "{compared}");
    eventually("what it came to", async || {
        let summary = text("return document.getElementById('summary').textContent").await?;
        (summary == compared["summary"]).then_some(())
    })
    .await;
    let script =
        "return [...document.querySelectorAll('#sides tbody tr')].map(r => [...r.cells].map(c => c.textContent))";
    let rows = text(script).await.unwrap();
    let percent = |i: usize| format!("{:.1} %", 100.0 * compared["rows"][i]["value"]["mean"].as_f64().unwrap());
    let gain = format!("{:+.1}", compared["rows"][1]["gain"]["mean"].as_f64().unwrap());
    assert_eq!(rows, json!([["student", percent(0), "", "1 of 1"], ["alone", percent(1), gain, "1 of 1"]]));
    let _ = browser.client.clone().close().await;
}
