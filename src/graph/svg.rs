//! Draws a graph as SVG: no script, no fonts from elsewhere, a background of its own, so that it
//! reads the same in light and dark surroundings.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::layout::{self, BOX, LABEL, Layout, Link, Point};
use super::{Edge, Graph, Reason};

/// What is drawn: what a notebook's file shows, or what a session knows while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    /// The cells, in program order.
    pub nodes: Vec<Node>,
    /// Edges, from earlier to later ones.
    pub edges: Vec<Arrow>,
}

/// A cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// As the reader counts.
    pub number: usize,
    /// Its first line; shortened to fit.
    pub text: String,
    /// Where it runs.
    pub target: String,
    /// How far it is.
    pub state: Option<State>,
    /// How long it took, or anything else as short.
    pub time: Option<String>,
}

/// How far a cell is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It waits for its turn or for values.
    Waiting,
    /// It runs.
    Running,
    /// It has run.
    Done,
    /// It has failed.
    Failed,
    /// Its metadata is wrong, so it does not run.
    Refused,
}

/// An edge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrow {
    /// The index of the earlier node.
    pub from: usize,
    /// The index of the later node.
    pub to: usize,
    /// The names that it stands for.
    pub names: Vec<String>,
    /// Whether it only keeps an order: nothing is read.
    pub order_only: bool,
    /// How much was moved, or anything else as short.
    pub moved: Option<String>,
}

/// The edges of a graph as they are drawn.
pub fn arrows(graph: &Graph) -> Vec<Arrow> {
    let arrow = |edge: Edge<'_>| {
        let (reads, orders) = edge.names();
        let order_only = reads.is_empty();
        let shown = match (order_only, orders.is_empty()) {
            (false, _) => reads,
            (true, true) if edge.reasons.contains(&Reason::After) => vec!["after"],
            (true, _) => orders,
        };
        Arrow {
            from: edge.from,
            to: edge.to,
            names: shown.into_iter().map(str::to_owned).collect(),
            order_only,
            moved: None,
        }
    };
    graph.edges().map(arrow).collect()
}

const FONT: &str = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace";
/// Width of a column in fonts of 12 and 11 pixels.
const COLUMN: f64 = 7.25;
const SMALL_COLUMN: f64 = 6.65;
const LABEL_COLUMNS: usize = 26;
const NOTE_COLUMNS: usize = 36;
const HOME_COLOUR: &str = "#57606a";
const COLOURS: [&str; 8] = [
    "#0969da", "#9a3fb5", "#1a7f37", "#bc4c00", "#0e7490", "#b4236a", "#7a5c00", "#5b4bd6",
];

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Refused => "wrong metadata",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Self::Waiting => "#6e7781",
            Self::Running => "#0969da",
            Self::Done => "#1a7f37",
            Self::Failed | Self::Refused => "#cf222e",
        }
    }
}

impl Picture {
    /// The picture as the text of an SVG file.
    pub fn svg(&self) -> String {
        let count = self.nodes.len();
        let valid = |arrow: &&Arrow| arrow.from < arrow.to && arrow.to < count;
        let arrows: Vec<&Arrow> = self.edges.iter().filter(valid).collect();
        let rows = layout::rows(count, arrows.iter().map(|arrow| (arrow.from, arrow.to)));
        let (long, short): (Vec<&Arrow>, Vec<&Arrow>) = arrows
            .into_iter()
            .partition(|arrow| layout::is_long(rows[arrow.from], rows[arrow.to]));
        let mut lines: Vec<Line> = short.into_iter().map(Line::arrow).collect();
        lines.extend(self.notes(&long));
        let links: Vec<Link> = lines.iter().map(Line::link).collect();
        let layout = layout::place(&rows, &links);
        self.draw(&layout, &lines)
    }

    /// What stands above boxes in place of edges that would be too long.
    fn notes(&self, long: &[&Arrow]) -> Vec<Line> {
        let mut notes: BTreeMap<usize, Line> = BTreeMap::new();
        for arrow in long {
            let number = self.nodes[arrow.from].number;
            let text = match arrow.label() {
                Some(label) if !arrow.order_only => format!("{label} from {number}"),
                _ => format!("after {number}"),
            };
            let note = notes.entry(arrow.to).or_insert_with(|| Line {
                from: None,
                to: arrow.to,
                text: String::new(),
                columns: NOTE_COLUMNS,
                dashed: true,
            });
            if !note.text.is_empty() {
                note.text.push_str("; ");
            }
            note.text.push_str(&text);
            note.dashed &= arrow.order_only;
        }
        notes.into_values().collect()
    }

    fn draw(&self, layout: &Layout, lines: &[Line]) -> String {
        let mut svg = Svg(String::new());
        let (width, height) = (layout.width.max(200.0), layout.height);
        svg.add(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"{FONT}\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#ffffff\"/>\n"
        ));
        if self.nodes.is_empty() {
            svg.text(Point { x: 24.0, y: 30.0 }, "#57606a", "", "no cells");
        }
        for (line, route) in lines.iter().zip(&layout.routes) {
            svg.curve(&route.points, line.dashed);
        }
        for (line, route) in lines.iter().zip(&layout.routes) {
            if let Some(at) = route.label {
                svg.label(line, at);
            }
        }
        let mut colours: BTreeMap<&str, &str> = BTreeMap::from([("home", HOME_COLOUR)]);
        for (node, at) in self.nodes.iter().zip(&layout.boxes) {
            let others = colours.len() - 1;
            let colour = colours
                .entry(&node.target)
                .or_insert(COLOURS[others % COLOURS.len()]);
            svg.node(node, *at, colour);
        }
        svg.0.push_str("</svg>\n");
        svg.0
    }
}

impl Arrow {
    fn label(&self) -> Option<String> {
        // What is cut where there is no room are names.
        let mut parts: Vec<String> = self.moved.iter().cloned().collect();
        if !self.names.is_empty() {
            parts.push(self.names.join(", "));
        }
        (!parts.is_empty()).then(|| parts.join(" · "))
    }
}

/// An edge or a note, as it is drawn.
struct Line {
    from: Option<usize>,
    to: usize,
    text: String,
    columns: usize,
    dashed: bool,
}

impl Line {
    fn arrow(arrow: &Arrow) -> Self {
        Self {
            from: Some(arrow.from),
            to: arrow.to,
            text: arrow.label().unwrap_or_default(),
            columns: LABEL_COLUMNS,
            dashed: arrow.order_only,
        }
    }

    fn link(&self) -> Link {
        let width = columns(&shortened(&self.text, self.columns)) as f64 * SMALL_COLUMN + 8.0;
        Link {
            from: self.from,
            to: self.to,
            label: (!self.text.is_empty()).then_some(width),
        }
    }
}

/// The text of the file so far.
struct Svg(String);

impl Svg {
    fn add(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.0.write_fmt(text);
    }

    fn text(&mut self, at: Point, colour: &str, more: &str, text: &str) {
        let text = escaped(text);
        self.add(format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\"{more}>{text}</text>\n",
            at.x, at.y
        ));
    }

    /// An arrow through the points, upright in each of them.
    fn curve(&mut self, points: &[Point], dashed: bool) {
        let (Some(first), Some(last)) = (points.first(), points.last()) else {
            return;
        };
        let (colour, dash) = if dashed {
            ("#8c959f", " stroke-dasharray=\"4 4\"")
        } else {
            ("#57606a", "")
        };
        let mut path = format!("M{:.1} {:.1}", first.x, first.y);
        for pair in points.windows(2) {
            let (from, to) = (pair[0], pair[1]);
            let middle = (from.y + to.y) / 2.0;
            let _ = write!(
                path,
                "C{:.1} {middle:.1} {:.1} {middle:.1} {:.1} {:.1}",
                from.x, to.x, to.x, to.y
            );
        }
        let (x, y) = (last.x, last.y);
        self.add(format_args!(
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.3\"{dash}/>\n\
             <path d=\"M{x:.1} {y:.1}l-4 -8h8z\" fill=\"{colour}\"/>\n"
        ));
    }

    fn label(&mut self, line: &Line, at: Point) {
        let short = shortened(&line.text, line.columns);
        let width = columns(&short) as f64 * SMALL_COLUMN + 6.0;
        let (x, y) = (at.x - width / 2.0, at.y - LABEL / 2.0);
        let title = escaped(&line.text);
        self.add(format_args!(
            "<g font-size=\"11\" text-anchor=\"middle\"><title>{title}</title>\
             <rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{LABEL}\" fill=\"#ffffff\"/>\n"
        ));
        let (colour, style) = if line.dashed {
            ("#6e7781", " font-style=\"italic\"")
        } else {
            ("#24292f", "")
        };
        self.text(
            Point {
                x: at.x,
                y: at.y + 4.0,
            },
            colour,
            style,
            &short,
        );
        self.0.push_str("</g>\n");
    }

    fn node(&mut self, node: &Node, at: Point, colour: &str) {
        let (width, height) = BOX;
        let title = escaped(&node.text);
        let edge = match node.state {
            Some(state) if state != State::Waiting => state.colour(),
            _ => "#afb8c1",
        };
        self.add(format_args!(
            "<g><title>{title}</title><rect x=\"{:.1}\" y=\"{:.1}\" width=\"{width}\" height=\"{height}\" rx=\"8\" \
             fill=\"#f6f8fa\" stroke=\"{edge}\" stroke-width=\"1.3\"/>\n",
            at.x, at.y
        ));
        let number = format!("[{}]", node.number);
        let upper = at.y + 20.0;
        self.text(
            Point {
                x: at.x + 10.0,
                y: upper,
            },
            "#24292f",
            " font-weight=\"bold\"",
            &number,
        );
        let start = at.x + 16.0 + columns(&number) as f64 * COLUMN;
        let target = shortened(&node.target, 14);
        let badge = columns(&target) as f64 * SMALL_COLUMN + 14.0;
        self.add(format_args!(
            "<rect x=\"{start:.1}\" y=\"{:.1}\" width=\"{badge:.1}\" height=\"16\" rx=\"8\" fill=\"{colour}\"/>\n",
            at.y + 8.0
        ));
        let middle = Point {
            x: start + badge / 2.0,
            y: upper - 0.5,
        };
        self.text(
            middle,
            "#ffffff",
            " font-size=\"11\" text-anchor=\"middle\"",
            &target,
        );
        let words: Vec<&str> = node
            .state
            .map(State::word)
            .into_iter()
            .chain(node.time.as_deref())
            .collect();
        if !words.is_empty() {
            let room = ((at.x + width - 16.0 - start - badge) / SMALL_COLUMN).max(1.0) as usize;
            let right = Point {
                x: at.x + width - 10.0,
                y: upper - 0.5,
            };
            let colour = node.state.map_or("#57606a", State::colour);
            let words = shortened(&words.join(" · "), room);
            self.text(
                right,
                colour,
                " font-size=\"11\" text-anchor=\"end\"",
                &words,
            );
        }
        let room = ((width - 20.0) / COLUMN) as usize;
        let lower = Point {
            x: at.x + 10.0,
            y: at.y + 42.0,
        };
        self.text(
            lower,
            "#24292f",
            " xml:space=\"preserve\"",
            &shortened(&node.text, room),
        );
        self.0.push_str("</g>\n");
    }
}

/// How many columns a text takes: two for each East Asian letter or picture.
fn columns(text: &str) -> usize {
    text.chars().map(width).sum()
}

fn width(letter: char) -> usize {
    match u32::from(letter) {
        0x300..0x370 | 0x200b..0x2010 | 0xfe00..0xfe10 => 0,
        0x1100..0x1160 | 0x2e80..0xa4d0 | 0xac00..0xd7a4 | 0xf900..0xfb00 | 0xfe30..0xfe70 => 2,
        0xff00..0xff61 | 0x1f300..0x1fb00 | 0x20000..0x40000 => 2,
        _ => 1,
    }
}

/// The text, cut with an ellipsis where it takes more columns than there are.
pub fn shortened(text: &str, room: usize) -> String {
    if text.len() <= room || columns(text) <= room {
        return text.to_owned();
    }
    let mut used = 1;
    let fits = |letter: &char| {
        used += width(*letter);
        used <= room
    };
    text.chars().take_while(fits).chain(['…']).collect()
}

/// Text for XML: what XML cannot hold is replaced.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\t' | '\n' | '\r' => escaped.push(' '),
            letter if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') => {
                escaped.push('\u{fffd}');
            }
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(nodes: &[(&str, &str)], edges: &[(usize, usize)]) -> Picture {
        let node = |(index, (text, target)): (usize, &(&str, &str))| Node {
            number: index + 1,
            text: (*text).to_owned(),
            target: (*target).to_owned(),
            ..Node::default()
        };
        let arrow = |(from, to): &(usize, usize)| Arrow {
            from: *from,
            to: *to,
            names: vec![format!("x{from}")],
            ..Arrow::default()
        };
        Picture {
            nodes: nodes.iter().enumerate().map(node).collect(),
            edges: edges.iter().map(arrow).collect(),
        }
    }

    #[test]
    fn text_is_escaped_and_cut() {
        let mut one = picture(
            &[(
                "print('<&>\u{1b}[0m' + \"a very long line of code\")",
                "lab",
            )],
            &[],
        );
        one.nodes[0].state = Some(State::Refused);
        let svg = one.svg();
        assert!(svg.contains("&lt;&amp;&gt;\u{fffd}[0m"), "{svg}");
        assert!(
            svg.contains("…</text>") && svg.contains("wrong metadata"),
            "{svg}"
        );
        assert_eq!(shortened("日本語", 5), "日本…");
        assert_eq!(shortened("日本語", 6), "日本語");
        assert!(Picture::default().svg().contains("no cells"));
    }

    #[test]
    fn long_edges_become_notes() {
        let nodes = vec![("x", "home"); 9];
        let mut edges: Vec<(usize, usize)> = (1..9).map(|to| (to - 1, to)).collect();
        edges.extend([(0, 8), (1, 8)]);
        let svg = picture(&nodes, &edges).svg();
        assert!(svg.contains("x0 from 1; x1 from 2"), "{svg}");
        assert_eq!(svg.matches("<title>x1</title>").count(), 1);
    }

    #[test]
    fn nothing_overlaps() {
        let count = 120;
        let edges: Vec<(usize, usize)> = (1usize..count)
            .flat_map(|to| [(to / 3, to), (to.saturating_sub(1 + to % 2), to)])
            .filter(|(from, to)| from < to)
            .collect();
        let rows = layout::rows(count, edges.iter().copied());
        assert!(edges.iter().all(|(from, to)| rows[*from] < rows[*to]));
        let links: Vec<Link> = edges
            .iter()
            .filter(|(from, to)| !layout::is_long(rows[*from], rows[*to]))
            .map(|(from, to)| Link {
                from: Some(*from),
                to: *to,
                label: Some(80.0),
            })
            .collect();
        let layout = layout::place(&rows, &links);
        let boxes = layout.boxes.iter().map(|at| (at.x, at.y, BOX.0, BOX.1));
        let labels = layout.routes.iter().filter_map(|route| route.label);
        let labels = labels.map(|at| (at.x - 40.0, at.y - LABEL / 2.0, 80.0, LABEL));
        let all: Vec<(f64, f64, f64, f64)> = boxes.chain(labels).collect();
        for (index, one) in all.iter().enumerate() {
            assert!(one.0 >= 0.0 && one.0 + one.2 <= layout.width, "{one:?}");
            assert!(one.1 >= 0.0 && one.1 + one.3 <= layout.height, "{one:?}");
            for other in &all[..index] {
                let apart = one.0 + one.2 <= other.0
                    || other.0 + other.2 <= one.0
                    || one.1 + one.3 <= other.1
                    || other.1 + other.3 <= one.1;
                assert!(apart, "{one:?} {other:?}");
            }
        }
    }
}
