//! The text of a cell as IPython cleans it before anything else: without the prompts of a pasted
//! session, and without indentation that all lines share.

use std::borrow::Cow;

/// Lines stay where they are, so that their numbers hold.
pub fn cleaned(source: &str) -> Cow<'_, str> {
    let Some(first) = source.lines().find(|line| !line.trim().is_empty()) else {
        return Cow::Borrowed(source);
    };
    let prompt: fn(&str) -> Option<&str> = if first.trim_start().starts_with(">>>") {
        |line| after_prompt(line, &[">>>", "..."])
    } else if first.starts_with("In [") {
        after_numbered_prompt
    } else if first.starts_with([' ', '\t']) {
        |_| None
    } else {
        return Cow::Borrowed(source);
    };
    let stripped: String = source
        .split_inclusive('\n')
        .map(|line| prompt(line).unwrap_or(line))
        .collect();
    Cow::Owned(dedented(&stripped))
}

fn after_prompt<'l>(line: &'l str, prompts: &[&str]) -> Option<&'l str> {
    let line = line.trim_start_matches([' ', '\t']);
    let rest = prompts
        .iter()
        .find_map(|prompt| line.strip_prefix(prompt))?;
    Some(rest.strip_prefix([' ', '\t']).unwrap_or(rest))
}

/// `In [1]: ` and, below it, `   ...: `.
fn after_numbered_prompt(line: &str) -> Option<&str> {
    if let Some(rest) = line.strip_prefix("In [") {
        let rest = rest.trim_start_matches(|letter: char| letter.is_ascii_digit());
        return rest.strip_prefix("]: ");
    }
    let dots = line.trim_start().strip_prefix("...")?;
    let rest = dots.trim_start_matches('.').strip_prefix(':')?;
    Some(rest.strip_prefix(' ').unwrap_or(rest))
}

fn dedented(text: &str) -> String {
    let margin_of = |line: &'_ str| line.len() - line.trim_start_matches([' ', '\t']).len();
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let mut margin = lines.next().map_or("", |first| &first[..margin_of(first)]);
    for line in lines {
        let common = margin.bytes().zip(line.bytes());
        let common = common.take_while(|(one, other)| one == other).count();
        margin = &margin[..common];
    }
    text.split_inclusive('\n')
        .map(|line| line.strip_prefix(margin).unwrap_or(line))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::cleaned;

    #[test]
    fn a_pasted_session_is_its_code() {
        for (source, expected) in [
            ("x = 1\n  y", "x = 1\n  y"),
            ("\n  x = 1\n    y\n\n  z", "\nx = 1\n  y\n\nz"),
            (">>> if x:\n...     y\n...\n>>> z", "if x:\n    y\n\nz"),
            ("In [12]: x = 1\n    ...: y", "x = 1\ny"),
            ("\t%%time\n\tx", "%%time\nx"),
        ] {
            assert_eq!(cleaned(source), expected);
        }
    }
}
