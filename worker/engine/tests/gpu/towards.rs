//! Averages, pulls and squares of what lies on the GPU, and what lies beside values that stay there: the host's bits.

use tl_engine::{
    gpu::{
        Placed,
        ops::{self, Began, Pull},
    },
    nn::{self, Builder, Flat, Layer, Layout, Packs, Pass, Store, Tape, host},
    optim::{self, Group, Resident},
};

use crate::{device, numbers, same, shared, up};

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn averages_move_towards_values_with_the_bits_of_the_host() {
    let Some(device) = device() else { return };
    for (count, keep) in [(1, 0.0f64), (700, 0.9998), (70_001, 0.9)] {
        let (mut averages, values) = (numbers(1, count), numbers(2, count));
        let (mut there, now) = (up(device, &averages, &[count]), up(device, &values, &[count]));
        let towards = (1.0 - keep) as f32;
        for _ in 0..2 {
            averages.iter_mut().zip(&values).for_each(|(a, n)| *a += towards * (n - *a));
            ops::average(device, &mut there, &now, towards).unwrap();
        }
        assert_eq!(bits(&device.download(&there).unwrap()), bits(&averages), "{count}");
    }
    let mut short = device.zeros(&[6]).unwrap();
    assert!(ops::average(device, &mut short, &up(device, &[1.0; 7], &[7]), 0.5).is_err());
}

/// Blocks of 4096 in eight chains each, neighbours added to neighbours.
fn added(terms: &[f64]) -> f64 {
    let block = |terms: &[f64]| {
        let mut chains = [0.0f64; 8];
        terms.iter().enumerate().for_each(|(i, term)| chains[i % 8] += term);
        chains.iter().fold(0.0, |sum, chain| sum + chain)
    };
    let mut sums: Vec<f64> = terms.chunks(4096).map(block).collect();
    while sums.len() > 1 {
        sums = sums.chunks(2).map(|pair| if let [a, b] = pair { a + b } else { pair[0] }).collect();
    }
    sums[0]
}

#[test]
fn gradients_are_pulled_back_run_by_run_with_the_bits_of_the_host() {
    let Some(device) = device() else { return };
    let count = 19_000;
    let all = [1, 2, 3, 4].map(|seed| numbers(seed, count));
    let [mean, now, start, f] = &all;
    let there = all.each_ref().map(|values| up(device, values, &[count]));
    let [_, there_now, there_start, there_f] = &there;
    let began = Began { start: there_start, importance: Some(there_f) };
    // Less than a chain, a block and its neighbour, several blocks twice, and some numbers that nothing pulls.
    let pull = |run, weight, important| Pull { run, weight, important };
    let pulls = [
        pull(0..3, 0.3f32, false),
        pull(3..4100, 2.0, true),
        pull(4200..18_999, 0.01, false),
        pull(4200..18_999, 300.0, true),
    ];
    let (mut want, mut sums) = (mean.clone(), Vec::new());
    for Pull { run, weight, important } in &pulls {
        let mut terms = Vec::new();
        for i in run.clone() {
            let away = now[i] - start[i];
            let back = if *important { weight * f[i] * away } else { weight * away };
            want[i] += back;
            terms.push(f64::from(back) * f64::from(away));
        }
        sums.push(added(&terms));
    }
    let mut pulled = up(device, mean, &[count]);
    let got = ops::pull(device, &mut pulled, there_now, began, &pulls).unwrap();
    assert_eq!(bits(&device.download(&pulled).unwrap()), bits(&want));
    let [got, want_sums] = [got, sums].map(|all| all.iter().map(|v| v.to_bits()).collect::<Vec<u64>>());
    assert_eq!(got, want_sums);
    assert!(want[18_999] == mean[18_999] && want[4150] == mean[4150] && want[4300] != mean[4300]);
    assert!(ops::pull(device, &mut pulled, there_now, began, &[]).unwrap().is_empty());
    let unknown = Began { importance: None, ..began };
    let outside = [pull(5..5, 1.0, false), pull(5..19_001, 1.0, false)].map(|bad| (began, bad));
    for (began, bad) in outside.into_iter().chain([(unknown, pulls[1].clone())]) {
        assert!(ops::pull(device, &mut pulled, there_now, began, &[bad]).is_err());
    }
}

#[test]
fn squares_are_added_up_where_gradients_lie() {
    let Some(device) = shared() else { return };
    let grains = [1, 2, 3].map(|seed| numbers(seed, 301));
    let placed = |values: &[f32]| Flat::Device(Placed::new(device.clone(), up(device, values, &[values.len()])));
    let mut sums = [None, None];
    for grain in &grains {
        let [here, there] = sums;
        let of = [Flat::Host(grain.clone()).squared(here).unwrap(), placed(grain).squared(there).unwrap()];
        sums = of.map(Some);
    }
    let [Some(here), Some(there)] = sums else { panic!("three of each") };
    assert!(here.is_here() && !there.is_here());
    let want: Vec<f32> = (0..301).map(|i| grains.iter().fold(0.0, |sum, g| sum + g[i] * g[i])).collect();
    assert_eq!(bits(&here.into_host().unwrap()), bits(&want));
    assert_eq!(bits(&there.into_host().unwrap()), bits(&want));
    assert!(placed(&grains[0]).squared(Some(placed(&[1.0; 300]))).is_err());
}

#[test]
fn what_lies_beside_values_that_stay_comes_down_to_its_place_and_values_are_seen_and_put() {
    let Some(device) = shared() else { return };
    let group = |values, gradient| Group { values, gradient, lr_scale: 1.0, decays: true };
    let groups = [group(3..10, 0..7), group(20..25, 7..12)];
    let (first, other) = (numbers(1, 30), numbers(2, 30));
    let mut values = first.clone();
    let mut moments = (optim::find("sgd").init)(30);
    let mut there = Resident::new(device, &groups, &mut values, &moments).unwrap();
    let beside = there.lay(&other).unwrap();
    same(device, &beside, &[&other[3..10], &other[20..25]].concat());
    let mut back = vec![0.0; 30];
    there.bring(&beside, &mut back).unwrap();
    let inside = |i: usize| (3..10).contains(&i) || (20..25).contains(&i);
    assert!((0..30).all(|i| back[i] == if inside(i) { other[i] } else { 0.0 }));
    assert_eq!(there.look(7..12).unwrap(), first[20..25]);
    there.put(8..10, &[5.0, 6.0]).unwrap();
    assert!(there.put(8..10, &[5.0]).is_err() && there.look(11..13).is_err());
    let held = there.values().clone();
    assert!(there.put(8..10, &[7.0, 8.0]).is_err(), "somebody holds them");
    drop(held);
    there.settle(&mut values, &mut moments).unwrap();
    let mut want = first;
    want[21..23].copy_from_slice(&[5.0, 6.0]);
    assert_eq!(values, want);
}

#[test]
fn values_that_are_lent_show_in_no_pass_but_theirs() {
    let Some(device) = shared() else { return };
    let mut b = Builder::new(3);
    let (trained, frozen) = (b.linear("trained", (5, 4)), b.linear("frozen", (4, 3)));
    let (store, mut params) = (b.store, Vec::new());
    trained.params(&mut params);
    let (layout, packs) = (Layout::new(&store, &params, &[]), Packs::default());
    let x = nn::Array::from(Placed::new(device.clone(), up(device, &numbers(1, 10), &[2, 5])));
    let through = |pass: &Pass<'_>| {
        let y = trained.forward(&x, pass, &mut Tape::default()).unwrap();
        let y = frozen.forward(&y, pass, &mut Tape::default()).unwrap();
        host(&y.to_tensor().unwrap()).unwrap().to_vec()
    };
    let said = |packs: &Packs| through(&Pass { layout: Some(&layout), packs: Some(packs), ..Pass::eval(&store) });
    let other = numbers(9, layout.params_len());
    let with = |values: &[f32]| {
        let mut store = store.clone();
        layout.trained().for_each(|(id, slot)| {
            let at = store.params[id.0].range.clone();
            store.values[at].copy_from_slice(&values[slot]);
        });
        store
    };
    let apart = |store: &Store| through(&Pass::eval(store));
    let lent = Placed::new(device.clone(), up(device, &other, &[other.len()]));
    let (own, moved) = (apart(&store), apart(&with(&other)));
    assert_ne!(own, moved);
    // In a step of several grains, what is trained is kept: not that of others.
    packs.begin(&layout, 2);
    for _ in 0..2 {
        assert_eq!((said(&packs), packs.lend(&layout, &lent, || said(&packs))), (own.clone(), moved.clone()));
    }
    // The same where a run's values stay there.
    let run = numbers(10, layout.params_len());
    let stays = Placed::new(device.clone(), up(device, &run, &[run.len()]));
    packs.end(&layout);
    packs.take_from(&layout, Some(&stays));
    let of_run = apart(&with(&run));
    let got = [said(&packs), packs.lend(&layout, &lent, || said(&packs)), said(&packs)];
    assert_eq!(got, [of_run.clone(), moved, of_run]);
    assert_eq!(packs.resident().unwrap().download().unwrap(), run);
    packs.take_from(&layout, None);
    assert!(packs.resident().is_none());
}
