//! Slots with generations: where a driver keeps its sources and a shard what belongs to them.
//!
//! Pages instead of one vector: growing moves nothing and leaves no half-empty allocation behind, which is
//! what keeps an idle connection small at ten thousand of them.

use super::token::Token;

const PAGE_SLOTS: usize = 256;
const PAGE_SHIFT: u32 = PAGE_SLOTS.trailing_zeros();
const NO_SLOT: u32 = u32::MAX;

/// A table that names its values by [`Token`]s: it makes tokens (`insert`) or follows another table's
/// (`insert_at`).
pub(crate) struct Registry<T> {
    /// Of fixed size, so that a slot's place in its page needs no check.
    pages: Vec<Box<Page<T>>>,
    free: u32,
    len: usize,
}

type Page<T> = [Slot<T>; PAGE_SLOTS];

struct Slot<T> {
    generation: u32,
    content: Content<T>,
}

enum Content<T> {
    Occupied(T),
    Vacant { next_free: u32 },
}

impl<T> Registry<T> {
    pub(crate) const fn new() -> Self {
        Registry { pages: Vec::new(), free: NO_SLOT, len: 0 }
    }

    /// How many values there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Stores `value` under a new token.
    pub(crate) fn insert(&mut self, value: T) -> Token {
        if self.free == NO_SLOT {
            self.grow();
        }
        let index = self.free;
        let slot = self.slot_mut(index).expect("the free list holds only slots that exist");
        let Content::Vacant { next_free } = slot.content else {
            unreachable!("the free list holds only vacant slots")
        };
        slot.content = Content::Occupied(value);
        let token = Token::new(index, slot.generation);
        self.free = next_free;
        self.len += 1;
        token
    }

    /// Stores `value` under a token made by another registry. A table uses `insert` or `insert_at`, not both.
    pub(crate) fn insert_at(&mut self, token: Token, value: T) {
        while self.pages.len() <= (token.index() >> PAGE_SHIFT) as usize {
            self.pages.push(page_of(|_| NO_SLOT));
        }
        let slot = self.slot_mut(token.index()).expect("pages were just grown to hold it");
        slot.generation = token.generation();
        let before = std::mem::replace(&mut slot.content, Content::Occupied(value));
        assert!(matches!(before, Content::Vacant { .. }), "two values under one token");
        self.len += 1;
    }

    #[inline]
    pub(crate) fn get(&self, token: Token) -> Option<&T> {
        let page = self.pages.get((token.index() >> PAGE_SHIFT) as usize)?;
        let slot = &page[token.index() as usize % PAGE_SLOTS];
        match &slot.content {
            Content::Occupied(value) if slot.generation == token.generation() => Some(value),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let slot = self.slot_mut(token.index())?;
        match &mut slot.content {
            Content::Occupied(value) if slot.generation == token.generation() => Some(value),
            _ => None,
        }
    }

    /// Takes the value out; the slot's next token is a different one.
    pub(crate) fn remove(&mut self, token: Token) -> Option<T> {
        let free = self.free;
        let slot = self.slot_mut(token.index())?;
        if slot.generation != token.generation() || matches!(slot.content, Content::Vacant { .. }) {
            return None;
        }
        slot.generation = slot.generation.wrapping_add(1);
        let Content::Occupied(value) =
            std::mem::replace(&mut slot.content, Content::Vacant { next_free: free })
        else {
            unreachable!("checked above")
        };
        self.free = token.index();
        self.len -= 1;
        Some(value)
    }

    /// All tokens in use, in slot order: a snapshot, so that the table may change while it is walked.
    pub(crate) fn tokens(&self) -> Vec<Token> {
        let mut tokens = Vec::with_capacity(self.len);
        for (index, slot) in self.pages.iter().flat_map(|page| page.iter()).enumerate() {
            if matches!(slot.content, Content::Occupied(_)) {
                tokens.push(Token::new(index as u32, slot.generation));
            }
        }
        tokens
    }

    #[inline]
    fn slot_mut(&mut self, index: u32) -> Option<&mut Slot<T>> {
        let page = self.pages.get_mut((index >> PAGE_SHIFT) as usize)?;
        Some(&mut page[index as usize % PAGE_SLOTS])
    }

    fn grow(&mut self) {
        let first = (self.pages.len() * PAGE_SLOTS) as u32;
        let last = first + PAGE_SLOTS as u32 - 1;
        // The lowest slot is used first, so that a quiet shard stays within its first page.
        self.pages.push(page_of(|place| {
            let index = first + place as u32;
            if index == last { NO_SLOT } else { index + 1 }
        }));
        self.free = first;
    }
}

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Registry::new()
    }
}

impl<T> Slot<T> {
    fn vacant(next_free: u32) -> Self {
        Slot { generation: 0, content: Content::Vacant { next_free } }
    }
}

/// A page of vacant slots, each followed in the free list by what `next_free` says of its place.
fn page_of<T>(next_free: impl Fn(usize) -> u32) -> Box<Page<T>> {
    // By way of a slice: an array would be built on the stack first, and entries may be large.
    let slots: Box<[Slot<T>]> = (0..PAGE_SLOTS).map(|place| Slot::vacant(next_free(place))).collect();
    slots.try_into().unwrap_or_else(|_| unreachable!("as many slots as a page has"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_token_finds_nothing_after_its_slot_is_used_again() {
        let mut registry = Registry::new();
        let first = registry.insert("first");
        assert_eq!(registry.remove(first), Some("first"));
        let second = registry.insert("second");
        assert_eq!(second.index(), first.index(), "slots are used again");
        assert_eq!(registry.get(first), None);
        assert_eq!(registry.remove(first), None);
        assert_eq!(registry.get(second), Some(&"second"));
        assert_eq!(registry.len(), 1);
    }

    #[test]
    fn slots_are_used_from_the_lowest_and_pages_do_not_move_values() {
        let mut registry = Registry::new();
        let tokens: Vec<_> = (0..1000).map(|number| registry.insert(number)).collect();
        assert!(tokens.iter().enumerate().all(|(index, token)| token.index() == index as u32));
        let address = registry.get(tokens[3]).unwrap() as *const i32;
        for number in 0..5000 {
            registry.insert(number);
        }
        assert_eq!(registry.get(tokens[3]).unwrap() as *const i32, address);
        assert_eq!(registry.tokens().len(), 6000);
    }

    #[test]
    fn a_second_table_follows_the_tokens_of_the_first() {
        let mut makes = Registry::new();
        let mut follows = Registry::new();
        let old = makes.insert(());
        follows.insert_at(old, 'a');
        makes.remove(old);
        assert_eq!(follows.remove(old), Some('a'));
        let new = makes.insert(());
        follows.insert_at(new, 'b');
        assert_eq!(follows.get(old), None);
        assert_eq!(follows.get(new), Some(&'b'));
    }
}
