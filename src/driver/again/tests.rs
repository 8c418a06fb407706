use super::*;
use proptest::prelude::*;
use serde_json::Value;

/// Something that a program shows.
#[derive(Clone, Debug, PartialEq)]
enum Output {
    Text(&'static str, String),
    Display(u8),
    Clear,
}

fn message(output: &Output) -> Message {
    let (kind, content) = match output {
        Output::Text(name, text) => ("stream", json!({"name": name, "text": text})),
        Output::Display(what) => ("display_data", json!({"data": {"text/plain": what}})),
        Output::Clear => ("clear_output", json!({"wait": false})),
    };
    Author::new().message(kind, None, &content)
}

fn note() -> Message {
    Author::new().message("note", None, &json!({}))
}

/// What a client shows: the text of each stream, in any order, between all else.
#[derive(Debug, Default, PartialEq)]
struct Client {
    sections: Vec<BTreeMap<String, String>>,
    others: Vec<Value>,
    notes: usize,
    clears: bool,
    /// Clients refuse a message that has come before.
    seen: std::collections::BTreeSet<Bytes>,
}

impl Client {
    fn of(messages: &[Message]) -> Self {
        let mut client = Self::default();
        for message in messages {
            client.gets(message);
        }
        client
    }

    fn clear(&mut self) {
        let seen = std::mem::take(&mut self.seen);
        *self = Self {
            seen,
            ..Self::default()
        };
    }

    fn gets(&mut self, message: &Message) {
        assert!(
            self.seen.insert(message.header.clone()),
            "twice: {message:?}"
        );
        let content: Value = message.parse_content().unwrap();
        if topic(message) == b"clear_output" {
            self.clears = content["wait"] == true;
            if !self.clears {
                self.clear();
            }
            return;
        }
        if std::mem::take(&mut self.clears) {
            self.clear();
        }
        match topic(message) {
            b"note" => self.notes += 1,
            b"stream" => {
                let text = content["text"].as_str().unwrap();
                self.sections
                    .resize_with(self.others.len() + 1, BTreeMap::new);
                let section = self.sections.last_mut().unwrap();
                let name = content["name"].as_str().unwrap().to_owned();
                section.entry(name).or_default().push_str(text);
            }
            _ => {
                self.others.push(content);
                self.sections.resize_with(self.others.len(), BTreeMap::new);
            }
        }
    }
}

fn output() -> impl Strategy<Value = Output> {
    let text = prop_oneof![Just("a"), Just("ab"), Just("é\n"), Just("")];
    let name = prop_oneof![Just("stdout"), Just("stderr")];
    prop_oneof![
        6 => (name, text).prop_map(|(name, text)| Output::Text(name, text.to_owned())),
        2 => (0..3_u8).prop_map(Output::Display),
        1 => Just(Output::Clear),
    ]
}

/// The same text in other pieces.
fn in_pieces(outputs: &[Output], cuts: u64) -> Vec<Output> {
    let mut cuts = cuts;
    let mut pieces = Vec::new();
    for output in outputs {
        cuts = cuts.rotate_right(1);
        match (output, pieces.last_mut()) {
            (Output::Text(name, text), Some(Output::Text(last, before)))
                if name == last && cuts & 1 == 1 =>
            {
                before.push_str(text);
            }
            _ => pieces.push(output.clone()),
        }
    }
    pieces
}

proptest! {
    /// Runs that die after some of their outputs, and a last one that does not: the client shows what it would
    /// show of the last one alone.
    #[test]
    fn the_cell_ends_with_the_output_of_one_run(
        outputs in prop::collection::vec(output(), 0..12),
        other in prop::collection::vec(output(), 0..12),
        runs in prop::collection::vec((0..13_usize, any::<u64>(), prop::bool::weighted(0.2)), 1..4),
    ) {
        let author = Author::new();
        let request = Message::default();
        let mut again = Again::default();
        again.keep("cell");
        let mut client = Client::default();
        let mut last = Vec::new();
        for (run, (length, cuts, differs)) in runs.iter().enumerate() {
            if run > 0 {
                for message in again.again("cell", &request, &author) {
                    client.gets(&message);
                }
                let note = note();
                again.keep_note("cell", &note);
                client.gets(&note);
            }
            let all = if *differs { &other } else { &outputs };
            let is_last = run + 1 == runs.len();
            let length = if is_last { all.len() } else { (*length).min(all.len()) };
            last = in_pieces(&all[..length], *cuts);
            for output in &last {
                for message in again.show("cell", message(output), &author) {
                    client.gets(&message);
                }
            }
        }
        for message in again.done("cell", &request, &author) {
            client.gets(&message);
        }
        let alone: Vec<Message> = last.iter().map(message).collect();
        let alone = Client::of(&alone);
        let empty = |sections: &[BTreeMap<String, String>]| -> Vec<BTreeMap<String, String>> {
            let mut sections: Vec<_> = sections.iter().cloned().map(|mut section| {
                section.retain(|_, text| !text.is_empty());
                section
            }).collect();
            while sections.last().is_some_and(BTreeMap::is_empty) {
                sections.pop();
            }
            sections
        };
        prop_assert_eq!(empty(&client.sections), empty(&alone.sections));
        prop_assert_eq!(client.others, alone.others);
    }
}

#[test]
fn what_is_shown_already_is_not_said_again() {
    let (author, request) = (Author::new(), Message::default());
    let mut again = Again::default();
    again.keep("cell");
    let text = |text: &str| message(&Output::Text("stdout", text.to_owned()));
    assert_eq!(again.show("cell", text("one\ntwo\n"), &author).len(), 1);
    assert!(again.again("cell", &request, &author).is_empty());
    assert!(again.show("cell", text("one\n"), &author).is_empty());
    let shown = again.show("cell", text("two\nthree\n"), &author);
    let shown: Vec<String> = shown
        .iter()
        .filter_map(stream)
        .map(|stream| stream.text)
        .collect();
    assert_eq!(shown, ["three\n"]);
    assert_eq!(again.show("cell", text("four\n"), &author).len(), 1);
    assert!(again.done("cell", &request, &author).is_empty());
}

#[test]
fn too_much_output_is_cleared_and_shown_anew() {
    let (author, request) = (Author::new(), Message::default());
    let mut again = Again::default();
    again.keep("cell");
    let line = message(&Output::Text("stdout", "x".repeat(1000)));
    for _ in 0..2000 {
        assert_eq!(again.show("cell", line.clone(), &author).len(), 1);
    }
    let clear = again.again("cell", &request, &author);
    assert_eq!(topic(&clear[0]), b"clear_output");
    assert_eq!(again.show("cell", line, &author).len(), 1);
}
