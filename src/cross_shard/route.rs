//! Which shard a message goes to. Does not send it.

use crate::ShardId;
use std::hash::{Hash, Hasher};

/// Which shard a message goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Route {
    /// This shard.
    Shard(ShardId),
    /// Any running shard: the next one, round robin.
    Any,
    /// The shard that a hash belongs to: see [`Route::key`].
    Key(u64),
}

impl Route {
    /// The shard that owns `key`.
    ///
    /// Equal keys go to the same shard as long as the number of shards stays the same, in every process and
    /// on every platform (as far as the key's own `Hash` is the same everywhere: slices of integers wider
    /// than a byte feed memory in native byte order). The hash is fixed and public: it spreads keys, it is no
    /// defence against somebody who chooses keys to meet on one shard.
    pub fn key(key: &(impl Hash + ?Sized)) -> Route {
        let mut hasher = KeyHasher(FNV_OFFSET);
        key.hash(&mut hasher);
        Route::Key(hasher.finish())
    }

    /// The shard this leads to. `next` counts up with every use of [`Route::Any`].
    #[inline]
    pub(super) fn resolve(
        self,
        shards: usize,
        next: impl FnOnce() -> usize,
        is_open: impl Fn(ShardId) -> bool,
    ) -> ShardId {
        match self {
            Route::Shard(id) => id,
            Route::Key(hash) => shard_of(hash, shards),
            Route::Any => in_turn(shards, next(), is_open),
        }
    }
}

impl From<ShardId> for Route {
    fn from(id: ShardId) -> Route {
        Route::Shard(id)
    }
}

/// The first shard that runs, from this turn's on. Out of line: the common route is a load.
#[inline(never)]
fn in_turn(shards: usize, turn: usize, is_open: impl Fn(ShardId) -> bool) -> ShardId {
    let first = turn % shards;
    let mut in_turn = (0..shards).map(|step| id_of((first + step) % shards));
    // All have stopped: the caller is told so by whichever is asked.
    in_turn.find(|&id| is_open(id)).unwrap_or(id_of(first))
}

/// Scales the hash down to `shards`: its high bits decide, and no division is needed.
fn shard_of(hash: u64, shards: usize) -> ShardId {
    id_of(((hash as u128 * shards as u128) >> 64) as usize)
}

pub(super) fn id_of(index: usize) -> ShardId {
    ShardId::new(u16::try_from(index).expect("a shard's number fits into 16 bits"))
}

/// FNV-1a over 64 bits with a final mix (FNV alone barely moves its high bits on short keys, and those are
/// the ones that choose the shard). Integers are fed in little-endian order and `usize` as 64 bits, so that
/// the platform does not matter.
struct KeyHasher(u64);

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
        }
    }

    fn finish(&self) -> u64 {
        // The finalizer of MurmurHash3 (Appleby, public domain): every bit of the input reaches every bit.
        let mut hash = self.0;
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^ (hash >> 33)
    }

    fn write_u16(&mut self, number: u16) {
        self.write(&number.to_le_bytes());
    }

    fn write_u32(&mut self, number: u32) {
        self.write(&number.to_le_bytes());
    }

    fn write_u64(&mut self, number: u64) {
        self.write(&number.to_le_bytes());
    }

    fn write_u128(&mut self, number: u128) {
        self.write(&number.to_le_bytes());
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_i16(&mut self, number: i16) {
        self.write_u16(number as u16);
    }

    fn write_i32(&mut self, number: i32) {
        self.write_u32(number as u32);
    }

    fn write_i64(&mut self, number: i64) {
        self.write_u64(number as u64);
    }

    fn write_i128(&mut self, number: i128) {
        self.write_u128(number as u128);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_i64(number as i64);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn resolve(route: Route, shards: usize) -> usize {
        route.resolve(shards, || 0, |_| true).index()
    }

    #[test]
    fn a_key_leads_to_the_same_shard_in_every_process() {
        // Computed apart from this code. A change here moves every user's data.
        assert_eq!(Route::key("alice"), Route::Key(0xd383_fecd_4b07_888b));
        assert_eq!(Route::key(&42_u64), Route::Key(0xa624_5a5d_cf27_8758));
        assert_eq!(Route::key(&42_usize), Route::key(&42_u64), "whatever the width of a pointer");
        assert_eq!(Route::key(&-1_isize), Route::key(&-1_i64));
        assert_eq!(Route::key("alice"), Route::key(&String::from("alice")));
    }

    #[test]
    fn keys_spread_evenly_also_when_they_are_small_numbers() {
        const KEYS: usize = 10_000;
        for shards in [1, 2, 3, 5, 8, 64] {
            let mut keys = vec![0_usize; shards];
            for number in 0..KEYS as u32 {
                keys[resolve(Route::key(&number), shards)] += 1;
            }
            let expected = KEYS / shards;
            for (shard, &count) in keys.iter().enumerate() {
                assert!(
                    count * 10 > expected * 6 && count * 10 < expected * 15,
                    "{shard} of {shards}: {count}"
                );
            }
        }
    }

    #[test]
    fn any_goes_round_the_shards_that_still_run() {
        let stopped = ShardId::new(1);
        let visit = |turn| Route::Any.resolve(4, || turn, |id| id != stopped).index();
        assert_eq!((0..8).map(visit).collect::<Vec<_>>(), [0, 2, 2, 3, 0, 2, 2, 3]);
        let none = Route::Any.resolve(4, || 6, |_| false);
        assert_eq!(none.index(), 2, "a stopped shard is asked, and says so");
    }
}
