//! `/api`: what the dashboard shows, as JSON.

use std::sync::Arc;

use axum::{
    Json,
    extract::{FromRequestParts, Path, Query, State},
    http::{StatusCode, Uri, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tl_proto::ids::JobId;

use super::Shared;
use crate::rpc::{self, Detail};

/// Largest report that is shown, in bytes.
const MAX_REPORT: u64 = 32 << 20;
/// What pictures are.
const SVG: &str = ".svg";

/// An answer that is no page: a status and a sentence.
pub(super) struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

type Answer = Result<Json<Value>, Refused>;

fn unavailable(e: impl std::fmt::Display) -> Refused {
    Refused(StatusCode::SERVICE_UNAVAILABLE, e.to_string())
}

fn known(shared: &Shared, id: &str) -> Result<JobId, Refused> {
    let found = id.parse::<JobId>().ok().filter(|id| shared.driver.read(|s| s.jobs.contains_key(id)));
    found.ok_or_else(|| Refused(StatusCode::NOT_FOUND, format!("there is no job `{id}`")))
}

/// Where a listing goes on.
#[derive(Deserialize)]
pub(super) struct Page {
    #[serde(default)]
    cursor: u64,
    limit: Option<u32>,
}

impl<S: Sync> FromRequestParts<S> for Page {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        let read = Query::try_from_uri(&parts.uri);
        let bad = |_| Refused(StatusCode::BAD_REQUEST, "`cursor` and `limit` are whole numbers".into());
        read.map(|Query(page)| page).map_err(bad)
    }
}

/// What the parts of a path name.
pub(super) struct Named<T>(T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Named<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let read = Path::<T>::from_request_parts(parts, state).await;
        let bad = |_| Refused(StatusCode::BAD_REQUEST, "what a path names is UTF-8".into());
        read.map(|Path(named)| Self(named)).map_err(bad)
    }
}

/// A path under which there is nothing.
pub(super) async fn unknown(uri: Uri) -> Refused {
    Refused(StatusCode::NOT_FOUND, format!("there is nothing at `{}`", uri.path()))
}

/// A request that would change something.
pub(super) async fn not_allowed() -> Refused {
    Refused(StatusCode::METHOD_NOT_ALLOWED, "this can only be read, with GET".into())
}

impl Page {
    fn limit(&self) -> u32 {
        self.limit.unwrap_or(1_000).clamp(1, 10_000)
    }
}

pub(super) async fn nodes(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let nodes: Vec<_> = shared.driver.read(|s| s.nodes.keys().filter_map(|id| rpc::node_view(s, id)).collect());
    Json(json!({ "nodes": nodes }))
}

pub(super) async fn jobs(State(shared): State<Arc<Shared>>, page: Page) -> Json<Value> {
    let now = shared.driver.now_ms();
    let jobs: Vec<_> = shared.driver.read(|s| {
        let newest = s.jobs.iter().rev().filter(|(_, j)| !j.plan_only).take(page.limit() as usize);
        newest.filter_map(|(id, _)| rpc::job_view(s, &shared.records, id, now, Detail::Line)).collect()
    });
    Json(json!({ "jobs": jobs }))
}

pub(super) async fn job(State(shared): State<Arc<Shared>>, Named(id): Named<String>) -> Answer {
    let id = known(&shared, &id)?;
    let now = shared.driver.now_ms();
    let job = shared.driver.read(|s| rpc::job_view(s, &shared.records, &id, now, Detail::Whole));
    Ok(Json(json!(job)))
}

/// A row with its cursor.
#[derive(Serialize)]
struct Row {
    cursor: u64,
    #[serde(flatten)]
    row: tl_proto::v1::MetricRow,
}

pub(super) async fn series(State(shared): State<Arc<Shared>>, Named(id): Named<String>, page: Page) -> Answer {
    let id = known(&shared, &id)?;
    let rows = shared.records.rows(id, page.cursor, page.limit()).await.map_err(unavailable)?;
    let cursor = rows.last().map_or(page.cursor, |(at, _)| *at);
    let rows: Vec<_> = rows.into_iter().map(|(cursor, row)| Row { cursor, row }).collect();
    Ok(Json(json!({ "cursor": cursor, "rows": rows })))
}

pub(super) async fn logs(State(shared): State<Arc<Shared>>, Named(id): Named<String>, page: Page) -> Answer {
    let id = known(&shared, &id)?;
    let (cursor, lines) = shared.records.lines(id, page.cursor, page.limit()).await.map_err(unavailable)?;
    Ok(Json(json!({ "cursor": cursor, "lines": lines })))
}

/// The reports of a job's steps, by step.
pub(super) async fn report(State(shared): State<Arc<Shared>>, Named(id): Named<String>) -> Answer {
    let id = known(&shared, &id)?;
    let found: Vec<_> = shared.driver.read(|s| {
        let reports = s.jobs.get(&id).into_iter().flat_map(|j| &j.artifacts).filter(|a| a.name == "report.json");
        reports.filter(|a| a.blob.size <= MAX_REPORT).map(|a| (a.step.clone(), a.blob.digest.clone())).collect()
    });
    let blobs = shared.blobs.clone();
    let read = tokio::task::spawn_blocking(move || {
        let parsed = found.into_iter().map(|(step, digest)| {
            let bytes = blobs.read(&digest, 0, MAX_REPORT as usize)?;
            Ok((step, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
        });
        parsed.collect::<Result<serde_json::Map<_, _>, crate::store::Error>>()
    });
    Ok(Json(Value::Object(read.await.map_err(unavailable)?.map_err(unavailable)?)))
}

/// A picture that a step has left.
#[derive(Serialize)]
struct Picture {
    step: String,
    file: String,
}

/// The pictures of a job's steps.
pub(super) async fn pictures(State(shared): State<Arc<Shared>>, Named(id): Named<String>) -> Answer {
    let id = known(&shared, &id)?;
    let found: Vec<Picture> = shared.driver.read(|s| {
        let all = s.jobs.get(&id).into_iter().flat_map(|j| &j.artifacts).filter(|a| a.name.ends_with(SVG));
        all.map(|a| Picture { step: a.step.clone(), file: a.name.clone() }).collect()
    });
    Ok(Json(json!({ "pictures": found })))
}

/// One of them. What is in it comes from a job: the policy of all pages lets no script of its own run.
pub(super) async fn picture(
    State(shared): State<Arc<Shared>>,
    Named((id, step, file)): Named<(String, String, String)>,
) -> Result<Response, Refused> {
    let id = known(&shared, &id)?;
    let found = shared.driver.read(|s| {
        let mut all = s.jobs.get(&id).into_iter().flat_map(|j| &j.artifacts);
        let wanted = all.find(|a| a.step == step && a.name == file && a.name.ends_with(SVG));
        wanted.filter(|a| a.blob.size <= MAX_REPORT).map(|a| a.blob.digest.clone())
    });
    let digest = found.ok_or_else(|| Refused(StatusCode::NOT_FOUND, format!("there is no picture `{file}`")))?;
    let blobs = shared.blobs.clone();
    let read = tokio::task::spawn_blocking(move || blobs.read(&digest, 0, MAX_REPORT as usize));
    let bytes = read.await.map_err(unavailable)?.map_err(unavailable)?;
    Ok(([(header::CONTENT_TYPE, "image/svg+xml")], bytes).into_response())
}
