//! The size of `zlib.compress(data)` to the byte: Whisper's `compression_ratio` divides by it, and a threshold on that
//! ratio decides whether a window is decoded again, so a size that is nearly right is wrong.
//!
//! This is zlib's deflate at level 6 (lazy matching over hash chains; stored, fixed and dynamic blocks by the real tree
//! construction, ties and length limits included) without the bit stream. Names are zlib's. Source: RFC 1950, RFC 1951
//! and zlib 1.2.13 with windowBits 15, memLevel 8.

use crate::huffman::{Tree, BL_CODES};

const MIN_MATCH: usize = 3;
const MAX_MATCH: usize = 258;
const W_SIZE: usize = 1 << 15;
const MAX_DIST: usize = W_SIZE - (MAX_MATCH + MIN_MATCH + 1);
const HASH_SIZE: usize = 1 << 15;
const HASH_SHIFT: u32 = 5;
const NIL: usize = 0;
const TOO_FAR: usize = 4096;

// Level 6 of deflate's configuration table.
const GOOD_LENGTH: usize = 8;
const MAX_LAZY: usize = 16;
const NICE_LENGTH: usize = 128;
const MAX_CHAIN: usize = 128;

const LIT_BUFSIZE: usize = 1 << 14;
const END_BLOCK: usize = 256;
const L_CODES: usize = 286;
const D_CODES: usize = 30;

const EXTRA_LENGTH_BITS: [u8; 29] =
    [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0];
const EXTRA_DISTANCE_BITS: [u8; 30] =
    [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13];
const EXTRA_BL_BITS: [u8; 19] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 3, 7];
const BL_ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Length in bytes of what Python's `zlib.compress(data)` returns.
pub fn compressed_size(data: &[u8]) -> usize {
    const HEADER_AND_CHECKSUM: usize = 2 + 4;
    let mut matcher = Matcher::new(data);
    let mut block = Block::new(0);
    let mut bits = 0;
    let last = matcher.run(|position, symbol| {
        if block.tally(symbol) {
            bits = block.flush(bits, position);
            block = Block::new(position);
        }
    });
    if let Some(literal) = last {
        block.tally(literal); // zlib does not look whether this one fills the block
    }
    bits = block.flush(bits, data.len());
    HEADER_AND_CHECKSUM + (bits + 7) / 8
}

enum Symbol {
    Literal(u8),
    Match { length: usize, distance: usize },
}

/// `deflate_slow` and `longest_match` over the whole input at once: where zlib slides its window, older positions are
/// out of reach (`MAX_DIST`) anyway.
struct Matcher<'a> {
    data: &'a [u8],
    head: Vec<usize>,
    prev: Vec<usize>,
}

impl<'a> Matcher<'a> {
    fn new(data: &'a [u8]) -> Matcher<'a> {
        Matcher { data, head: vec![NIL; HASH_SIZE], prev: vec![NIL; W_SIZE] }
    }

    /// Enter the string at `position`; the previous one with its hash, or NIL.
    fn insert(&mut self, position: usize) -> usize {
        let hash = self.data[position..position + MIN_MATCH]
            .iter()
            .fold(0, |hash, &byte| ((hash << HASH_SHIFT) ^ usize::from(byte)) & (HASH_SIZE - 1));
        let previous = self.head[hash];
        self.prev[position % W_SIZE] = previous;
        self.head[hash] = position;
        previous
    }

    /// The longest match for the string at `start` that beats `best_length`: (length, where it starts).
    fn longest_match(&self, start: usize, mut candidate: usize, mut best_length: usize) -> (usize, usize) {
        let data = self.data;
        let lookahead = data.len() - start;
        let longest = lookahead.min(MAX_MATCH);
        let nice_length = NICE_LENGTH.min(lookahead);
        let limit = start.saturating_sub(MAX_DIST);
        let mut chain_length = if best_length >= GOOD_LENGTH { MAX_CHAIN / 4 } else { MAX_CHAIN };
        let mut match_start = NIL;
        loop {
            let length =
                data[candidate..].iter().zip(&data[start..start + longest]).take_while(|(a, b)| a == b).count();
            if length > best_length {
                match_start = candidate;
                best_length = length;
                if length >= nice_length {
                    break;
                }
            }
            candidate = self.prev[candidate % W_SIZE];
            chain_length -= 1;
            if candidate <= limit || chain_length == 0 {
                break;
            }
        }
        (best_length.min(lookahead), match_start)
    }

    /// Every symbol in order, each with the input position that a block ending after it ends at; a literal that is left
    /// over at the end is returned.
    fn run(&mut self, mut emit: impl FnMut(usize, Symbol)) -> Option<Symbol> {
        let n = self.data.len();
        let mut position = 0;
        let mut match_length = MIN_MATCH - 1;
        let mut match_start = NIL;
        let mut match_available = false;
        while position < n {
            let hash_head = if n - position >= MIN_MATCH { self.insert(position) } else { NIL };
            let (prev_length, prev_match) = (match_length, match_start);
            match_length = MIN_MATCH - 1;
            if hash_head != NIL && prev_length < MAX_LAZY && position - hash_head <= MAX_DIST {
                let (length, start) = self.longest_match(position, hash_head, prev_length);
                match_length = length;
                if start != NIL {
                    match_start = start;
                }
                if match_length == MIN_MATCH && position - match_start > TOO_FAR {
                    match_length = MIN_MATCH - 1;
                }
            }
            if prev_length >= MIN_MATCH && match_length <= prev_length {
                let end = position - 1 + prev_length;
                for inside in position + 1..end {
                    if n - inside >= MIN_MATCH {
                        self.insert(inside);
                    }
                }
                emit(end, Symbol::Match { length: prev_length, distance: position - 1 - prev_match });
                match_available = false;
                match_length = MIN_MATCH - 1;
                position = end;
            } else {
                if match_available {
                    emit(position, Symbol::Literal(self.data[position - 1]));
                }
                match_available = true;
                position += 1;
            }
        }
        match_available.then(|| Symbol::Literal(self.data[n - 1]))
    }
}

/// Symbol counts of one deflate block.
struct Block {
    start: usize,
    n_symbols: usize,
    literals: [u32; L_CODES],
    distances: [u32; D_CODES],
}

impl Block {
    fn new(start: usize) -> Block {
        let mut literals = [0; L_CODES];
        literals[END_BLOCK] = 1;
        Block { start, n_symbols: 0, literals, distances: [0; D_CODES] }
    }

    /// Count a symbol; true when the block is full.
    fn tally(&mut self, symbol: Symbol) -> bool {
        match symbol {
            Symbol::Literal(byte) => self.literals[usize::from(byte)] += 1,
            Symbol::Match { length, distance } => {
                self.literals[END_BLOCK + 1 + length_code(length)] += 1;
                self.distances[distance_code(distance)] += 1;
            }
        }
        self.n_symbols += 1;
        self.n_symbols == LIT_BUFSIZE - 1
    }

    /// `_tr_flush_block`: the stream's length in bits after this block, which ends at input position `end`.
    fn flush(&self, bits: usize, end: usize) -> usize {
        const TYPE_BITS: usize = 3;
        let fixed_literals: Vec<u8> =
            (0..L_CODES).map(|n| [8, 9, 7, 8][[144, 256, 280].iter().filter(|&&from| n >= from).count()]).collect();
        let literals = Tree::build(&self.literals, 15, 257, &EXTRA_LENGTH_BITS, Some(&fixed_literals));
        let distances = Tree::build(&self.distances, 15, 0, &EXTRA_DISTANCE_BITS, Some(&[5; D_CODES]));
        let mut lengths = [0; BL_CODES];
        literals.scan(&mut lengths);
        distances.scan(&mut lengths);
        let lengths = Tree::build(&lengths, 7, 0, &EXTRA_BL_BITS, None);
        let max_blindex = (3..BL_CODES).rev().find(|&i| lengths.lengths[BL_ORDER[i]] != 0).unwrap_or(2);
        let tree_bits = 5 + 5 + 4 + 3 * (max_blindex + 1) + lengths.bits;
        let dynamic = literals.bits + distances.bits + tree_bits;
        let fixed = literals.fixed_bits + distances.fixed_bits;
        let bytes = |length: usize| (length + TYPE_BITS + 7) / 8;
        let stored = end - self.start;
        if stored + 4 <= bytes(dynamic).min(bytes(fixed)) {
            (bits + TYPE_BITS + 7) / 8 * 8 + 8 * (4 + stored)
        } else if bytes(fixed) <= bytes(dynamic) {
            bits + TYPE_BITS + fixed
        } else {
            bits + TYPE_BITS + dynamic
        }
    }
}

/// 3–258 → 0–28.
fn length_code(length: usize) -> usize {
    if length == MAX_MATCH {
        return 28;
    }
    let mut base = MIN_MATCH;
    EXTRA_LENGTH_BITS[..28]
        .iter()
        .position(|&extra| {
            base += 1 << extra;
            length < base
        })
        .expect("a match is at most MAX_MATCH long")
}

/// 1–32768 → 0–29.
fn distance_code(distance: usize) -> usize {
    let mut base = 1;
    EXTRA_DISTANCE_BITS
        .iter()
        .position(|&extra| {
            base += 1 << extra;
            distance < base
        })
        .expect("a match is at most W_SIZE back")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers below `bound` of a linear congruential generator, so that the expected sizes can be had from Python:
    /// `zlib.compress(bytes)` over the same recurrence.
    fn noise(n: usize, bound: u32) -> Vec<u8> {
        let mut state = 12345u32;
        let next = |state: &mut u32| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((*state >> 16) % bound) as u8
        };
        (0..n).map(|_| next(&mut state)).collect()
    }

    #[test]
    fn sizes_are_pythons() {
        let sentence = "And so my fellow Americans, ask not what your country can do for you.";
        let alphabet: Vec<u8> = (0..=255).collect();
        let growing: Vec<u8> = (0..120u32).flat_map(|i| format!("{} ", i * i * i).into_bytes()).collect();
        let fibonacci: Vec<u8> = {
            let mut counts = vec![1usize, 1];
            while counts.len() < 18 {
                counts.push(counts[counts.len() - 1] + counts[counts.len() - 2]);
            }
            counts.iter().enumerate().flat_map(|(i, &n)| vec![b'a' + i as u8; n]).collect()
        };
        for (name, data, expected) in [
            ("empty", Vec::new(), 8),
            ("one byte", b"a".to_vec(), 9),
            ("short", b"Hello, world!".to_vec(), 21),
            ("sentence", sentence.as_bytes().to_vec(), 70),
            ("sentence 30 times", sentence.repeat(30).into_bytes(), 86),
            ("UTF-8", "Grüße aus Köln — 東京から、こんにちは。".repeat(3).into_bytes(), 70),
            ("one letter", vec![b'x'; 5000], 28),
            ("every byte", alphabet.repeat(3), 284),
            ("numbers", growing, 397),
            ("skewed counts", fibonacci, 71),
            ("noise of 256", noise(20_000, 256), 20016),
            ("noise of 64", noise(20_000, 64), 15154),
            ("noise of 4", noise(90_000, 4), 26766),
        ] {
            assert_eq!(compressed_size(&data), expected, "{name}");
        }
    }
}
