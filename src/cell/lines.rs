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
            .to_owned();
        let ours = SHORT_KEYS.contains(&key.as_str());
        if !ours && is_near(&key) {
            errors.push(MetadataError {
                path: format!("#| {key}"),
                problem: format!("unknown key{}", nearest(&key, SHORT_KEYS)),
            });
            continue;
        }
        if !ours {
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
    found
}

/// The option lines, one block for each top-level key: a line that is indented belongs to the one before.
fn blocks(source: &str, comment: &str) -> Vec<String> {
    let prefix = format!("{comment}|");
    let mut blocks: Vec<String> = Vec::new();
    for line in source.lines().skip_while(|line| line.trim().is_empty()) {
        let Some(option) = line.trim_start().strip_prefix(&prefix) else {
            break;
        };
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
