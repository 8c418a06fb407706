//! What a play is worth: how often that happened in it which is hard to get right.

/// How often things happened that are worth simulating.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    pub cells: u64,
    pub ahead: u64,
    pub discarded: u64,
    pub transfers: u64,
    pub interrupts: u64,
    pub deaths: u64,
    /// Cells that ran again because their worker died.
    pub again: u64,
    /// Runs that made something again.
    pub remade: u64,
    /// Cells that failed because a value was lost for good.
    pub lost: u64,
    pub aborted: u64,
    /// Workers that were given back, and those that stayed.
    pub given_back: u64,
    pub kept: u64,
    /// Values that were brought home for that, and those that were lost.
    pub brought: u64,
    pub left: u64,
}

impl Statistics {
    pub fn add(&mut self, other: &Self) {
        self.cells += other.cells;
        self.ahead += other.ahead;
        self.discarded += other.discarded;
        self.transfers += other.transfers;
        self.interrupts += other.interrupts;
        self.deaths += other.deaths;
        self.again += other.again;
        self.remade += other.remade;
        self.lost += other.lost;
        self.aborted += other.aborted;
        self.given_back += other.given_back;
        self.kept += other.kept;
        self.brought += other.brought;
        self.left += other.left;
    }
}
