//! One rate to another: band-limited interpolation (Smith and Gossett, 1984), a sinc under a squared cosine, with the
//! defaults of torchaudio's `resample`. In f64 with fixed order; the same bits on every machine.

use super::Clip;

/// Zero crossings of the sinc on each side, and the part of the narrower band that passes.
const CROSSINGS: f64 = 6.0;
const ROLLOFF: f64 = 0.99;

/// `count` values of the clip at `rate`, the middle of one on the middle of the other: what is too long loses both ends, and
/// around what is too short there is silence.
pub(super) fn middle(clip: &Clip, rate: u32, count: usize) -> Vec<f64> {
    let (from, to) = (u64::from(clip.rate), u64::from(rate));
    let divisor = gcd(from, to);
    let (from, to) = ((from / divisor) as i64, (to / divisor) as i64);
    let len = clip.samples.len() as i64;
    let whole = (len * to + from - 1) / from;
    let start = (whole - count as i64).div_euclid(2);
    let value = |at: i64| usize::try_from(at).ok().and_then(|at| clip.samples.get(at)).map_or(0.0, |v| f64::from(*v));
    if from == to {
        return (start..start + count as i64).map(value).collect();
    }
    let base = ROLLOFF * from.min(to) as f64;
    let reach = (CROSSINGS * from as f64 / base).ceil() as i64;
    // Output j lies at j·from/to of the input: as many different distances to its neighbours as `to`.
    let taps = |phase: i64| -> Vec<f64> {
        (-reach..=reach)
            .map(|i| base / from as f64 * kernel(base * (i as f64 / from as f64 - phase as f64 / (from * to) as f64)))
            .collect()
    };
    let mut phases: Vec<Option<Vec<f64>>> = vec![None; to as usize];
    (start..start + count as i64)
        .map(|j| {
            let (near, phase) = ((j * from).div_euclid(to), (j * from).rem_euclid(to));
            let taps = phases[phase as usize].get_or_insert_with(|| taps(phase));
            taps.iter().zip(near - reach..).map(|(tap, at)| tap * value(at)).sum()
        })
        .collect()
}

fn kernel(t: f64) -> f64 {
    if t.abs() >= CROSSINGS {
        return 0.0;
    }
    let window = libm::cos(t * std::f64::consts::PI / CROSSINGS / 2.0);
    let angle = t * std::f64::consts::PI;
    window * window * if angle == 0.0 { 1.0 } else { libm::sin(angle) / angle }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(rate: u32, hertz: f64, count: usize) -> Clip {
        let at = |i: usize| (std::f64::consts::TAU * hertz * i as f64 / f64::from(rate)).sin() as f32;
        Clip { rate, samples: (0..count).map(at).collect() }
    }

    #[test]
    fn a_tone_stays_the_same_tone_at_another_rate_and_what_does_not_fit_is_gone() {
        for (from, to) in [(44_100, 16_000), (8_000, 16_000), (22_050, 8_000), (16_000, 48_000)] {
            let got = middle(&tone(from, 500.0, from as usize), to, to as usize);
            let worst = (1000..to as usize - 1000).map(|i| {
                let want = (std::f64::consts::TAU * 500.0 * i as f64 / f64::from(to)).sin();
                (got[i] - want).abs()
            });
            let worst = worst.fold(0.0, f64::max);
            assert!(worst < 0.01, "{from} to {to}: {worst}");
        }
        let high = middle(&tone(44_100, 6_000.0, 44_100), 8_000, 8_000);
        assert!(high[500..7500].iter().all(|v| v.abs() < 0.02), "above half the rate, where it would fold back");
    }

    #[test]
    fn the_middle_is_kept_and_silence_put_around_what_is_short() {
        let clip = Clip { rate: 8_000, samples: vec![1.0, 2.0, 3.0, 4.0, 5.0] };
        assert_eq!(middle(&clip, 8_000, 3), [2.0, 3.0, 4.0]);
        assert_eq!(middle(&clip, 8_000, 9), [0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 0.0]);
        let longer = middle(&clip, 16_000, 30);
        assert_eq!(longer.len(), 30);
        assert!((longer[14] - 3.0).abs() < 0.3, "{longer:?}");
    }
}
