//! Where the boxes, edges and labels of a picture go: rows from top to bottom, as Sugiyama's method
//! has it. Edges get a place of their own in every row that they cross, so nothing overlaps.

/// Size of a box, in pixels.
pub const BOX: (f64, f64) = (250.0, 54.0);
/// Height of the text on an edge.
pub const LABEL: f64 = 16.0;

/// Boxes in a row; what else would be there goes to the next row.
const WIDEST: usize = 6;
/// Edges over more rows than this are not drawn: they become a note above the box they lead to.
const LONGEST: usize = 4;
const GAP: f64 = 22.0;
const MARGIN: f64 = 24.0;
/// What an edge needs of the row that it crosses.
const LANE: f64 = 6.0;
/// How often the rows are put in order, and then into place.
const SWEEPS: usize = 8;

/// A point of the picture, in pixels from its upper left corner.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    pub x: f64,
    pub y: f64,
}

/// An edge from one box to another.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Where it starts; `None` for a note above the box it leads to.
    pub from: Option<usize>,
    pub to: usize,
    /// Width of its text, if it has any.
    pub label: Option<f64>,
}

/// Where everything is.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    pub width: f64,
    pub height: f64,
    /// Upper left corners.
    pub boxes: Vec<Point>,
    pub routes: Vec<Route>,
}

/// The way of a link.
#[derive(Clone, Debug, Default)]
pub struct Route {
    /// From the lower edge of one box to the upper edge of another.
    pub points: Vec<Point>,
    /// The middle of its text.
    pub label: Option<Point>,
}

/// The row of each box: below all that it follows.
pub fn rows(count: usize, edges: impl Iterator<Item = (usize, usize)>) -> Vec<usize> {
    let mut before = vec![Vec::new(); count];
    for (from, to) in edges.filter(|(from, to)| from < to && *to < count) {
        before[to].push(from);
    }
    let mut rows: Vec<usize> = Vec::with_capacity(count);
    let mut used: Vec<usize> = Vec::new();
    for earlier in before {
        let mut row = earlier
            .into_iter()
            .map(|from| rows[from] + 1)
            .max()
            .unwrap_or(0);
        while used.get(row).is_some_and(|used| *used == WIDEST) {
            row += 1;
        }
        used.resize(used.len().max(row + 1), 0);
        used[row] += 1;
        rows.push(row);
    }
    rows
}

/// Whether an edge between these rows is too long to be drawn.
pub fn is_long(from: usize, to: usize) -> bool {
    to > from + LONGEST
}

/// Something that takes room in a row.
#[derive(Clone, Debug, Default)]
struct Item {
    width: f64,
    /// Its middle.
    x: f64,
    /// Its neighbours, and how strongly they should be in line.
    above: Vec<(usize, f64)>,
    below: Vec<(usize, f64)>,
}

struct Plan {
    /// The boxes, then the places of the edges.
    items: Vec<Item>,
    /// Rows of boxes and, between them, of labels.
    rows: Vec<Vec<usize>>,
}

/// Places boxes in the `rows` that [`rows`] found for them, and links between them.
pub fn place(rows: &[usize], links: &[Link]) -> Layout {
    let depth = rows.iter().max().map_or(0, |last| 2 * last + 1);
    let mut plan = Plan {
        items: vec![
            Item {
                width: BOX.0,
                ..Item::default()
            };
            rows.len()
        ],
        rows: vec![Vec::new(); depth],
    };
    for (cell, row) in rows.iter().enumerate() {
        plan.rows[2 * row].push(cell);
    }
    let mut labelled = vec![false; depth];
    let ways: Vec<Vec<usize>> = links
        .iter()
        .map(|link| {
            let end = 2 * rows[link.to];
            let start = link
                .from
                .map_or(end.saturating_sub(2), |from| 2 * rows[from]);
            if link.label.is_some() {
                labelled[end.saturating_sub(1)] = true;
            }
            let mut way = Vec::new();
            for row in start + 1..end {
                // The text stands right above the box it leads to.
                let label = link.label.filter(|_| row + 1 == end);
                way.push(plan.items.len());
                plan.rows[row].push(plan.items.len());
                plan.items.push(Item {
                    width: label.unwrap_or(LANE),
                    ..Item::default()
                });
            }
            let stops = link
                .from
                .into_iter()
                .chain(way.iter().copied())
                .chain([link.to]);
            let stops: Vec<usize> = stops.collect();
            for pair in stops.windows(2) {
                let straight = if pair.iter().all(|item| *item >= rows.len()) {
                    4.0
                } else {
                    1.0
                };
                plan.items[pair[0]].below.push((pair[1], straight));
                plan.items[pair[1]].above.push((pair[0], straight));
            }
            way
        })
        .collect();
    plan.order();
    plan.align();
    plan.finish(rows, links, &ways, &labelled)
}

impl Plan {
    fn neighbours(&self, item: usize, above: bool) -> &[(usize, f64)] {
        let item = &self.items[item];
        if above { &item.above } else { &item.below }
    }

    /// Where an item would be in line with its neighbours.
    fn wish(&self, neighbours: &[(usize, f64)]) -> Option<f64> {
        let weight: f64 = neighbours.iter().map(|(_, weight)| weight).sum();
        let sum: f64 = neighbours
            .iter()
            .map(|(other, weight)| self.items[*other].x * weight)
            .sum();
        (weight > 0.0).then(|| sum / weight)
    }

    /// Puts each row in an order in which few edges cross.
    fn order(&mut self) {
        for row in 0..self.rows.len() {
            self.pack(row);
        }
        for sweep in 0..SWEEPS {
            let down = sweep % 2 == 0;
            for step in 0..self.rows.len() {
                let row = if down {
                    step
                } else {
                    self.rows.len() - 1 - step
                };
                let mut wished: Vec<(f64, usize)> = self.rows[row]
                    .iter()
                    .map(|item| {
                        let wish = self.wish(self.neighbours(*item, down));
                        (wish.unwrap_or(self.items[*item].x), *item)
                    })
                    .collect();
                wished.sort_by(|one, other| one.0.total_cmp(&other.0));
                self.rows[row] = wished.into_iter().map(|(_, item)| item).collect();
                self.pack(row);
            }
        }
    }

    /// Places a row without holes around the middle.
    fn pack(&mut self, row: usize) {
        let row = &self.rows[row];
        let all: f64 = row.iter().map(|item| self.items[*item].width + GAP).sum();
        let mut x = -all / 2.0;
        for item in row {
            let width = self.items[*item].width + GAP;
            self.items[*item].x = x + width / 2.0;
            x += width;
        }
    }

    /// Moves items in line with their neighbours, as far as the order leaves room.
    fn align(&mut self) {
        for sweep in 0..SWEEPS {
            for step in 0..self.rows.len() {
                let down = sweep % 2 == 0;
                let row = if down {
                    step
                } else {
                    self.rows.len() - 1 - step
                };
                let wishes: Vec<f64> = self.rows[row]
                    .iter()
                    .map(|item| {
                        let all =
                            [self.neighbours(*item, true), self.neighbours(*item, false)].concat();
                        self.wish(&all).unwrap_or(self.items[*item].x)
                    })
                    .collect();
                self.settle(row, &wishes);
            }
        }
    }

    /// Places a row as near to the wishes as can be (least squares) without overlaps: items that
    /// would collide form a block around the mean of their wishes.
    fn settle(&mut self, row: usize, wishes: &[f64]) {
        let row = &self.rows[row];
        let mut offsets = Vec::with_capacity(row.len());
        let mut offset = 0.0;
        let mut blocks: Vec<(f64, usize)> = Vec::new();
        for (place, item) in row.iter().enumerate() {
            if place > 0 {
                offset += (self.items[row[place - 1]].width + self.items[*item].width) / 2.0 + GAP;
            }
            offsets.push(offset);
            let (mut sum, mut count) = (wishes[place] - offset, 1);
            while let Some((before, size)) = blocks.last()
                && before / *size as f64 > sum / count as f64
            {
                sum += before;
                count += size;
                blocks.pop();
            }
            blocks.push((sum, count));
        }
        let starts = blocks
            .iter()
            .flat_map(|(sum, count)| std::iter::repeat_n(sum / *count as f64, *count));
        for ((item, start), offset) in row.iter().zip(starts).zip(offsets) {
            self.items[*item].x = start + offset;
        }
    }

    fn finish(
        mut self,
        rows: &[usize],
        links: &[Link],
        ways: &[Vec<usize>],
        labelled: &[bool],
    ) -> Layout {
        let left = |item: &Item| item.x - item.width / 2.0;
        let least = self.items.iter().map(left).fold(f64::INFINITY, f64::min);
        let mut width = 0.0f64;
        for item in &mut self.items {
            item.x += MARGIN - least;
            width = width.max(item.x + item.width / 2.0 + MARGIN);
        }
        let mut tops = Vec::with_capacity(labelled.len());
        let mut y = MARGIN;
        for (row, labelled) in labelled.iter().enumerate() {
            tops.push(y);
            y += match (row % 2, labelled) {
                (0, _) => BOX.1,
                (_, true) => 3.5 * LABEL,
                (_, false) => 2.0 * LABEL,
            };
        }
        let mut layout = Layout {
            width,
            height: y + MARGIN,
            boxes: Vec::with_capacity(rows.len()),
            routes: Vec::with_capacity(links.len()),
        };
        for (item, row) in self.items.iter().zip(rows) {
            layout.boxes.push(Point {
                x: left(item),
                y: tops[2 * row],
            });
        }
        let starts = self.ports(links, ways, rows.len(), |link| link.from, |way| way.first());
        let ends = self.ports(
            links,
            ways,
            rows.len(),
            |link| Some(link.to),
            |way| way.last(),
        );
        for (index, (link, way)) in links.iter().zip(ways).enumerate() {
            let end = 2 * rows[link.to];
            let first = end - way.len();
            let mut route = Route::default();
            if let Some(from) = link.from {
                let y = tops[2 * rows[from]] + BOX.1;
                route.points.push(Point {
                    x: starts[index],
                    y,
                });
            }
            for (row, item) in (first..).zip(way) {
                let x = self.items[*item].x;
                let middle = (tops[row] + tops[row + 1]) / 2.0;
                if row % 2 == 0 {
                    // Straight between the boxes.
                    route.points.push(Point { x, y: tops[row] });
                    route.points.push(Point {
                        x,
                        y: tops[row] + BOX.1,
                    });
                } else if row + 1 == end && link.label.is_some() {
                    route.points.push(Point { x, y: middle });
                    route.label = Some(Point { x, y: middle });
                } else {
                    route.points.push(Point { x, y: middle });
                }
            }
            route.points.push(Point {
                x: ends[index],
                y: tops[end],
            });
            layout.routes.push(route);
        }
        layout
    }

    /// Where links leave or enter their boxes: side by side, in the order in which they come.
    fn ports(
        &self,
        links: &[Link],
        ways: &[Vec<usize>],
        boxes: usize,
        end: impl Fn(&Link) -> Option<usize>,
        next: impl Fn(&Vec<usize>) -> Option<&usize>,
    ) -> Vec<f64> {
        let mut at: Vec<Vec<(f64, usize)>> = vec![Vec::new(); boxes];
        for (index, (link, way)) in links.iter().zip(ways).enumerate() {
            if let Some(cell) = end(link) {
                let x = next(way).map_or(0.0, |item| self.items[*item].x);
                at[cell].push((x, index));
            }
        }
        let mut ports = vec![0.0; links.len()];
        for (cell, mut links) in at.into_iter().enumerate() {
            links.sort_by(|one, other| one.0.total_cmp(&other.0));
            let step = (BOX.0 * 0.7 / links.len() as f64).min(GAP);
            let first = self.items[cell].x - step * (links.len() as f64 - 1.0) / 2.0;
            for (place, (_, index)) in links.into_iter().enumerate() {
                ports[index] = first + step * place as f64;
            }
        }
        ports
    }
}
