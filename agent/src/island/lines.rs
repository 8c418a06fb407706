//! What the ranks print, as one text that people like to read: whole lines, each with its ranks before it, those that
//! several ranks print alike once. It holds no clock: the time is given to it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::time::Duration;

use tokio::time::Instant;

/// How long a line waits for other ranks that print the same, and an unfinished one for its end.
pub const HOLD: Duration = Duration::from_millis(100);

/// After how long an unfinished line is shown though another one is unfinished, too, or others go by.
const TAKE: Duration = Duration::from_secs(1);

/// How many lines wait at most; more are shown early.
const MOST: usize = 10_000;

/// How many waiting lines are compared with a new one.
const COMPARED: usize = 1_000;

/// An unfinished line longer than this, in bytes, is ended.
const LONGEST: usize = 1 << 16;

/// Which of a process's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A set of ranks, written as `0-3,5`.
pub fn shown(ranks: &BTreeSet<usize>) -> String {
    let mut text = String::new();
    let mut rest = ranks.iter().copied().peekable();
    while let Some(first) = rest.next() {
        let mut last = first;
        while rest.next_if_eq(&(last + 1)).is_some() {
            last += 1;
        }
        let comma = if text.is_empty() { "" } else { "," };
        let _ = match last - first {
            0 => write!(text, "{comma}{first}"),
            _ => write!(text, "{comma}{first}-{last}"),
        };
    }
    text
}

/// What `mpirun` says when one of its processes has ended as none should: that, we tell ourselves.
const BOILERPLATE: [&str; 3] = [
    "has exited due to process rank",
    "Primary job  terminated normally",
    "noticed that process rank",
];

/// The last words of `mpirun` without the paragraphs that only say that a rank has died.
pub fn without_boilerplate(last_words: &str) -> String {
    let lines: Vec<&str> = last_words.lines().collect();
    let paragraphs = lines.split(|line| line.len() > 20 && line.bytes().all(|byte| byte == b'-'));
    let told = paragraphs.map(|lines| lines.join("\n"));
    let told = told.filter(|text| {
        !text.trim().is_empty() && !BOILERPLATE.iter().any(|part| text.contains(part))
    });
    told.collect::<Vec<_>>().join("\n")
}

/// A line with its ranks.
fn labelled(ranks: &BTreeSet<usize>, text: &str) -> String {
    let space = if text.is_empty() { "" } else { " " };
    format!("[{}]{space}{text}", shown(ranks))
}

/// A whole line that waits for other ranks.
#[derive(Debug)]
struct Whole {
    name: Name,
    text: String,
    ranks: BTreeSet<usize>,
    since: Instant,
}

/// A line of one rank that has no end yet.
#[derive(Debug)]
struct Begun {
    text: String,
    /// What comes next replaces it.
    returned: bool,
    /// Something has been replaced: it is a progress bar.
    rewritten: bool,
    /// Since when it is not shown as it is now, and when that was looked at last.
    unseen: Option<(Instant, Instant)>,
}

/// The unfinished line that was shown last.
#[derive(Debug)]
struct Open {
    name: Name,
    ranks: BTreeSet<usize>,
    text: String,
}

/// Merges what so many ranks print.
#[derive(Debug)]
pub struct Lines {
    count: usize,
    queue: VecDeque<Whole>,
    /// How many lines have left the queue.
    left: usize,
    /// The place after each rank's last line in the queue, counted from the first line ever.
    after: Vec<usize>,
    begun: BTreeMap<(usize, Name), Begun>,
    open: Option<Open>,
    /// When a line was ended last.
    ended: Option<Instant>,
    out: Vec<(Name, String)>,
}

impl Lines {
    /// Of so many ranks.
    pub fn new(count: usize) -> Self {
        Self {
            count,
            queue: VecDeque::new(),
            left: 0,
            after: vec![0; count],
            begun: BTreeMap::new(),
            open: None,
            ended: None,
            out: Vec::new(),
        }
    }

    /// A rank prints.
    pub fn print(&mut self, rank: usize, name: Name, text: &str, now: Instant) {
        let key = (rank, name);
        let mut pieces = text.split('\n').peekable();
        while let Some(piece) = pieces.next() {
            let begun = self.begun.entry(key).or_insert_with(|| Begun {
                text: String::new(),
                returned: false,
                rewritten: false,
                unseen: None,
            });
            begun.append(piece);
            if pieces.peek().is_some() || begun.text.len() > LONGEST {
                let text = std::mem::take(&mut begun.text);
                self.begun.remove(&key);
                self.whole(rank, name, text, now);
            } else if !piece.is_empty() {
                let (since, _) = begun.unseen.unwrap_or((now, now));
                begun.unseen = Some((since, now));
            } else if begun.text.is_empty() {
                self.begun.remove(&key);
            }
        }
    }

    fn whole(&mut self, rank: usize, name: Name, text: String, now: Instant) {
        self.ended = Some(now);
        let start = self.after[rank].saturating_sub(self.left);
        let like = self
            .queue
            .iter()
            .skip(start)
            .take(COMPARED)
            .position(|line| line.name == name && line.text == text);
        let index = match like {
            Some(offset) => start + offset,
            None => {
                self.queue.push_back(Whole {
                    name,
                    text,
                    ranks: BTreeSet::new(),
                    since: now,
                });
                self.queue.len() - 1
            }
        };
        if let Some(line) = self.queue.get_mut(index) {
            line.ranks.insert(rank);
        }
        self.after[rank] = self.left + index + 1;
    }

    /// When something may have to be shown next.
    pub fn due(&self) -> Option<Instant> {
        let line = self.queue.front().map(|line| line.since);
        let looked = self.begun.values().filter_map(|begun| begun.unseen);
        let first = looked.map(|(_, looked)| looked).chain(line).min()?;
        Some(first + HOLD)
    }

    /// What is to be shown now.
    pub fn take(&mut self, now: Instant) -> Vec<(Name, String)> {
        while let Some(front) = self.queue.front()
            && (front.ranks.len() == self.count
                || front.since + HOLD <= now
                || self.queue.len() > MOST)
        {
            self.show_front();
        }
        // While lines go by, an unfinished one is most likely the beginning of one of them.
        let busy = self.ended.is_some_and(|ended| ended + HOLD > now);
        let mut alike: BTreeMap<(Name, String), BTreeSet<usize>> = BTreeMap::new();
        for ((rank, name), begun) in &self.begun {
            let due = begun.unseen.is_some_and(|(since, looked)| {
                looked + HOLD <= now && (!busy || begun.rewritten || since + TAKE <= now)
            });
            // Its own lines come first.
            if due && self.after[*rank] <= self.left {
                let ranks = alike.entry((*name, begun.text.clone())).or_default();
                ranks.insert(*rank);
            }
        }
        for ((name, text), ranks) in alike {
            let own = self
                .open
                .as_ref()
                .is_none_or(|open| open.name == name && open.ranks == ranks);
            let patient = |rank: &usize| {
                self.begun.get(&(*rank, name)).is_some_and(|begun| {
                    begun.rewritten || begun.unseen.is_some_and(|(since, _)| since + TAKE > now)
                })
            };
            let stays = !own && ranks.iter().all(patient);
            for rank in &ranks {
                if let Some(begun) = self.begun.get_mut(&(*rank, name)) {
                    begun.unseen = begun
                        .unseen
                        .filter(|_| stays)
                        .map(|(since, _)| (since, now));
                }
            }
            if !stays {
                self.show(name, ranks, text, false);
            }
        }
        // Whoever waits still is looked at again later.
        for begun in self.begun.values_mut() {
            if let Some((_, looked)) = &mut begun.unseen
                && *looked + HOLD <= now
            {
                *looked = now;
            }
        }
        std::mem::take(&mut self.out)
    }

    /// All that has not been shown yet: something else comes next, or nothing.
    pub fn flush(&mut self) -> Vec<(Name, String)> {
        while !self.queue.is_empty() {
            self.show_front();
        }
        let mut alike: BTreeMap<(Name, String), BTreeSet<usize>> = BTreeMap::new();
        for ((rank, name), begun) in &self.begun {
            if begun.unseen.is_some() {
                let ranks = alike.entry((*name, begun.text.clone())).or_default();
                ranks.insert(*rank);
            }
        }
        for ((name, text), ranks) in alike {
            self.show(name, ranks, text, false);
        }
        self.begun.clear();
        self.open = None;
        std::mem::take(&mut self.out)
    }

    fn show_front(&mut self) {
        if let Some(line) = self.queue.pop_front() {
            self.left += 1;
            self.show(line.name, line.ranks, line.text, true);
        }
    }

    /// Shows a line, as the rest of the one that is shown unfinished, in its place, or below it.
    fn show(&mut self, name: Name, ranks: BTreeSet<usize>, text: String, whole: bool) {
        let end = if whole { "\n" } else { "" };
        match self.open.take() {
            Some(open) if open.name == name && open.ranks == ranks => {
                match text.strip_prefix(&open.text) {
                    Some(rest) => self.put(name, &format!("{rest}{end}")),
                    None => {
                        let (new, old) = (text.chars().count(), open.text.chars().count());
                        let pad = " ".repeat(old.saturating_sub(new));
                        self.put(name, &format!("\r{}{pad}{end}", labelled(&ranks, &text)));
                    }
                }
            }
            open => {
                if let Some(open) = open {
                    self.put(open.name, "\n");
                }
                self.put(name, &format!("{}{end}", labelled(&ranks, &text)));
            }
        }
        if !whole {
            self.open = Some(Open { name, ranks, text });
        }
    }

    fn put(&mut self, name: Name, text: &str) {
        match self.out.last_mut() {
            Some((last, all)) if *last == name => all.push_str(text),
            _ => self.out.push((name, text.to_owned())),
        }
    }
}

impl Begun {
    fn append(&mut self, text: &str) {
        for (index, piece) in text.split('\r').enumerate() {
            self.returned |= index > 0;
            if piece.is_empty() {
                continue;
            }
            if std::mem::take(&mut self.returned) && !self.text.is_empty() {
                self.text.clear();
                self.rewritten = true;
            }
            self.text.push_str(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Name::{Stderr, Stdout};

    fn text(shown: Vec<(Name, String)>) -> String {
        shown.into_iter().map(|(_, text)| text).collect()
    }

    fn later(now: Instant, milliseconds: u64) -> Instant {
        now + Duration::from_millis(milliseconds)
    }

    #[test]
    fn ranks_are_written_as_people_write_them() {
        let ranks = |all: &[usize]| shown(&all.iter().copied().collect());
        assert_eq!(ranks(&[3]), "3");
        assert_eq!(ranks(&[0, 1, 2, 3]), "0-3");
        assert_eq!(ranks(&[0, 2, 3, 9]), "0,2-3,9");
    }

    #[test]
    fn only_what_is_new_is_left_of_mpiruns_words() {
        let rule = "-".repeat(74);
        let died = format!(
            "{rule}\nmpirun noticed that process rank 1 with PID 0 on node x\nexited on signal 9.\n{rule}\n"
        );
        assert_eq!(without_boilerplate(&died), "");
        let abort =
            format!("{rule}\nMPI_ABORT was invoked on rank 1\nwith errorcode 3.\n{rule}\n{died}");
        assert_eq!(
            without_boilerplate(&abort),
            "MPI_ABORT was invoked on rank 1\nwith errorcode 3."
        );
        assert_eq!(without_boilerplate("srun: error: x"), "srun: error: x");
    }

    #[test]
    fn an_unfinished_line_waits_while_others_go_by() {
        let (mut lines, mut now) = (Lines::new(2), Instant::now());
        lines.print(0, Stdout, "half", now);
        for _ in 0..9 {
            now = later(now, 100);
            lines.print(1, Stdout, "whole\n", now);
            assert!(!text(lines.take(now)).contains("half"));
        }
        lines.print(0, Stdout, " a line\n", now);
        now = later(now, 100);
        assert_eq!(text(lines.take(now)), "[1] whole\n[0] half a line\n");
        // But not for ever.
        lines.print(0, Stdout, "prompt", now);
        let mut shown = String::new();
        for _ in 0..11 {
            now = later(now, 100);
            lines.print(1, Stdout, "whole\n", now);
            shown += &text(lines.take(now));
        }
        assert!(shown.contains("[0] prompt"), "{shown}");
    }

    #[test]
    fn equal_lines_come_once_and_those_of_all_at_once() {
        let (mut lines, now) = (Lines::new(3), Instant::now());
        for rank in [2, 0] {
            lines.print(rank, Stdout, "a\n", now);
        }
        assert_eq!(text(lines.take(now)), "");
        lines.print(1, Stdout, "a\nb\n", now);
        assert_eq!(text(lines.take(now)), "[0-2] a\n");
        lines.print(2, Stdout, "b\n", now);
        assert_eq!(lines.due(), Some(later(now, 100)));
        assert_eq!(text(lines.take(later(now, 99))), "");
        assert_eq!(text(lines.take(later(now, 100))), "[1-2] b\n");
        assert_eq!(lines.due(), None);
    }

    #[test]
    fn each_rank_keeps_its_own_order() {
        let (mut lines, now) = (Lines::new(2), Instant::now());
        lines.print(0, Stdout, "x\ny\nx\n", now);
        lines.print(1, Stdout, "y\nx\nx\n", now);
        assert_eq!(text(lines.flush()), "[0] x\n[0-1] y\n[0-1] x\n[1] x\n");
    }

    #[test]
    fn stdout_and_stderr_are_not_mixed() {
        let (mut lines, now) = (Lines::new(2), Instant::now());
        lines.print(0, Stdout, "a\n", now);
        lines.print(1, Stderr, "a\n", now);
        let shown = lines.take(later(now, 100));
        assert_eq!(
            shown,
            [
                (Stdout, "[0] a\n".to_owned()),
                (Stderr, "[1] a\n".to_owned())
            ]
        );
    }

    #[test]
    fn an_unfinished_line_is_shown_and_goes_on() {
        let (mut lines, now) = (Lines::new(2), Instant::now());
        for rank in 0..2 {
            lines.print(rank, Stdout, "wait", now);
        }
        assert_eq!(text(lines.take(later(now, 100))), "[0-1] wait");
        assert_eq!(lines.due(), None);
        for rank in 0..2 {
            lines.print(rank, Stdout, "ing\n", later(now, 200));
        }
        assert_eq!(text(lines.take(later(now, 200))), "ing\n");
        lines.print(0, Stdout, "a", now);
        assert_eq!(text(lines.take(later(now, 300))), "[0] a");
        lines.print(1, Stdout, "b\n", later(now, 400));
        assert_eq!(text(lines.take(later(now, 500))), "\n[1] b\n");
        lines.print(0, Stdout, "c\n", later(now, 600));
        assert_eq!(text(lines.flush()), "[0] ac\n");
    }

    #[test]
    fn a_progress_bar_stays_in_its_place_and_others_show_how_they_end() {
        let (mut lines, now) = (Lines::new(2), Instant::now());
        lines.print(0, Stderr, "\r 10%", now);
        assert_eq!(text(lines.take(later(now, 100))), "[0]  10%");
        lines.print(0, Stderr, "\r 20%", later(now, 110));
        lines.print(1, Stderr, "\r 11%", later(now, 110));
        lines.print(1, Stderr, "\r 12%", later(now, 120));
        assert_eq!(text(lines.take(later(now, 250))), "\r[0]  20%");
        // It does not take the place of the other, and is looked at no more often than the rest.
        assert!(lines.due().unwrap() >= later(now, 350));
        assert_eq!(text(lines.take(later(now, 2000))), "");
        lines.print(0, Stderr, "\rdone\n", later(now, 2000));
        assert_eq!(text(lines.take(later(now, 2100))), "\r[0] done\n[1]  12%");
        lines.print(1, Stderr, "\r 99%\r\n", later(now, 2200));
        assert_eq!(text(lines.flush()), "\r[1]  99%\n");
    }

    #[test]
    fn nothing_that_is_unfinished_is_lost_at_the_end() {
        let (mut lines, now) = (Lines::new(2), Instant::now());
        lines.print(0, Stdout, "a\nb", now);
        lines.print(1, Stdout, "c\r", now);
        assert_eq!(text(lines.flush()), "[0] a\n[0] b\n[1] c");
        assert_eq!(text(lines.flush()), "");
    }

    #[test]
    fn a_second_unfinished_line_takes_over_after_a_while() {
        let (mut lines, now) = (Lines::new(2), Instant::now());
        lines.print(0, Stdout, ".", now);
        assert_eq!(text(lines.take(later(now, 100))), "[0] .");
        lines.print(1, Stdout, ":", later(now, 100));
        assert_eq!(text(lines.take(later(now, 300))), "");
        assert_eq!(text(lines.take(later(now, 1200))), "\n[1] :");
        // Without anything new nothing is due, however often one looks.
        assert_eq!(lines.due(), None);
    }

    #[test]
    fn many_lines_are_not_kept_for_long() {
        let (mut lines, now) = (Lines::new(2), Instant::now());
        for line in 0..MOST + 5 {
            lines.print(0, Stdout, &format!("{line}\n"), now);
        }
        assert_eq!(text(lines.take(now)).lines().count(), 5);
    }
}
