//! Which row of the table of relative positions a distance has.

/// The rows of the table of relative positions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buckets {
    /// Half of the rows: those of one direction.
    pub(super) span: usize,
    /// Distances up to half of so many have rows of their own; farther ones share rows.
    pub(super) buckets: Option<usize>,
    /// The farthest distance that has a row.
    pub(super) farthest: usize,
    /// Whether the rows are normalized.
    pub(super) normed: bool,
}

impl Buckets {
    /// The row of a key at `distance = query - key`. Computed in f32, as transformers does: the rounding decides the row.
    pub(super) fn row(self, distance: i64) -> usize {
        let last = 2 * self.span as i64 - 1;
        let bucket = match self.buckets {
            Some(buckets) if distance.unsigned_abs() as usize > buckets / 2 => {
                let middle = (buckets / 2) as f32;
                let octaves = (distance.unsigned_abs() as f32 / middle).ln()
                    / ((self.farthest as i64 - 1) as f32 / middle).ln();
                distance.signum() * ((octaves * (middle - 1.0)).ceil() + middle) as i64
            }
            _ => distance,
        };
        bucket.saturating_add(self.span as i64).clamp(0, last) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first distance of each bucket from half of the buckets on, as transformers' `make_log_bucket_position` has it.
    const FIRST: [i64; 129] = [
        128, 129, 130, 131, 133, 134, 136, 137, 139, 140, 142, 143, 145, 146, 148, 150, 151, 153, 155, 156,
        158, 160, 161, 163, 165, 167, 169, 170, 172, 174, 176, 178, 180, 182, 184, 186, 188, 190, 192, 194,
        196, 198, 201, 203, 205, 207, 210, 212, 214, 216, 219, 221, 224, 226, 229, 231, 234, 236, 239, 241,
        244, 247, 249, 252, 255, 258, 260, 263, 266, 269, 272, 275, 278, 281, 284, 287, 290, 294, 297, 300,
        303, 307, 310, 313, 317, 320, 324, 327, 331, 335, 338, 342, 346, 349, 353, 357, 361, 365, 369, 373,
        377, 381, 385, 390, 394, 398, 403, 407, 411, 416, 420, 425, 430, 434, 439, 444, 449, 454, 459, 464,
        469, 474, 479, 484, 490, 495, 500, 506, 512,
    ];

    #[test]
    fn rows_of_distances_are_those_of_transformers() {
        let check = |relative: Buckets, first: &[i64], until: i64| {
            let (middle, span) = (first[0], relative.span as i64);
            for distance in 0..until {
                let past = first.iter().rposition(|&first| first <= distance);
                let bucket = past.map_or(distance, |past| middle + past as i64);
                let row = |bucket: i64| (bucket + span).clamp(0, 2 * span - 1) as usize;
                assert_eq!(relative.row(distance), row(bucket), "{distance}");
                assert_eq!(relative.row(-distance), row(-bucket), "-{distance}");
            }
        };
        let of = |buckets: usize, farthest| Buckets {
            span: buckets,
            buckets: Some(buckets),
            farthest,
            normed: true,
        };
        check(of(256, 512), &FIRST, 513);
        check(of(8, 32), &[4, 5, 8, 16, 32, 62], 96);
        check(of(6, 12), &[3, 4, 6, 12, 22], 36);
        let plain = Buckets { span: 9, buckets: None, farthest: 9, normed: false };
        assert_eq!([-20, -9, -8, 0, 8, 9, 20].map(|distance| plain.row(distance)), [0, 0, 1, 9, 17, 17, 17]);
    }
}
