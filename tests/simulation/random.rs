//! Chance from a seed.

use std::hash::{Hash, Hasher};

/// SplitMix64: small, fast, and the same on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Chance that belongs to a thing: the same whenever and however often it is asked for. So a
/// notebook from which a cell is removed goes on as it did as far as the other cells are concerned,
/// and can be shrunk.
#[derive(Clone, Copy, Debug)]
pub struct Fate(pub u64);

impl Fate {
    pub fn of(self, thing: impl Hash) -> Random {
        let mut hasher = Fnv(self.0 ^ 0xCBF2_9CE4_8422_2325);
        thing.hash(&mut hasher);
        Random::new(hasher.finish())
    }

    /// How long something takes: mostly a little, sometimes long.
    pub fn delay(self, thing: impl Hash) -> u64 {
        let mut random = self.of(thing);
        match random.below(10) {
            0 => 0,
            1 => random.below(300),
            _ => random.below(20),
        }
    }
}

/// FNV-1a; the standard library's own hash may change from one version to the next.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }
}
