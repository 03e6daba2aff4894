//! How well the integers do beside the floats.
//!
//! **Invariant**: every photo given counts once.
use crate::weights::quantize::photos::Photo;
use std::fmt::Write as _;
use std::path::Path;

/// Counts over photos.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Score {
    photos: usize,
    agreed: usize,
    labelled: usize,
    float_right: usize,
    integer_right: usize,
    /// Sum of `|integer − float| / |float|` over the photos' logits, Euclidean.
    error: f64,
    /// Name and first class of both where they differ.
    differing: Vec<(String, usize, usize)>,
}

impl Score {
    /// Counts one photo.
    pub(super) fn add(&mut self, photo: &Photo, float: &[f32], integer: &[f32]) {
        let (expected, got) = (largest(float), largest(integer));
        self.photos += 1;
        self.agreed += usize::from(expected == got);
        self.labelled += usize::from(!photo.accepted.is_empty());
        self.float_right += usize::from(photo.accepted.contains(&expected));
        self.integer_right += usize::from(photo.accepted.contains(&got));
        let length =
            |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let apart = length(&mut float.iter().zip(integer).map(|(a, b)| a - b));
        self.error += apart / length(&mut float.iter().copied()).max(f64::MIN_POSITIVE);
        if expected != got {
            self.differing.push((photo.name.clone(), expected, got));
        }
    }

    /// A few lines for a person.
    pub(super) fn report(&self, folder: &Path) -> String {
        let percent = |part: usize, all: usize| 100.0 * part as f64 / all.max(1) as f64;
        let mut text = format!(
            "{}: {} photos, top 1 agrees with float on {} ({:.1} %), logits {:.1} % apart on average\n",
            folder.display(),
            self.photos,
            self.agreed,
            percent(self.agreed, self.photos),
            100.0 * self.error / self.photos.max(1) as f64
        );
        if self.labelled > 0 {
            let (float, integer) = (self.float_right, self.integer_right);
            let _ =
                writeln!(text, "  of {} labels, float has {float} right and int8 {integer}", self.labelled);
        }
        for (name, float, integer) in &self.differing {
            let _ = writeln!(text, "  {name}: float says class {float}, int8 {integer}");
        }
        text
    }
}

/// Index of the largest value, the first of equals.
fn largest(values: &[f32]) -> usize {
    (0..values.len()).fold(0, |best, at| if values[at] > values[best] { at } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_and_labels_are_counted() {
        let photo = |name: &str, accepted: &[usize]| Photo {
            name: name.to_owned(),
            pixels: Vec::new(),
            accepted: accepted.to_vec(),
        };
        let mut score = Score::default();
        score.add(&photo("a.jpg", &[0, 2]), &[0.0, 3.0, 4.0], &[0.0, 3.0, 4.0]);
        score.add(&photo("b.jpg", &[1]), &[0.0, 3.0, 4.0], &[0.0, 4.5, 4.0]);
        score.add(&photo("c.jpg", &[]), &[5.0, 5.0, 0.0], &[5.0, 5.0, 0.0]);
        let expected = "\
p: 3 photos, top 1 agrees with float on 2 (66.7 %), logits 10.0 % apart on average
  of 2 labels, float has 1 right and int8 2
  b.jpg: float says class 2, int8 1
";
        assert_eq!(score.report(Path::new("p")), expected);
    }
}
