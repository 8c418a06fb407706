//! `#|` lines at the top of a cell: YAML, the form that Quarto made common.

use serde_json::{Map, Value};

use super::MetadataError;
use super::read::{SHORT_KEYS, is_near};
use crate::spelling::nearest;

/// Our keys among the `#|` lines. Keys of other tools are left to them, but a near miss of one of
/// ours is an error: it was surely meant for us.
pub fn options(source: &str, comment: &str, errors: &mut Vec<MetadataError>) -> Map<String, Value> {
    let mut found = Map::new();
    for block in blocks(source, comment) {
        let key = block
            .split(':')
            .next()
            .unwrap_or_default()
            .trim()
            .trim_matches(['"', '\''])
            .to_owned();
        let ours = SHORT_KEYS.contains(&key.as_str());
        if !ours && is_near(&key) {
            errors.push(MetadataError {
                path: format!("#| {key}"),
                problem: format!("unknown key `{key}`{}", nearest(&key, SHORT_KEYS)),
            });
            continue;
        }
        if !ours {
            if let Some(known) = without_colon(&block) {
                errors.push(MetadataError {
                    path: format!("#| {known}"),
                    problem: format!("must be written `{comment}| {known}: value`"),
                });
            }
            continue;
        }
        let wrong = |problem: String| MetadataError {
            path: format!("#| {key}"),
            problem,
        };
        // YAML 1.2: `y` and `on` are names, not booleans.
        let options = serde_saphyr::options! { strict_booleans: true };
        match serde_saphyr::from_str_with_options::<Value>(&block, options) {
            Ok(Value::Object(mut pair)) if pair.contains_key(&key) => {
                if found.contains_key(&key) {
                    errors.push(wrong("given twice".to_owned()));
                }
                found.insert(key.clone(), pair.remove(&key).unwrap_or_default());
            }
            Ok(_) => errors.push(wrong(format!("must be written `{comment}| {key}: value`"))),
            Err(error) => {
                let reason = error.to_string();
                let reason = reason.lines().next().unwrap_or_default();
                errors.push(wrong(format!("is not valid YAML: {reason}")));
            }
        }
    }
    for key in found.keys().filter(|key| found[key.as_str()].is_null()) {
        errors.push(MetadataError {
            path: format!("#| {key}"),
            problem: "has no value".to_owned(),
        });
    }
    found
}

/// The key of ours that a line without a colon sets all the same: `target = lab`, `target lab`.
/// Anything longer is prose.
fn without_colon(block: &str) -> Option<&'static str> {
    let end = block.find(|letter: char| !letter.is_alphanumeric())?;
    let (word, rest) = block.split_at(end);
    let rest = rest.trim();
    let meant = rest.starts_with('=') || rest.split_whitespace().count() == 1;
    SHORT_KEYS.into_iter().find(|known| *known == word && meant)
}

/// The option lines, one block for each top-level key: a line that is indented belongs to the one before.
///
/// They stand before any code. Blank lines and other comments may stand among them, and a line with
/// a cell magic before them, since that must be the first.
fn blocks(source: &str, comment: &str) -> Vec<String> {
    let prefix = format!("{comment}|");
    let mut blocks: Vec<String> = Vec::new();
    let mut first = true;
    for line in source.lines().map(str::trim_start) {
        let Some(option) = line.strip_prefix(&prefix) else {
            if line.is_empty() || line.starts_with(comment) || (first && line.starts_with("%%")) {
                first &= line.is_empty();
                continue;
            }
            break;
        };
        first = false;
        let option = option.strip_prefix(' ').unwrap_or(option);
        let continues = option.starts_with([' ', '\t', '-', ']', '}']) || option.trim().is_empty();
        match blocks.last_mut() {
            Some(block) if continues => {
                block.push('\n');
                block.push_str(option);
            }
            _ => blocks.push(option.to_owned()),
        }
    }
    blocks
}
