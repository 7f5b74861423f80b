//! The name that was meant by one that does not exist.

/// The closest of `names`, if it is close enough to be meant.
pub(crate) fn nearest<'a>(
    asked: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    names
        .into_iter()
        .map(|name| {
            let whole = strsim::jaro_winkler(asked, name);
            // A bare `addr` or `token` is meant for the key that ends with it.
            let tail = name
                .rsplit_once('.')
                .map_or(0.0, |(_, tail)| strsim::jaro_winkler(asked, tail));
            (whole.max(tail), name)
        })
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}
