//! Choices that a seed makes again.

/// splitmix64: enough to choose victims and payloads.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator that makes the same choices for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator seeded by the environment variable `LOCKSTEP_SEED`, else by the clock. Prints the seed.
    ///
    /// # Panics
    /// When the variable is no number.
    pub fn from_environment() -> Self {
        let seed = match std::env::var("LOCKSTEP_SEED") {
            Ok(text) => text.parse().expect("LOCKSTEP_SEED is a number"),
            Err(_) => {
                let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                u64::from(since.subsec_nanos()) ^ since.as_secs().rotate_left(32)
            }
        };
        println!("seed: LOCKSTEP_SEED={seed}");
        Self(seed)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.number() % bound as u64).unwrap_or_default()
    }

    /// Bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.number().to_le_bytes()[0]).collect()
    }
}
