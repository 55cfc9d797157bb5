//! The page: files in the program, nothing from elsewhere.

use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

pub(super) async fn html() -> impl IntoResponse {
    (
        [(CONTENT_TYPE, "text/html; charset=utf-8")],
        include_str!("page/page.html"),
    )
}

pub(super) async fn css() -> impl IntoResponse {
    (
        [(CONTENT_TYPE, "text/css; charset=utf-8")],
        include_str!("page/page.css"),
    )
}

pub(super) async fn script() -> impl IntoResponse {
    let kind = "text/javascript; charset=utf-8";
    ([(CONTENT_TYPE, kind)], include_str!("page/page.js"))
}

pub(super) async fn icon() -> impl IntoResponse {
    ([(CONTENT_TYPE, "image/svg+xml")], include_str!("page/icon.svg"))
}

#[cfg(test)]
mod tests {
    use crate::message::topic::RESERVED_QUERIES;

    #[test]
    fn the_page_names_no_query_as_topics_need_it() {
        let script = include_str!("page/page.js");
        let (_, rest) = script.split_once("RESERVED = new Set(").unwrap();
        let (list, _) = rest.split_once(");").unwrap();
        let words: Vec<String> = serde_json::from_str(list).unwrap();
        assert_eq!(words, RESERVED_QUERIES);
    }
}
