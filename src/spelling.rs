//! The nearest valid word, for error messages.

/// `; did you mean …` for the word nearest to `word`, or the valid words if none is near.
pub fn nearest<'a>(word: &str, valid: impl IntoIterator<Item = &'a str>) -> String {
    let valid: Vec<&str> = valid.into_iter().collect();
    near(word, valid.iter().copied()).unwrap_or_else(|| {
        let listed: Vec<String> = valid.iter().map(|known| format!("`{known}`")).collect();
        format!("; valid: {}", listed.join(", "))
    })
}

/// `; did you mean …` for the word nearest to `word`, if one is near.
pub fn near<'a>(word: &str, valid: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let lower = word.to_lowercase();
    let length = lower.chars().count();
    let (_, known) = valid
        .into_iter()
        // A word of quite another length is not near, and may be long enough to take for ever.
        .filter(|known| known.chars().count().abs_diff(length) <= known.len())
        .map(|known| {
            (
                strsim::damerau_levenshtein(&lower, &known.to_lowercase()),
                known,
            )
        })
        .filter(|(distance, known)| *distance <= known.chars().count().max(3) / 3 + 1)
        .min()?;
    Some(format!("; did you mean `{known}`?"))
}
