//! The pieces of a vocabulary, found by the beginning of a text.
//!
//! A byte trie in four arrays. Nodes lie in order of depth, so the children of a node are neighbors, and those of the
//! next node follow: a node needs the place of its first child only. A vocabulary of 250,000 pieces takes 8 MB.

use super::text_table::TextTable;
use crate::compute::pages::{PageVec, Pages, filled};

/// The piece of a node where none ends.
const NONE: u32 = u32::MAX;
/// First bytes of a text in a key to sort by; its number takes the rest.
const HEAD: usize = 12;
/// Children up to which a search looks at one after the other.
const FEW: usize = 8;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Trie {
    /// The byte that leads to a node.
    labels: PageVec<u8>,
    /// A node's first child; the last entry ends the children of the last node.
    children: PageVec<u32>,
    /// The piece that ends at a node.
    pieces: PageVec<u32>,
}

impl Trie {
    /// Of equal texts the last one counts. None of them is empty.
    pub(crate) fn new(texts: &TextTable) -> Self {
        let sorted = sort(texts);
        // A text adds the nodes below those that it shares with the text before it.
        let mut nodes = vec![1u32];
        let mut before: &[u8] = &[];
        let mut known = PageVec::with_capacity_in(sorted.len(), Pages);
        for &id in &sorted {
            let text = texts.bytes(id);
            let depth = before.iter().zip(text).take_while(|(a, b)| a == b).count();
            nodes.resize(nodes.len().max(text.len() + 1), 0);
            nodes[depth + 1..=text.len()].iter_mut().for_each(|count| *count += 1);
            known.push(depth as u32);
            before = text;
        }
        // Where the next node of each depth goes; one more depth than there is ends the children of the last node.
        let mut next: Vec<u32> = Vec::with_capacity(nodes.len() + 1);
        let mut all = 0;
        for count in nodes {
            next.push(all);
            all += count;
        }
        next.push(all);
        let size = all as usize;
        let (mut labels, mut children) = (filled(0, size), filled(all, size + 1));
        let mut pieces = filled(NONE, size);
        children[0] = 1;
        next[0] = 1;
        for (&id, known) in sorted.iter().zip(known) {
            let text = texts.bytes(id);
            for depth in known as usize + 1..=text.len() {
                let node = next[depth] as usize;
                labels[node] = text[depth - 1];
                children[node] = next[depth + 1];
                next[depth] += 1;
            }
            // The last node of this depth: new, or that of an equal text.
            pieces[next[text.len()] as usize - 1] = id;
        }
        Self { labels, children, pieces }
    }

    /// The piece that `text` is.
    pub(crate) fn get(&self, text: &str) -> Option<u32> {
        let node = text.bytes().try_fold(0, |node, byte| self.child(node, byte))?;
        Some(self.pieces[node]).filter(|&piece| piece != NONE)
    }

    /// The pieces that `text` starts with, the shortest first, each with its length.
    pub(crate) fn prefixes<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (usize, u32)> + 'a {
        let mut node = 0;
        let nodes = text.iter().map_while(move |&byte| {
            node = self.child(node, byte)?;
            Some(self.pieces[node])
        });
        (1..).zip(nodes).filter(|&(_, piece)| piece != NONE)
    }

    #[inline]
    fn child(&self, node: usize, byte: u8) -> Option<usize> {
        let (first, last) = (self.children[node] as usize, self.children[node + 1] as usize);
        let labels = &self.labels[first..last];
        let at = if labels.len() <= FEW {
            labels.iter().position(|&label| label == byte)?
        } else {
            labels.binary_search(&byte).ok()?
        };
        Some(first + at)
    }
}

/// The numbers of `texts` in the order of their bytes, equal ones in that of their numbers.
fn sort(texts: &TextTable) -> PageVec<u32> {
    // Most texts differ in their first bytes, which are compared as one number.
    let key = |id: u32| {
        let bytes = texts.bytes(id);
        let mut key = [0; 16];
        let length = bytes.len().min(HEAD);
        key[..length].copy_from_slice(&bytes[..length]);
        u128::from_be_bytes(key) | u128::from(id)
    };
    let head = |key: &u128| key >> 32;
    let mut keys: PageVec<u128> = PageVec::with_capacity_in(texts.len(), Pages);
    keys.extend((0..texts.len() as u32).map(key));
    keys.sort_unstable();
    for alike in keys.chunk_by_mut(|one, other| head(one) == head(other)).filter(|alike| alike.len() > 1) {
        alike.sort_unstable_by(|one, other| {
            texts.bytes(*one as u32).cmp(texts.bytes(*other as u32)).then_with(|| one.cmp(other))
        });
    }
    let mut sorted = PageVec::with_capacity_in(keys.len(), Pages);
    sorted.extend(keys.iter().map(|&key| key as u32));
    sorted
}
