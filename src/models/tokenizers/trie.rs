//! The pieces of a vocabulary, found by the beginning of a text.
//!
//! A byte trie in four arrays. Nodes lie in order of depth, so the children of a node are neighbours, and those of the
//! next node follow: a node needs the place of its first child only. A vocabulary of 250,000 pieces takes 8 MB.

/// The piece of a node where none ends.
const NONE: u32 = u32::MAX;
/// Children up to which a search looks at one after the other.
const FEW: usize = 8;

/// Texts, one after the other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Texts {
    all: String,
    ends: Vec<u32>,
}

impl Texts {
    /// Adds a text; false when there is no room for its numbers.
    pub(crate) fn push(&mut self, text: &str) -> bool {
        self.all.push_str(text);
        let Ok(end) = u32::try_from(self.all.len()) else { return false };
        self.ends.push(end);
        true
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn get(&self, id: usize) -> Option<&str> {
        let end = *self.ends.get(id)? as usize;
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        self.all.get(start..end)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).filter_map(|id| self.get(id))
    }

    fn bytes(&self, id: u32) -> &[u8] {
        self.get(id as usize).unwrap_or_default().as_bytes()
    }

    /// Gives back what growing left over.
    pub(crate) fn shrink(&mut self) {
        self.all.shrink_to_fit();
        self.ends.shrink_to_fit();
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Trie {
    /// The byte that leads to a node.
    labels: Box<[u8]>,
    /// A node's first child; the last entry ends the children of the last node.
    children: Box<[u32]>,
    /// The piece that ends at a node.
    pieces: Box<[u32]>,
}

impl Trie {
    /// Of equal texts the last one counts. None of them is empty.
    pub(crate) fn new(texts: &Texts) -> Self {
        let sorted = sort(texts);
        let (mut labels, mut children, mut pieces) = (vec![0u8], Vec::new(), Vec::new());
        // The pieces below each node of one depth, as ranges of `sorted`.
        let mut level = vec![(0, sorted.len())];
        let mut depth = 0;
        while !level.is_empty() {
            let mut next = Vec::new();
            for (mut at, end) in level {
                children.push(labels.len() as u32);
                let mut piece = NONE;
                while at < end && texts.bytes(sorted[at]).len() == depth {
                    piece = sorted[at];
                    at += 1;
                }
                pieces.push(piece);
                while at < end {
                    let (start, label) = (at, texts.bytes(sorted[at])[depth]);
                    while at < end && texts.bytes(sorted[at])[depth] == label {
                        at += 1;
                    }
                    labels.push(label);
                    next.push((start, at));
                }
            }
            (level, depth) = (next, depth + 1);
        }
        children.push(labels.len() as u32);
        Self { labels: labels.into(), children: children.into(), pieces: pieces.into() }
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
fn sort(texts: &Texts) -> Vec<u32> {
    let head = |id: u32| {
        let bytes = texts.bytes(id);
        let mut head = [0; 8];
        let length = bytes.len().min(8);
        head[..length].copy_from_slice(&bytes[..length]);
        u64::from_be_bytes(head)
    };
    let mut order: Vec<(u64, u32)> = (0..texts.len() as u32).map(|id| (head(id), id)).collect();
    order.sort_unstable_by(|(a, one), (b, other)| {
        a.cmp(b).then_with(|| texts.bytes(*one).cmp(texts.bytes(*other))).then_with(|| one.cmp(other))
    });
    order.into_iter().map(|(_, id)| id).collect()
}
