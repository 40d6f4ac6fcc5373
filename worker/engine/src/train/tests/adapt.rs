//! Runs that bring a network to another domain.

use super::*;

/// Two stages, batch-norms that learn, dropout, views, an odd batch and a tail, target samples that run out in the middle
/// of a step.
const JOB: &str = concat!(
    r#"
schema = 1
job = { name = "t", kind = "adapt", seed = 3 }
data = { format = "generated", train = "source", val = "source", batch = 23, grains = 5, params = { train_samples = 8, val_samples = 5 }, augment = { flip = true, views = 2 }, target = { train = "shifted", val = "shifted", params = { train_samples = 5, val_samples = 4 } } }
model = { backbone = "small_cnn", head = { hidden = [16], dropout = 0.3, norm = "batch" } }
objective = { OBJECTIVE }
"#,
    stages!("top", r#"["head", "block3"]"#, "0.003")
);

const METHODS: [&str; 9] = [
    "method = \"dann\", hidden = 32",
    "method = \"cdan\", hidden = 32",
    "method = \"mmd\"",
    "method = \"mmd\", estimator = \"quadratic\"",
    "method = \"coral\", variant = \"domainbed\"",
    "method = \"mcc\"",
    "method = \"self_training\", threshold = 0.2",
    "method = \"direct\"",
    "method = \"statistics\"",
];

#[test]
fn every_method_gives_the_same_file_for_any_number_of_ranks() {
    let mut files = std::collections::BTreeSet::new();
    let others = other_methods("adapt", &METHODS);
    for (i, method) in METHODS.into_iter().chain(others.iter().map(String::as_str)).enumerate() {
        let job = JOB.replace("OBJECTIVE", method);
        let job = if method.contains("self") { format!("{job}[modifiers.ema]\ndecay = 0.9\n") } else { job };
        let mut wanted = None;
        for world in [1, 2 + i % 2] {
            let dir = tempfile::tempdir().unwrap();
            let report = train(&job, world, world == 3, dir.path(), &[], &Recorder::default())
                .unwrap_or_else(|e| panic!("{method}: {e}"));
            let target = report.target.clone().expect("the other domain is judged");
            assert_eq!(target.samples, 32, "{method}");
            // What is told of the other domain is the same too: density, distance, picks.
            let told = (report.shift.unwrap(), report.selection, report.history);
            let got = (model_of(dir.path()), report.evaluation, target, told);
            assert_eq!(wanted.get_or_insert_with(|| got.clone()), &got, "{method}, {world} ranks");
            let file = std::fs::read(dir.path().join("work/model/model.safetensors")).unwrap();
            let names = safetensors::SafeTensors::deserialize(&file).unwrap();
            assert!(names.names().iter().all(|n| !n.starts_with("objective")), "{method}");
        }
        assert!(files.insert(wanted.unwrap().0.to_hex().to_string()), "{method} changes nothing");
    }
}

/// Where no batch-norm learns, what they change is the rounding of sums at most, and a look at the job says so.
#[test]
fn samples_that_only_pass_change_batch_norms_and_nothing_else() {
    let told = |method: &str, learn: bool| {
        let mut job = JOB.replace("OBJECTIVE", method);
        if !learn {
            job = job.replace(", norm = \"batch\"", "").replace("bn = \"train\"", "bn = \"affine_only\"");
        }
        let dir = tempfile::tempdir().unwrap();
        let plan = crate::train::probe::probe(&config(&job, dir.path(), "cache", Vec::new())).unwrap();
        let warned = plan.warnings.iter().filter(|w| w.contains("change nothing there")).count();
        let report = train(&job, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
        (report.evaluation.loss, warned)
    };
    for (learn, warnings) in [(false, 2), (true, 0)] {
        let ((direct, none), (passed, warned)) = (told(METHODS[7], learn), told(METHODS[8], learn));
        assert_eq!((none, warned), (0, warnings), "one for each stage");
        let apart = (direct - passed).abs();
        assert!(if learn { apart > 1e-3 } else { apart < 1e-4 }, "{learn}: {direct} {passed}");
    }
}

#[test]
fn a_run_that_adapts_goes_on_where_it_stopped() {
    let job = JOB.replace("OBJECTIVE", METHODS[0]);
    let job = job.replace("objective =", "checkpoint = { every = 2 }\nobjective =");
    let [wanted, got] = gone_on(&job, 5, [2, 3]);
    assert!(got.shift.as_ref().is_some_and(|s| s.before.is_some()) && got.shift == wanted.shift);
}

#[test]
fn the_densest_epoch_goes_out_and_both_domains_are_shown_before_and_after() {
    let stop = "[stop]\nmonitor = \"target.snd\"\nrestore_best = true\n[[stage]]\nname = \"top\"";
    let job = JOB.replace("OBJECTIVE", METHODS[2]).replace("[[stage]]\nname = \"top\"", stop);
    let job = job.replace("epochs = 2", "epochs = 4").replace("lr = 0.003", "lr = 0.01");
    let dir = tempfile::tempdir().unwrap();
    let report = train(&job, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
    let last: Vec<_> = report.history.iter().filter(|h| h.stage == "all").collect();
    assert!(last.iter().all(|h| h.values["target.snd"] > 0.0));
    let picked = |name: &str| report.selection.iter().find(|p| p.criterion == name).unwrap();
    let densest = last.iter().fold(last[0], |a, b| if b.values["target.snd"] > a.values["target.snd"] { b } else { a });
    assert_eq!((picked("target.snd").epoch, picked("target.snd").used), (densest.epoch, true));
    // It is that epoch that is judged at the end.
    assert_eq!(report.target.as_ref().unwrap().accuracy, densest.values["target.accuracy"]);
    let best = last.iter().map(|h| h.values["target.accuracy"]).fold(0.0, f64::max);
    assert_eq!((picked("oracle").value, picked("oracle").used), (Some(best), false));
    assert_eq!(
        (picked("the model").epoch, picked("the model").accuracy),
        (densest.epoch, picked("target.snd").accuracy)
    );
    let shift = report.shift.as_ref().unwrap();
    let before = shift.before.as_ref().unwrap();
    assert_eq!(shift.after.target_accuracy, Some(densest.values["target.accuracy"]));
    // Eight classes and a head that has learned nothing.
    assert!(before.source_accuracy < 0.4 && shift.after.source_accuracy == report.evaluation.accuracy);
    assert!(before.points.iter().chain(&shift.after.points).all(|p| p.len() == 40), "all of the smaller part");
    for picture in crate::picture::ALL {
        let svg = std::fs::read_to_string(dir.path().join("work/model").join(picture.file));
        assert_eq!(svg.is_ok_and(|s| s.starts_with("<svg")), (picture.draw)(&report).unwrap().is_some());
    }
    let text = std::fs::read_to_string(dir.path().join("work/model/report.txt")).unwrap();
    assert!(text.contains("before: A-distance") && text.contains("oracle"), "{text}");
}

/// Neither what is validated nor which views there are says how far apart the domains lie.
#[test]
fn domains_are_compared_by_samples_that_are_learned_from_as_they_are() {
    let job = JOB.replace("OBJECTIVE", METHODS[7]).replace("epochs = 2", "epochs = 1");
    let apart = |job: &str| {
        let dir = tempfile::tempdir().unwrap();
        let shift = train(job, 1, false, dir.path(), &[], &Recorder::default()).unwrap().shift.unwrap();
        [shift.before.unwrap(), shift.after].map(|apart| (apart.a_distance, apart.samples, apart.points))
    };
    let usual = apart(&job);
    // 64 of the source are learned from, and 40 of the other domain.
    assert_eq!([usual[0].1, usual[1].1], [40, 40]);
    assert_eq!(apart(&job.replace("val_samples = 5", "val_samples = 2")), usual);
    // Another training, but the same network before it.
    assert_eq!(apart(&job.replace("views = 2", "views = \"fresh\""))[0], usual[0]);
}

#[test]
fn who_compares_gradients_looks_at_no_domain_before() {
    let job = JOB.replace("OBJECTIVE", METHODS[7]).replace("epochs = 2", "epochs = 1");
    for compares in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let link = Recorder { compares, ..Recorder::default() };
        let report = train(&job, 1, false, dir.path(), &[], &link).unwrap();
        assert_eq!(report.shift.unwrap().before.is_none(), compares);
    }
}

/// Whatever the job goes by, and however it restores, the model is of the epoch that the report says.
#[test]
fn the_epoch_that_the_model_is_of_is_always_said() {
    let stops = [
        "[stop]\nmonitor = \"val.loss\"\nrestore_best = true\n",
        "[stop]\nmonitor = \"target.entropy\"\nrestore_best = true\nmin_delta = 100\n",
        "",
    ];
    for (which, stop) in stops.into_iter().enumerate() {
        let job = JOB.replace("OBJECTIVE", METHODS[7]);
        let job = job.replace("[[stage]]\nname = \"top\"", &format!("{stop}[[stage]]\nname = \"top\""));
        let dir = tempfile::tempdir().unwrap();
        let report = train(&job, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
        let of = |name: &str| report.selection.iter().find(|p| p.criterion == name).unwrap();
        let used: Vec<_> = report.selection.iter().filter(|p| p.used).map(|p| p.criterion.as_str()).collect();
        let (epoch, by) = match which {
            0 => (of("val.loss").epoch, vec!["val.loss"]),
            // No epoch is that much better than the first.
            1 => (1, vec!["target.entropy"]),
            _ => (2, vec![]),
        };
        assert_eq!((of("the model").epoch, used), (epoch, by), "{stop}");
        let told = report.history.iter().find(|h| h.stage == "all" && h.epoch == epoch).unwrap();
        assert_eq!(report.target.as_ref().unwrap().accuracy, told.values["target.accuracy"], "{stop}");
    }
}

#[test]
fn a_domain_with_other_classes_or_without_samples_is_refused() {
    let job = JOB.replace("OBJECTIVE", METHODS[0]);
    let run = |job: &str| {
        let dir = tempfile::tempdir().unwrap();
        train(job, 1, false, dir.path(), &[], &Recorder::default()).unwrap_err().to_string()
    };
    let error = run(&job.replace("val = \"shifted\"", "val = \"target\""));
    assert!(error.contains("is in `data.target.val` but not in `data.train`"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let place = format!("format = \"image_folder\", train = {:?}, params", empty.path());
    let error = run(&job.replace(
        "train = \"shifted\", val = \"shifted\", params = { train_samples = 5, val_samples = 4 }",
        &place.replace(", params", ""),
    ));
    assert!(error.contains("has no samples"), "{error}");
    std::fs::write(empty.path().join("a.txt"), "no picture").unwrap();
    let error = run(&job.replace(
        "train = \"shifted\", val = \"shifted\", params = { train_samples = 5, val_samples = 4 }",
        &place.replace(", params", ""),
    ));
    assert!(error.contains("has no samples (1 file is no JPEG or PNG image, first `a.txt`"), "{error}");
    std::fs::write(empty.path().join("a.png"), "no picture").unwrap();
    let broken = place.replace(", params", "");
    let job =
        job.replace("train = \"shifted\", val = \"shifted\", params = { train_samples = 5, val_samples = 4 }", &broken);
    let error = run(&job.replace("batch = 23", "batch = 23, skip_bad = 9"));
    assert!(error.contains("none of the samples in `data.target.train` can be decoded"), "{error}");
}

#[test]
fn what_an_objective_trains_beside_the_network_is_named_by_no_rule() {
    let job = JOB.replace("OBJECTIVE", METHODS[0]);
    let run = |job: &str| {
        let dir = tempfile::tempdir().unwrap();
        train(job, 1, false, dir.path(), &[], &Recorder::default()).map(|_| ()).map_err(|e| e.to_string())
    };
    let error = run(&job.replace("[\"*\"]", "[\"objective\"]")).unwrap_err();
    assert!(error.contains("`objective` names no parameters"), "{error}");
    // Nor does it go into an adapter.
    let lora = job.replace("\"head\", \"block3\"", "\"head\"").replace("[\"*\"]", "[\"head\"]");
    let lora = format!("{lora}[modifiers.lora]\ntargets = [\"conv\"]\n");
    let dir = tempfile::tempdir().unwrap();
    train(&lora, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
    let file = std::fs::read(dir.path().join("work/model/adapter_model.safetensors")).unwrap();
    let names = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert!(names.names().iter().any(|n| n.contains("lora_A")));
    assert!(names.names().iter().all(|n| !n.contains("objective")), "{:?}", names.names());
}

#[test]
fn a_search_for_a_rate_does_not_move_the_schedule_of_the_reversed_gradient() {
    // With a search whose rate is not taken, the run is the one without.
    let job = JOB.replace("OBJECTIVE", METHODS[0]);
    let searched = job.replacen("lr = 0.003", "lr = 0.003\nlr_find = { steps = 12 }", 1);
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    for (job, dir) in [job, searched].iter().zip(&dirs) {
        train(job, 1, false, dir.path(), &[], &Recorder::default()).unwrap();
    }
    assert_eq!(model_of(dirs[0].path()), model_of(dirs[1].path()));
}

#[test]
fn samples_that_are_judged_by_labels_change_nothing_of_the_model() {
    let job = JOB.replace("OBJECTIVE", METHODS[3]);
    let job = job.replace(
        "[[stage]]\nname = \"top\"",
        "[stop]\nmonitor = \"target.entropy\"\nrestore_best = true\n[[stage]]\nname = \"top\"",
    );
    let bare = job.replace(
        "val = \"shifted\", params = { train_samples = 5, val_samples = 4 }",
        "params = { train_samples = 5, val_samples = 4 }",
    );
    assert_ne!(bare, job);
    let files = [job, bare].map(|job| {
        let dir = tempfile::tempdir().unwrap();
        let report = train(&job, 2, false, dir.path(), &[], &Recorder::default()).unwrap();
        (model_of(dir.path()), report.history.last().unwrap().values["target.entropy"].to_bits())
    });
    assert_eq!(files[0], files[1]);
}

#[test]
fn samples_of_the_other_domain_that_are_judged_and_learned_from_are_told() {
    let data = tempfile::tempdir().unwrap();
    for (part, shade) in [("seen", 9), ("other", 90)] {
        for (class, i) in ["circle", "ring"].into_iter().flat_map(|class| (0..4u8).map(move |i| (class, i))) {
            let path = data.path().join(format!("{part}/{class}/{i}.png"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let color = image::Rgb([shade, i, class.len() as u8]);
            image::RgbImage::from_pixel(32, 32, color).save(path).unwrap();
        }
    }
    let place = |part: &str| data.path().join(part).display().to_string();
    let told = |val: &str| {
        let generated = "train = \"shifted\", val = \"shifted\", params = { train_samples = 5, val_samples = 4 }";
        let photos = format!("format = \"image_folder\", train = {:?}, val = {:?}", place("seen"), place(val));
        let job = JOB.replace("OBJECTIVE", METHODS[7]).replace(generated, &photos);
        let (dir, link) = (tempfile::tempdir().unwrap(), Recorder::default());
        let plan = crate::train::probe::probe(&config(&job, dir.path(), "cache", Vec::new())).unwrap();
        train(&job, 1, false, dir.path(), &[], &link).unwrap();
        let said: Vec<String> = plan.warnings.into_iter().filter(|w| w.contains("too, first")).collect();
        let noticed = link.notices.lock().unwrap().iter().filter(|n| **n == Notice::SameSamples).count();
        assert_eq!(said.len(), noticed, "{said:?}");
        said
    };
    let said = told("seen");
    let wanted = "8 of 8 samples of `data.target.val` are in `data.target.train` too, first `circle/0.png`";
    assert!(said[0].starts_with(wanted), "{said:?}");
    assert!(told("other").is_empty());
}

#[test]
fn the_first_steps_of_every_stage_are_verified_on_more_ranks() {
    for job in [JOB.replace("OBJECTIVE", METHODS[1]), super::JOB.to_owned()] {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&job, dir.path(), "cache", Vec::new());
        let compared = crate::train::verify::verify(&config, 3).unwrap();
        let stages = config.spec.stage.len();
        assert_eq!(compared.len(), 2 * stages);
        assert_eq!(
            std::fs::read_dir(dir.path().join("work")).unwrap().count(),
            0,
            "what was written on the way is gone"
        );
        for (i, c) in compared.iter().enumerate() {
            assert_eq!((c.ranks, c.steps, &c.stage), (2 + i % 2, 3, &config.spec.stage[i / 2].name));
            assert!(c.holds() && c.fast < 1e-6, "{c:?}");
        }
        // The fast reduction adds in another order: some bits are others.
        assert!(compared.iter().any(|c| c.fast > 0.0));
    }
}
