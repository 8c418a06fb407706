//! Whose attribute a client wants completed or explained; by the text alone, which is rarely whole.

use crate::name::Name;

/// The root name of the dotted expression that ends at the cursor, counted in characters:
/// `model` for `plot(model.coe|`.
pub fn completion_root(code: &str, cursor: usize) -> Option<Name> {
    let before: Vec<char> = code.chars().take(cursor).collect();
    let part = |letter: &char| letter.is_alphanumeric() || *letter == '_' || *letter == '.';
    let start = before
        .iter()
        .rposition(|letter| !part(letter))
        .map_or(0, |index| index + 1);
    let chain: String = before[start..].iter().collect();
    let after: String = code
        .chars()
        .skip(cursor)
        .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
        .collect();
    let chain = if chain.contains('.') {
        chain
    } else {
        chain + &after
    };
    let root = chain.split('.').next()?;
    let valid = root
        .chars()
        .next()
        .is_some_and(|first| first.is_alphabetic() || first == '_');
    valid.then(|| Name::from(root))
}
