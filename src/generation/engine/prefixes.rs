//! Caches of finished sequences, kept for prompts that begin alike: the turns of a chat, a common system prompt.

use super::memory::{Reclaim, Room};
use super::request::PrefixScope;
use super::sequence::Finished;
use crate::models::decoder::KvCache;
use crate::sync::Mutex;
use crate::{Error, Result};

/// A prompt that shares fewer tokens than this computes them: copying a cache costs as much.
pub(super) const WORTH_REUSING: usize = 8;

/// The cache of a sequence that has ended.
struct Kept<C> {
    scope: Option<PrefixScope>,
    tokens: Vec<u32>,
    /// Whether the keys of `cache` have the positions of a long text.
    long: bool,
    cache: C,
    /// The memory of `cache`, given back after it.
    room: Room,
}

/// A kept cache that a request goes on with, in its memory.
pub(super) struct Taken<C> {
    kept: Kept<C>,
    /// Its tokens that the prompt begins with.
    length: usize,
}

impl<C: KvCache> Taken<C> {
    /// Bytes of its memory, which is not counted as kept.
    pub(super) fn bytes(&self) -> u64 {
        self.kept.room.bytes()
    }

    /// A cache of `most_bytes` bytes at most, for `capacity` tokens. A second of its tokens and of its memory does not exist.
    /// Where memory cannot be had, what the prompt begins with is given back.
    pub(super) fn go_on(
        mut self,
        capacity: usize,
        most_bytes: u64,
        more: Room,
    ) -> std::result::Result<(C, Room), Box<(Self, Error)>> {
        let Kept { cache, tokens, .. } = &mut self.kept;
        cache.truncate(self.length);
        tokens.truncate(self.length);
        let fits = if cache.bytes() > most_bytes { cache.shrink() } else { Ok(()) };
        match fits.and_then(|()| cache.reserve(capacity)) {
            Ok(()) => {
                let Kept { cache, mut room, .. } = self.kept;
                room.add(more);
                room.keep_at_most(most_bytes);
                Ok((cache, room))
            }
            Err(error) => Err(Box::new((self, error))),
        }
    }
}

/// Least recently used first; bounded by count and bytes.
pub(super) struct Prefixes<C> {
    kept: Vec<Kept<C>>,
    most: usize,
    most_bytes: u64,
}

impl<C: KvCache> Prefixes<C> {
    pub(super) fn new(most: usize, most_bytes: u64) -> Self {
        Self { kept: Vec::new(), most, most_bytes }
    }

    /// The sequence of the scope whose cache gives most tokens of the beginning of `prompt`, and how many: at most all but the
    /// last one, whose logits are needed. `long` is whether the keys must have the positions of a long text.
    fn best(&self, scope: Option<PrefixScope>, prompt: &[u32], long: Option<bool>) -> Option<(usize, usize)> {
        let usable = &prompt[..prompt.len() - 1];
        let common = |kept: &Kept<C>| {
            let equal = kept.tokens.iter().zip(usable).take_while(|(a, b)| a == b).count();
            kept.cache.cut(equal)
        };
        let is_own = |kept: &Kept<C>| kept.scope == scope && long.is_none_or(|long| kept.long == long);
        let own = self.kept.iter().enumerate().filter(|(_, kept)| is_own(kept));
        own.map(|(index, kept)| (index, common(kept)))
            .max_by_key(|&(_, length)| length)
            .filter(|&(_, length)| length >= WORTH_REUSING)
    }

    /// The cache with the longest known beginning of `prompt` in its scope, if the prompt continues its sequence: it goes on in
    /// `most_bytes` bytes at most. Where they differ after a common part, the other conversation keeps its cache, and
    /// [`copy`](Self::copy) copies that part; but if the memory that is `missing` is there only without it, it is cut.
    pub(super) fn take(
        &mut self,
        scope: Option<PrefixScope>,
        prompt: &[u32],
        long: bool,
        most_bytes: u64,
        missing: u64,
    ) -> Option<Taken<C>> {
        let (index, length) = self.best(scope, prompt, Some(long))?;
        let kept = &self.kept[index];
        let continues = kept.tokens.len() - length < WORTH_REUSING && kept.cache.bytes() <= most_bytes;
        let all: u64 = self.kept.iter().map(|kept| kept.room.bytes()).sum();
        let must_go = missing <= all && missing > all - kept.room.bytes();
        if !continues && !must_go {
            return None;
        }
        let kept = self.kept.remove(index);
        Some(Taken { kept: Kept { room: kept.room.reuse(), ..kept }, length })
    }

    /// Keeps what was taken for later prompts.
    pub(super) fn give_back(&mut self, Taken { kept, .. }: Taken<C>) {
        let bytes = kept.room.bytes();
        self.kept.push(Kept { room: kept.room.keep(bytes), ..kept });
    }

    /// A copy, for `capacity` tokens, of the longest known beginning of `prompt` in its scope.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(super) fn copy(
        &mut self,
        scope: Option<PrefixScope>,
        prompt: &[u32],
        long: bool,
        capacity: usize,
    ) -> Result<Option<C>> {
        let Some((index, length)) = self.best(scope, prompt, Some(long)) else { return Ok(None) };
        let kept = self.kept.remove(index);
        let copy = kept.cache.fork(length, capacity);
        self.kept.push(kept);
        copy.map(Some)
    }

    /// Keeps the cache of a finished sequence. Its tokens begin with those of the cache. The oldest caches are dropped when there
    /// are too many.
    pub(super) fn keep(&mut self, finished: Finished<C>) {
        let Finished { scope, mut tokens, long, cache, room } = finished;
        tokens.truncate(cache.len());
        if tokens.len() < WORTH_REUSING || self.most == 0 {
            return;
        }
        // A beginning of the new sequence is not kept twice.
        self.kept
            .retain(|kept| kept.scope != scope || kept.long != long || !tokens.starts_with(&kept.tokens));
        let room = room.keep(cache.bytes());
        self.kept.push(Kept { scope, tokens, long, cache, room });
        while self.kept.len() > self.most || (self.bytes() > self.most_bytes && !self.kept.is_empty()) {
            self.kept.remove(0);
        }
    }

    /// Frees `bytes` bytes, or all: the oldest first, and last the one that `prompt` could reuse.
    pub(super) fn make_room(&mut self, bytes: u64, scope: Option<PrefixScope>, prompt: &[u32]) {
        let spared = self.best(scope, prompt, None).map(|(index, _)| self.kept.remove(index));
        let freed = self.reclaim(bytes);
        self.kept.extend(spared);
        self.reclaim(bytes.saturating_sub(freed));
    }

    /// Frees `bytes` bytes, or all: the oldest first. Returns how many.
    fn reclaim(&mut self, bytes: u64) -> u64 {
        let mut freed = 0;
        while freed < bytes && !self.kept.is_empty() {
            freed += self.kept.remove(0).room.bytes();
        }
        freed
    }

    fn bytes(&self) -> u64 {
        self.kept.iter().map(|kept| kept.cache.bytes()).sum()
    }
}

impl<C: KvCache> Reclaim for Mutex<Prefixes<C>> {
    fn reclaim(&self, bytes: u64) -> u64 {
        self.lock().reclaim(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::KvPool;
    use super::*;

    #[derive(Debug)]
    struct Counted {
        len: usize,
        /// More than 500 cannot be had.
        capacity: usize,
        /// Where it can be cut.
        step: usize,
    }

    impl KvCache for Counted {
        fn len(&self) -> usize {
            self.len
        }
        fn cut(&self, len: usize) -> usize {
            if len < self.len { len - len % self.step } else { self.len }
        }
        fn truncate(&mut self, len: usize) {
            self.len = self.cut(len);
        }
        fn reserve(&mut self, capacity: usize) -> Result<()> {
            if capacity > 500 {
                return Err(Error::OutOfMemory { what: "a test".into(), bytes: capacity as u64 });
            }
            self.capacity = self.capacity.max(capacity);
            Ok(())
        }
        fn fork(&self, len: usize, capacity: usize) -> Result<Self> {
            let mut fork = Self { len: self.cut(len), capacity: 0, step: self.step };
            fork.reserve(capacity)?;
            Ok(fork)
        }
        fn shrink(&mut self) -> Result<()> {
            self.capacity = self.len;
            Ok(())
        }
        fn bytes(&self) -> u64 {
            self.capacity as u64
        }
    }

    /// A finished sequence without a scope.
    fn finished(tokens: impl IntoIterator<Item = u32>, len: usize) -> Finished<Counted> {
        let room = KvPool::new(u64::MAX, None).take(1000).unwrap().unwrap();
        let tokens = tokens.into_iter().collect();
        Finished { scope: None, tokens, long: false, cache: Counted { len, capacity: len, step: 1 }, room }
    }

    /// A cache of `most_bytes` bytes at most, for `capacity` tokens: one that is taken over, or a copy.
    fn find(
        prefixes: &mut Prefixes<Counted>,
        scope: Option<PrefixScope>,
        prompt: &[u32],
        long: bool,
        (capacity, most_bytes): (usize, u64),
    ) -> Result<Option<Counted>> {
        let Some(taken) = prefixes.take(scope, prompt, long, most_bytes, 0) else {
            return prefixes.copy(scope, prompt, long, capacity);
        };
        let more = KvPool::new(u64::MAX, None).take(1000).unwrap().unwrap();
        match taken.go_on(capacity, most_bytes, more) {
            Ok((cache, room)) => {
                assert!(room.bytes() <= most_bytes);
                Ok(Some(cache))
            }
            Err(failed) => {
                let (taken, error) = *failed;
                prefixes.give_back(taken);
                Err(error)
            }
        }
    }

    fn found(prefixes: &mut Prefixes<Counted>, prompt: &[u32]) -> Option<usize> {
        find(prefixes, None, prompt, false, (100, 100)).unwrap().map(|cache| cache.len)
    }

    #[test]
    fn scopes_share_nothing() {
        let of = |name| Some(PrefixScope::new(name));
        let mut prefixes = Prefixes::new(4, 1000);
        prefixes.keep(Finished { scope: of("a"), ..finished(0..20, 20) });
        prefixes.keep(Finished { scope: of("b"), ..finished(0..15, 15) });
        let prompt: Vec<u32> = (0..30).collect();
        let mut find =
            |scope| find(&mut prefixes, scope, &prompt, false, (100, 100)).unwrap().map(|cache| cache.len);
        assert_eq!((find(None), find(of("c"))), (None, None));
        assert_eq!((find(of("b")), find(of("b")), find(of("a"))), (Some(15), None, Some(20)));
    }

    #[test]
    fn long_texts_reuse_none_of_short_ones() {
        let mut prefixes = Prefixes::new(4, 1000);
        prefixes.keep(finished(0..20, 20));
        prefixes.keep(Finished { long: true, ..finished(0..15, 15) });
        let prompt: Vec<u32> = (0..30).collect();
        let mut find =
            |long| find(&mut prefixes, None, &prompt, long, (100, 100)).unwrap().map(|cache| cache.len);
        assert_eq!((find(true), find(true), find(false)), (Some(15), None, Some(20)));
    }

    #[test]
    fn what_a_prompt_can_reuse_leaves_last() {
        let mut prefixes = Prefixes::new(4, 1000);
        prefixes.keep(finished(0..20, 20));
        prefixes.keep(finished(100..120, 20));
        prefixes.keep(finished(200..220, 20));
        let prompt: Vec<u32> = (0..30).collect();
        prefixes.make_room(25, None, &prompt);
        assert_eq!(found(&mut prefixes, &prompt), Some(20));
        prefixes.keep(finished(0..20, 20));
        assert_eq!(prefixes.reclaim(1000), 20);
        assert_eq!(found(&mut prefixes, &prompt), None);
    }

    #[test]
    fn a_cache_that_is_larger_than_allowed_is_copied() {
        let mut prefixes = Prefixes::new(4, 1000);
        let mut large = finished(0..20, 20);
        large.cache.capacity = 300;
        prefixes.keep(large);
        let cache =
            find(&mut prefixes, None, &(0..30).collect::<Vec<_>>(), false, (30, 30)).unwrap().unwrap();
        assert_eq!((cache.len, cache.capacity), (20, 30));
    }

    #[test]
    fn a_continued_conversation_takes_its_cache() {
        let mut prefixes = Prefixes::new(4, 1000);
        let turn: Vec<u32> = (0..20).collect();
        prefixes.keep(finished(turn, 19));
        let next: Vec<u32> = (0..30).collect();
        assert_eq!(found(&mut prefixes, &next), Some(19));
        assert_eq!(found(&mut prefixes, &next), None, "it was given away");
    }

    #[test]
    fn the_same_prompt_again_leaves_one_token_to_compute() {
        let mut prefixes = Prefixes::new(4, 1000);
        let prompt: Vec<u32> = (0..20).collect();
        prefixes.keep(finished(prompt.clone(), 20));
        assert_eq!(found(&mut prefixes, &prompt), Some(19));
    }

    #[test]
    fn a_common_beginning_is_copied() {
        let mut prefixes = Prefixes::new(4, 1000);
        prefixes.keep(finished(0..60, 60));
        let other: Vec<u32> = (0..20).chain(100..110).collect();
        assert_eq!(found(&mut prefixes, &other), Some(20));
        assert_eq!(found(&mut prefixes, &(0..70).collect::<Vec<_>>()), Some(60), "the first is still whole");
    }

    #[test]
    fn what_counts_is_the_beginning_that_a_cache_can_give() {
        let mut prefixes = Prefixes::new(4, 1000);
        let prompt: Vec<u32> = (0..150).collect();
        // The first shares more tokens, and can be cut at 64 alone.
        for (tokens, len) in [((0..120).chain(500..600).collect::<Vec<_>>(), 220), ((0..100).collect(), 100)]
        {
            let mut kept = finished(tokens, len);
            kept.cache.step = 64;
            prefixes.keep(kept);
        }
        assert_eq!(found(&mut prefixes, &prompt), Some(100));
        assert_eq!(found(&mut prefixes, &prompt), Some(64));
        // 120 of its 127 tokens are shared, but cut to 64 it would lose much: it is copied.
        let mut kept = finished(700..827, 127);
        kept.cache.step = 64;
        prefixes.keep(kept);
        let other: Vec<u32> = (700..820).chain(0..9).collect();
        assert_eq!(found(&mut prefixes, &other), Some(64));
        assert_eq!(found(&mut prefixes, &(700..900).collect::<Vec<_>>()), Some(127), "it is still whole");
        let mut kept = finished(0..200, 200);
        kept.cache.step = 64;
        prefixes.keep(kept);
        let short: Vec<u32> = (0..40).chain([9; 9]).collect();
        assert_eq!(found(&mut prefixes, &short), None, "it can give none");
    }

    #[test]
    fn a_beginning_outlives_a_lack_of_memory() {
        let mut prefixes = Prefixes::new(4, 1000);
        prefixes.keep(finished(0..60, 60));
        let continued: Vec<u32> = (0..70).collect();
        let other: Vec<u32> = (0..20).chain(100..110).collect();
        for prompt in [&other, &continued] {
            assert!(find(&mut prefixes, None, prompt, false, (501, 1000)).is_err());
        }
        assert_eq!(found(&mut prefixes, &other), Some(20));
        assert_eq!(found(&mut prefixes, &continued), Some(60));
    }

    #[test]
    fn count_and_bytes_are_bounded_and_the_oldest_goes() {
        let mut prefixes = Prefixes::new(2, 50);
        for start in [100, 200, 300] {
            prefixes.keep(finished(start..start + 20, 20));
        }
        assert_eq!((prefixes.kept.len(), prefixes.bytes()), (2, 40));
        assert_eq!(found(&mut prefixes, &(100..130).collect::<Vec<_>>()), None);
        prefixes.keep(finished(0..45, 45));
        assert_eq!((prefixes.kept.len(), prefixes.bytes()), (1, 45));
        prefixes.keep(finished(400..460, 60));
        assert_eq!(prefixes.bytes(), 0, "what exceeds the bound alone is not kept");
    }

    #[test]
    fn short_beginnings_are_not_worth_it() {
        let mut prefixes = Prefixes::new(2, 50);
        prefixes.keep(finished(0..5, 5));
        prefixes.keep(finished(0..20, 20));
        assert_eq!(prefixes.kept.len(), 1);
        let other: Vec<u32> = (0..7).chain(50..60).collect();
        assert_eq!(found(&mut prefixes, &other), None);
        assert_eq!(found(&mut prefixes, &[3]), None);
    }
}
