//! `/v1/openapi.json`, from the file beside this one.

use axum::http::header;
use axum::response::{IntoResponse, Response};

const DOCUMENT: &str = include_str!("openapi.json");

/// The OpenAPI 3.1 description of this interface.
pub async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_names_every_route() {
        let document: serde_json::Value = serde_json::from_str(DOCUMENT).expect("JSON");
        let paths = document["paths"].as_object().expect("paths");
        let source = include_str!("mod.rs");
        let routes = source
            .split(".route(")
            .skip(1)
            .filter_map(|r| r.trim_start().strip_prefix('"')?.split('"').next());
        let mut count = 0;
        for route in routes {
            assert!(paths.contains_key(route), "{route} is not described");
            count += 1;
        }
        assert_eq!(count, paths.len(), "a described path is not routed");
    }
}
