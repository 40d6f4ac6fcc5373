//! The pages and what they load. Everything comes from this binary: the browser needs no other network.

use std::sync::LazyLock;

use axum::{
    http::{HeaderName, header},
    response::{Html, IntoResponse},
};

const INDEX: &str = include_str!("assets/index.html");
const JOB: &str = include_str!("assets/job.html");
const SCRIPT: &str = include_str!("assets/app.js");
const STYLE: &str = include_str!("assets/style.css");

/// The plotting library out of the script elements that its crate offers.
static PLOTLY: LazyLock<String> = LazyLock::new(|| {
    const OPEN: &str = "<script type=\"text/javascript\">";
    let elements = plotly::Plot::offline_js_sources();
    let first = elements.split_once(OPEN).map_or("", |(_, rest)| rest);
    let first = first.rsplit_once(OPEN).map_or(first, |(first, _)| first);
    first.trim_end().trim_end_matches("</script>").to_owned()
});

fn typed(kind: &'static str, cache: &'static str) -> [(HeaderName, &'static str); 2] {
    [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, cache)]
}

pub(super) async fn index() -> Html<&'static str> {
    Html(INDEX)
}

pub(super) async fn job() -> Html<&'static str> {
    Html(JOB)
}

pub(super) async fn script() -> impl IntoResponse {
    (typed("text/javascript", "no-cache"), SCRIPT)
}

pub(super) async fn style() -> impl IntoResponse {
    (typed("text/css", "no-cache"), STYLE)
}

pub(super) async fn plotly() -> impl IntoResponse {
    (typed("text/javascript", "max-age=86400"), PLOTLY.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plotting_library_is_one_script_without_markup() {
        assert!(PLOTLY.len() > 1_000_000);
        assert!(PLOTLY.contains("plotly.js v") && !PLOTLY.contains("<script type="));
        assert!(!PLOTLY.trim_end().ends_with("</script>"));
    }
}
