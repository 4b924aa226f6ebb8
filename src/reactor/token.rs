//! Names for what a driver watches: a slot number and the generation of that slot.

/// What a driver calls one of its sources. A token outlives its source harmlessly: the slot's generation
/// goes up when the source is retired, and an old token then finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Token {
    index: u32,
    generation: u32,
}

impl Token {
    /// No source's token.
    pub(crate) const NOBODY: Token = Token { index: u32::MAX, generation: u32::MAX };

    pub(crate) const fn new(index: u32, generation: u32) -> Self {
        Token { index, generation }
    }

    pub(crate) const fn index(self) -> u32 {
        self.index
    }

    pub(crate) const fn generation(self) -> u32 {
        self.generation
    }

    /// One word, for kernels that carry one word of user data per source.
    pub(crate) const fn to_bits(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    pub(crate) const fn from_bits(bits: u64) -> Self {
        Token { index: bits as u32, generation: (bits >> 32) as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_trip_through_one_word() {
        for token in [Token::new(0, 0), Token::new(7, 1), Token::new(u32::MAX - 1, u32::MAX)] {
            assert_eq!(Token::from_bits(token.to_bits()), token);
        }
    }
}
