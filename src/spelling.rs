//! The nearest valid word, for error messages.

/// `; did you mean …` for the word nearest to `word`, or the valid words if none is near.
pub fn nearest<'a>(word: &str, valid: impl IntoIterator<Item = &'a str>) -> String {
    let valid: Vec<&str> = valid.into_iter().collect();
    let lower = word.to_lowercase();
    let length = lower.chars().count();
    let best = valid
        .iter()
        // A word of quite another length is not near, and may be long enough to take for ever.
        .filter(|known| known.chars().count().abs_diff(length) <= known.len())
        .map(|known| {
            (
                strsim::damerau_levenshtein(&lower, &known.to_lowercase()),
                *known,
            )
        })
        .filter(|(distance, known)| *distance <= known.chars().count().max(3) / 3 + 1)
        .min();
    match best {
        Some((_, known)) => format!("; did you mean `{known}`?"),
        None => {
            let listed: Vec<String> = valid.iter().map(|known| format!("`{known}`")).collect();
            format!("; valid: {}", listed.join(", "))
        }
    }
}
