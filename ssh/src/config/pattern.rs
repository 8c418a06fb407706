//! Patterns of ssh_config(5): `*`, `?`, lists with commas, negation.

/// Whether the whole text matches: `*` stands for any characters, `?` for one.
fn matches(text: &str, pattern: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let pattern: Vec<char> = pattern.chars().collect();
    let (mut at, mut in_pattern) = (0, 0);
    // Where to go on if it does not fit: after the last star, which then takes one character more.
    let mut retry: Option<(usize, usize)> = None;
    while at < text.len() {
        match pattern.get(in_pattern) {
            Some('*') => {
                in_pattern += 1;
                retry = Some((at, in_pattern));
            }
            Some(&letter) if letter == '?' || letter == text[at] => {
                at += 1;
                in_pattern += 1;
            }
            _ => match retry {
                Some((taken, after_star)) => {
                    retry = Some((taken + 1, after_star));
                    at = taken + 1;
                    in_pattern = after_star;
                }
                None => return false,
            },
        }
    }
    pattern[in_pattern..].iter().all(|letter| *letter == '*')
}

/// Looks through patterns with commas between them. `Some(false)` if a negated one matches, whatever the others say;
/// `None` if none matches.
pub(crate) fn matches_list(text: &str, list: &str) -> Option<bool> {
    matches_any(text, list.split(','))
}

/// The same for patterns that are apart already.
pub(super) fn matches_any<'a>(
    text: &str,
    patterns: impl IntoIterator<Item = &'a str>,
) -> Option<bool> {
    let mut found = None;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(negated) if matches(text, negated) => return Some(false),
            Some(_) => {}
            None if matches(text, pattern) => found = Some(true),
            None => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks() {
        for (text, pattern, expected) in [
            ("lab", "lab", true),
            ("lab", "*", true),
            ("", "*", true),
            ("", "?", false),
            ("lab1", "lab?", true),
            ("lab", "lab?", false),
            ("a.b.example.org", "*.example.org", true),
            ("example.org", "*.example.org", false),
            ("abcbcd", "a*bcd", true),
            ("abcbc", "a*bcd", false),
            ("192.168.1.7", "192.168.?.*", true),
        ] {
            assert_eq!(matches(text, pattern), expected, "{text} {pattern}");
        }
    }

    #[test]
    fn negation_wins() {
        assert_eq!(matches_list("a.x", "*.x,!a.x"), Some(false));
        assert_eq!(matches_list("b.x", "!a.x,*.x"), Some(true));
        assert_eq!(matches_list("b.y", "!a.x"), None);
    }
}
