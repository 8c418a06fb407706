//! The kernel's own magics, `%cellferry …`: answered at once, whatever runs, but for `release`, which takes its time.

use serde_json::{Value, json};

use crate::name::Name;
use crate::session::{Problem, Session};
use crate::spelling::nearest;

/// The first word of them all.
const MAGIC: &str = "%cellferry";
const WORDS: [&str; 4] = ["status", "where", "graph", "release"];

/// What a cell asks of the kernel itself.
#[derive(Debug, PartialEq, Eq)]
pub enum Magic {
    /// What runs and waits, and where metadata comes from.
    Status,
    /// Who holds a name.
    Where(Name),
    /// A picture of the cells so far.
    Graph,
    /// Ends the workers of a target, or of all that are not on this machine.
    Release(Option<String>),
}

impl Magic {
    /// The magic that a cell's source is; `None` if it is another cell.
    pub fn parse(source: &str) -> Option<Result<Self, Problem>> {
        let mut words = source.trim().split(' ').filter(|word| !word.is_empty());
        if words.next() != Some(MAGIC) || source.trim().contains('\n') {
            return None;
        }
        let wrong = |what: String| Err(Problem::new("UsageError", what));
        let usage = format!(
            "`{MAGIC} status`, `{MAGIC} where NAME`, `{MAGIC} graph` or `{MAGIC} release [TARGET]`"
        );
        Some(match (words.next(), words.next(), words.next()) {
            (Some("status"), None, _) => Ok(Self::Status),
            (Some("graph"), None, _) => Ok(Self::Graph),
            (Some("release"), target, None) => Ok(Self::Release(target.map(str::to_owned))),
            (Some("release"), ..) => wrong(format!(
                "say one target, or none for all: `{MAGIC} release TARGET`"
            )),
            (Some("where"), Some(name), None) => Ok(Self::Where(Name::from(name))),
            (Some("where"), ..) => wrong(format!("say which name: `{MAGIC} where NAME`")),
            (None, ..) => wrong(format!("say what: {usage}")),
            (Some(word), ..) if WORDS.contains(&word) => {
                wrong(format!("`{MAGIC} {word}` takes nothing more"))
            }
            (Some(word), ..) => wrong(format!("unknown `{MAGIC} {word}`{}", nearest(word, WORDS))),
        })
    }

    /// The output to show at once: type and content of the message; none if the answer takes its time.
    pub fn answer(&self, session: &Session, source: &str) -> Option<(&'static str, Value)> {
        Some(match self {
            Self::Status => {
                let mut lines = vec![format!("metadata comes from {source}")];
                lines.extend(session.overview());
                if lines.len() == 1 {
                    lines.push("no cell runs or waits".to_owned());
                }
                printed(&lines.join("\n"))
            }
            Self::Where(name) => printed(&session.where_is(name)),
            Self::Graph => {
                let picture = session.picture();
                let data = json!({
                    "image/svg+xml": picture.svg(),
                    "text/plain": format!("<graph of {} cells>", picture.nodes.len()),
                });
                let content = json!({"data": data, "metadata": {}, "transient": {}});
                ("display_data", content)
            }
            Self::Release(_) => return None,
        })
    }
}

/// Text that a cell shows: type and content of the message.
pub fn printed(text: &str) -> (&'static str, Value) {
    (
        "stream",
        json!({"name": "stdout", "text": format!("{text}\n")}),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_a_magic_of_ours_only_as_a_whole() {
        assert_eq!(
            Magic::parse("\n%cellferry  status \n"),
            Some(Ok(Magic::Status))
        );
        assert_eq!(
            Magic::parse("%cellferry where x"),
            Some(Ok(Magic::Where(Name::from("x"))))
        );
        assert_eq!(
            Magic::parse("%cellferry release"),
            Some(Ok(Magic::Release(None)))
        );
        assert_eq!(
            Magic::parse("%cellferry release ssh:lab"),
            Some(Ok(Magic::Release(Some("ssh:lab".to_owned()))))
        );
        for other in ["%cellferry status\n1", "x = 1", "", "%cellferrystatus"] {
            assert_eq!(Magic::parse(other), None, "{other}");
        }
        let told = |source: &str| Magic::parse(source).unwrap().unwrap_err().evalue;
        assert!(told("%cellferry grahp").contains("did you mean `graph`"));
        assert!(told("%cellferry where").contains("where NAME"));
        assert!(told("%cellferry graph x").contains("nothing more"));
        assert!(told("%cellferry release a b").contains("one target"));
        assert!(told("%cellferry").contains("status"));
    }
}
