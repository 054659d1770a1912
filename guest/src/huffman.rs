//! Huffman codes as zlib's `trees.c` builds them: which of equal counts goes first and how lengths are limited decide
//! the size, so both are zlib's. Names are zlib's.

/// Codes of the alphabet that transmits code lengths.
pub const BL_CODES: usize = 19;

/// A Huffman code over one alphabet, by its code lengths.
pub struct Tree {
    pub lengths: Vec<u8>,
    max_code: usize,
    /// What the block's symbols take in this code, extra bits included.
    pub bits: usize,
    /// The same in the fixed code.
    pub fixed_bits: usize,
}

impl Tree {
    /// `build_tree` and `gen_bitlen`.
    pub fn build(
        frequencies: &[u32],
        max_length: usize,
        extra_base: usize,
        extra: &[u8],
        fixed: Option<&[u8]>,
    ) -> Tree {
        let n_leaves = frequencies.len();
        let n_nodes = 2 * n_leaves + 1;
        let mut frequency = frequencies.to_vec();
        frequency.resize(n_nodes, 0);
        let mut depth = vec![0u8; n_nodes];
        let mut parent = vec![0usize; n_nodes];
        let (mut bits, mut fixed_bits) = (0isize, 0isize);

        // At least two codes, forced ones with a count that is taken off again. Slot 0 stays empty: a node's children are at twice its place and one on.
        let mut heap: Vec<usize> = vec![0];
        heap.extend((0..n_leaves).filter(|&n| frequency[n] != 0));
        let mut max_code = if heap.len() > 1 { heap[heap.len() - 1] as isize } else { -1 };
        while heap.len() < 3 {
            let node = if max_code < 2 {
                max_code += 1;
                max_code as usize
            } else {
                0
            };
            heap.push(node);
            frequency[node] = 1;
            bits -= 1;
            if let Some(fixed) = fixed {
                fixed_bits -= isize::from(fixed[node]);
            }
        }
        let max_code = max_code as usize;

        let smaller = |frequency: &[u32], depth: &[u8], n: usize, m: usize| {
            frequency[n] < frequency[m] || (frequency[n] == frequency[m] && depth[n] <= depth[m])
        };
        let sift_down = |heap: &mut [usize], frequency: &[u32], depth: &[u8], mut place: usize| {
            let node = heap[place];
            let last = heap.len() - 1;
            let mut child = 2 * place;
            while child <= last {
                if child < last && smaller(frequency, depth, heap[child + 1], heap[child]) {
                    child += 1;
                }
                if smaller(frequency, depth, node, heap[child]) {
                    break;
                }
                heap[place] = heap[child];
                place = child;
                child *= 2;
            }
            heap[place] = node;
        };

        for place in (1..=(heap.len() - 1) / 2).rev() {
            sift_down(&mut heap, &frequency, &depth, place);
        }
        // Nodes in the order they leave the heap: least frequent first.
        let mut sorted = Vec::with_capacity(n_nodes);
        let mut node = n_leaves;
        loop {
            let n = heap[1];
            heap[1] = heap.pop().expect("the heap holds at least two nodes");
            sift_down(&mut heap, &frequency, &depth, 1);
            let m = heap[1];
            sorted.extend([n, m]);
            frequency[node] = frequency[n] + frequency[m];
            depth[node] = depth[n].max(depth[m]) + 1;
            parent[n] = node;
            parent[m] = node;
            heap[1] = node;
            node += 1;
            sift_down(&mut heap, &frequency, &depth, 1);
            if heap.len() < 3 {
                break;
            }
        }
        let root = heap[1];

        let mut lengths = vec![0u8; n_nodes];
        let mut counts = [0usize; 16];
        let mut overflow = 0;
        for &n in sorted.iter().rev() {
            let mut length = if parent[n] == root { 1 } else { usize::from(lengths[parent[n]]) + 1 };
            if length > max_length {
                length = max_length;
                overflow += 1;
            }
            lengths[n] = length as u8;
            if n >= n_leaves {
                continue;
            }
            counts[length] += 1;
            let extra_bits = if n >= extra_base { isize::from(extra[n - extra_base]) } else { 0 };
            bits += frequency[n] as isize * (length as isize + extra_bits);
            if let Some(fixed) = fixed {
                fixed_bits += frequency[n] as isize * (isize::from(fixed[n]) + extra_bits);
            }
        }
        if overflow > 0 {
            while overflow > 0 {
                let length = (1..max_length).rev().find(|&l| counts[l] != 0).expect("a code shorter than the limit");
                counts[length] -= 1;
                counts[length + 1] += 2;
                counts[max_length] -= 1;
                overflow -= 2;
            }
            let mut leaves = sorted.iter().filter(|&&n| n < n_leaves);
            for length in (1..=max_length).rev() {
                for &n in leaves.by_ref().take(counts[length]) {
                    bits += (length as isize - isize::from(lengths[n])) * frequency[n] as isize;
                    lengths[n] = length as u8;
                }
            }
        }
        lengths.truncate(n_leaves);
        Tree { lengths, max_code, bits: bits as usize, fixed_bits: fixed_bits as usize }
    }

    /// `scan_tree`: count the run-length codes that transmit this tree.
    pub fn scan(&self, counts: &mut [u32; BL_CODES]) {
        const REP_3_6: usize = 16;
        const REPZ_3_10: usize = 17;
        const REPZ_11_138: usize = 18;
        let mut previous = None;
        let mut rest = &self.lengths[..=self.max_code];
        while let Some(&length) = rest.first() {
            let (most, least) = match (length, previous) {
                (0, _) => (138, 3),
                (_, Some(previous)) if previous == length => (6, 3),
                _ => (7, 4),
            };
            let run = rest.iter().take(most).take_while(|&&l| l == length).count();
            if run < least {
                counts[usize::from(length)] += run as u32;
            } else if length != 0 {
                if previous != Some(length) {
                    counts[usize::from(length)] += 1;
                }
                counts[REP_3_6] += 1;
            } else {
                counts[if run <= 10 { REPZ_3_10 } else { REPZ_11_138 }] += 1;
            }
            previous = Some(length);
            rest = &rest[run..];
        }
    }
}
